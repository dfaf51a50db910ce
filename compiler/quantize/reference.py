"""The exact meaning of a quantized linear, executable: what every kernel is compared with.

    x_hat   = (x + shift) * inv_smooth                                    [..., in_features]  f32
    low     = x_hat @ lora_down.T                                         [..., rank]         f32
    codes   = clamp(round_half_even(rotate?(x_hat) * (1 / x_scale)))      [..., in_features]  int
    y[m, n] = sum_g x_scale[m, g] * w_scale[n, g] * (sum_{k in g} codes[m, k] * w_codes[n, k])
              + sum_r low[m, r] * lora_up[n, r] + bias[n]

Codes are integers and inner sums exact (fp8: values of E4M3, summed in f64, exact to 2^-53); groups are added in
rising order in f32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.compiler.quantize.codecs import encode_activation
from svdqc.compiler.quantize.formats import NF4_VALUES
from svdqc.compiler.quantize.hadamard import rotate
from svdqc.compiler.quantize.ranges import ActivationFormat


def smooth_activation(x: Tensor, inv_smooth: Tensor, activation: ActivationFormat) -> Tensor:
    """x_hat [..., in_features] f32, not rotated: what the low-rank branch reads."""
    x_hat = x.to(torch.float32)
    if activation.shift != 0.0:
        x_hat = x_hat + activation.shift
    return x_hat * inv_smooth


def quantize_activation(
    x: Tensor, inv_smooth: Tensor, lora_down: Tensor | None, activation: ActivationFormat
) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth, project down and code the input of a linear.

    x           [..., in_features]   any float dtype
    inv_smooth  [in_features]        f32
    lora_down   [rank, in_features]  or None for rank 0
    ->  codes   [..., in_features]               int8
        scale   [..., in_features / group_size]  f32
        low     [..., rank]                      f32
    """
    in_features = x.shape[-1]
    assert inv_smooth.shape == (in_features,), (inv_smooth.shape, in_features)
    assert in_features % activation.group_size == 0, (in_features, activation.group_size)
    x_hat = smooth_activation(x, inv_smooth, activation)
    if lora_down is None:
        low = x_hat.new_zeros(*x_hat.shape[:-1], 0)
    else:
        assert lora_down.shape[1] == in_features
        low = x_hat @ lora_down.to(torch.float32).T
    coded = rotate(x_hat) if activation.rotate else x_hat
    codes, scale = encode_activation(coded, activation)
    return codes.to(activation.code_dtype).reshape(x.shape), scale, low


def linear_s4(
    codes: Tensor,
    scale: Tensor,
    low: Tensor,
    w_codes: Tensor,
    w_scale: Tensor,
    lora_up: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """The linear itself, from coded activations.

    codes    [..., in_features]              int8      w_codes  [out_features, in_features]   int8
    scale    [..., groups or 1]              f32       w_scale  [out_features, groups]        bf16 or f32
    low      [..., rank]                     f32       lora_up  [out_features, rank]          bf16 or f32
    bias     [out_features] or None                    ->       [..., out_features]           f32
    """
    in_features, groups = codes.shape[-1], w_scale.shape[-1]
    assert scale.shape[-1] in (groups, 1), (scale.shape, w_scale.shape)
    group_size = in_features // groups
    rows = codes.numel() // max(in_features, 1)
    # Doubles hold integers up to 2^53, floats up to 2^24: each sum below is exact in the type chosen.
    exact = torch.float32 if _sum_bound(codes, w_codes, group_size) < 1 << 24 else torch.float64
    x_codes = codes.reshape(rows, groups, group_size).to(exact)
    w_grouped = w_codes.reshape(-1, groups, group_size).to(exact)
    x_scale = scale.reshape(rows, scale.shape[-1]).expand(rows, groups)
    w_scale = w_scale.to(torch.float32)
    y = torch.zeros(rows, w_codes.shape[0], dtype=torch.float32, device=codes.device)
    for g in range(groups):
        sums = (x_codes[:, g] @ w_grouped[:, g].T).to(torch.float32)
        y += sums * (x_scale[:, g, None] * w_scale[None, :, g])
    if lora_up.shape[1]:
        y += low.reshape(rows, lora_up.shape[1]) @ lora_up.to(torch.float32).T
    if bias is not None:
        y += bias.to(torch.float32)
    return y.reshape(*codes.shape[:-1], w_codes.shape[0])


def linear_w(
    x: Tensor, w_codes: Tensor, w_scale: Tensor, bias: Tensor | None, weight_format: str
) -> Tensor:
    """A linear whose weight alone is coded: y = x @ decode_weight(...).T + bias, in f32.

    x        [..., in_features]              any float dtype
    bias     [out_features] or None          ->  [..., out_features]  f32
    """
    y = x.to(torch.float32) @ decode_weight(w_codes, w_scale, weight_format).T
    return y if bias is None else y + bias.to(torch.float32)


def decode_weight(w_codes: Tensor, w_scale: Tensor, weight_format: str) -> Tensor:
    """The weight that a weight-only format stands for, f32 [out_features, in_features].

    w_codes  [out_features, in_features]     int8: integers ("s4"), or indices of NF4_VALUES ("nf4")
    w_scale  [out_features, groups]          bf16 or f32
    """
    assert weight_format in ("s4", "nf4"), weight_format
    if weight_format == "nf4":
        w_codes = torch.tensor(NF4_VALUES, device=w_codes.device)[w_codes.long()]
    return dequantize_weight(w_codes, w_scale)


def dequantize_weight(w_codes: Tensor, w_scale: Tensor) -> Tensor:
    """Codes [out_features, in_features] under scales [out_features, groups] as f32 [out_features, in_features]."""
    out_features, in_features = w_codes.shape
    grouped = w_codes.to(torch.float32).reshape(out_features, w_scale.shape[1], -1)
    return (grouped * w_scale.to(torch.float32).unsqueeze(-1)).reshape(out_features, in_features)


def multiplied_codes(w_codes: Tensor, w_multiplier: Tensor) -> Tensor:
    """Codes times the integers of their groups: int8 [out_features, in_features].

    w_codes       [out_features, in_features]  int8, -8 .. 7
    w_multiplier  [out_features, groups]       int8, +-formats.LARGEST_MULTIPLIER
    """
    grouped = w_codes.to(torch.int16).reshape(*w_multiplier.shape, -1)
    products = (grouped * w_multiplier.unsqueeze(-1)).reshape(w_codes.shape)
    return products.to(torch.int8)  # at most 8 * 15


def _sum_bound(codes: Tensor, w_codes: Tensor, group_size: int) -> int:
    """The largest magnitude that a sum over one group can reach."""
    if codes.numel() == 0 or w_codes.numel() == 0:
        return 0
    if codes.dtype.is_floating_point:  # E4M3: not integers, summed in doubles
        return 1 << 53
    largest = [int(c.to(torch.int16).abs().max()) for c in (codes, w_codes)]
    return group_size * largest[0] * largest[1]
