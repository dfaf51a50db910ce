"""Number formats beside int4: exact quantize and dequantize functions, the definition of each.

| name  | element        | scale                                                        |
|-------|----------------|--------------------------------------------------------------|
| nvfp4 | E2M1           | E4M3 per 16 along K, times one power of two per tensor       |
| int8  | int8, +-127    | f32 per row (a token, or an output channel)                  |
| fp8   | E4M3, +-448    | f32 per row                                                  |
| nf4   | 16 quantiles   | bf16 absmax per 64                                           |
| s4m   | s4             | an integer per group along K, times bf16 per output channel  |

E2M1 codes are held doubled, as the integers 0, +-1, +-2, +-3, +-4, +-6, +-8, +-12, and their scales halved: sums of
products are then exact integers, and `reference.linear_s4` is the reference of nvfp4 too. The tensor scale is a
power of two, so that E4M3 x tensor scale is a bf16 value; E4M3 spans 2^-9 to 448, so nothing is lost by it.

"s4m" is W4A8's weight: two levels of scales, as QServe's (arXiv 2405.04532), but symmetric and exact: code x multiplier
is an int8, so that kernels need not scale sums.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NVFP4_GROUP = 16
E2M1_LARGEST = 6.0
E4M3_LARGEST = 448.0
E2M1_RANGES = {"six": (6.0,), "four_over_six": (6.0, 4.0), "best_of_three": (6.0, 4.0, 6.5)}
"""Where an NVFP4 group may send its largest magnitude. 4 instead of 6 has nearer neighbours (Four-Over-Six, arXiv
2512.02010); 6.5 clips a little. Squared error of Gaussian groups: 0.91 %, 0.76 %, 0.70 % of their power."""
INT8_LARGEST = 127.0
LARGEST_MULTIPLIER = 15
"""Of s4m: codes are -8 .. 7, so |code x multiplier| <= 120; K of them times int8 activations stay in int32 to 2^17."""

NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The quantiles of QLoRA (arXiv 2305.14314, appendix E)."""


def round_e2m1_doubled(x: Tensor) -> Tensor:
    """x, in units of the scale, to the nearest E2M1 value, doubled; ties to the even mantissa; saturates at +-12.

    Steps are 0.5 below 2, 1 below 4, 2 up to 6, so each binade is a round-half-even in its own step.
    """
    size = x.abs()
    fine = (size * 2.0).round_()
    middle = size.round().mul_(2.0)
    coarse = (size * 0.5).round_().mul_(4.0)
    rounded = torch.where(size < 2.0, fine, torch.where(size < 4.0, middle, coarse)).clamp_(
        max=12.0
    )
    return torch.copysign(rounded, x)


def round_e4m3(x: Tensor) -> Tensor:
    """x to the nearest E4M3 value, in f32; saturates at +-448."""
    return x.clamp(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn).to(torch.float32)


def e4m3_from_bits(bits: Tensor) -> Tensor:
    """E4M3 numbers, held as uint8, in f32."""
    return bits.view(torch.float8_e4m3fn).to(torch.float32)


def e4m3_parts(scale: Tensor) -> tuple[Tensor, float]:
    """Scales that are E4M3 values times a power of two, as (bits uint8, unit): scale = e4m3_from_bits(bits) * unit.

    The unit sends the largest near the top of E4M3, which leaves the small ones the most room.
    """
    values = scale.to(torch.float32)
    largest = float(values.abs().max()) if values.numel() else 0.0
    unit = 2.0 ** math.ceil(math.log2(largest / E4M3_LARGEST)) if largest > 0.0 else 1.0
    bits = (values / unit).to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(e4m3_from_bits(bits) * unit, values), "not E4M3 values times a power of two"
    return bits, unit


def nvfp4_tensor_scale(absmax: float) -> float:
    """The power of two under which the largest group scale still fits E4M3."""
    if absmax == 0.0:
        return 1.0
    return 2.0 ** math.ceil(math.log2(absmax / (E2M1_LARGEST * E4M3_LARGEST)))


def nvfp4_scales(x_grouped: Tensor, tensor_scale: float, largest: float = E2M1_LARGEST) -> Tensor:
    """Scales of doubled codes: x_grouped [..., groups, 16] -> [..., groups] f32; the extreme goes to `largest`."""
    absmax = x_grouped.abs().amax(-1)
    return round_e4m3(absmax / largest / tensor_scale) * (0.5 * tensor_scale)


def nvfp4_encode(x_grouped: Tensor, scale: Tensor) -> Tensor:
    """Doubled codes, as floats, of x_grouped [..., groups, 16] under scales [..., groups] from `nvfp4_scales`."""
    inverse = 0.5 / scale
    inverse = torch.where(torch.isfinite(inverse), inverse, torch.zeros_like(inverse))
    return round_e2m1_doubled(x_grouped * inverse.unsqueeze(-1))


def quantize_nvfp4(
    x: Tensor, tensor_scale: float, largest: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """x [..., in_features] -> doubled codes [..., in_features] as floats, scales f32 [..., in_features / 16].

    Each group tries sending its largest magnitude to each of `largest` in turn, and keeps the first with the least
    squared error, summed in f32 in rising order of channel.
    """
    groups = x.shape[-1] // NVFP4_GROUP
    grouped = x.to(torch.float32).reshape(*x.shape[:-1], groups, NVFP4_GROUP)
    best_scale = best_codes = best_loss = None
    for target in largest:
        scale = nvfp4_scales(grouped, tensor_scale, target)
        codes = nvfp4_encode(grouped, scale)
        loss = (
            _sum_in_order((grouped - codes * scale.unsqueeze(-1)).square_())
            if len(largest) > 1
            else scale
        )
        if best_scale is None or best_codes is None or best_loss is None:
            best_scale, best_codes, best_loss = scale, codes, loss
        else:
            better = loss < best_loss
            best_scale = torch.where(better, scale, best_scale)
            best_codes = torch.where(better.unsqueeze(-1), codes, best_codes)
            best_loss = torch.where(better, loss, best_loss)
    assert best_codes is not None
    assert best_scale is not None
    return best_codes.reshape(x.shape), best_scale


def _sum_in_order(values: Tensor) -> Tensor:
    """Sum over the last dim from the first to the last, so that a kernel can give the same bits."""
    total = values[..., 0].clone()
    for k in range(1, values.shape[-1]):
        total += values[..., k]
    return total


def dequantize_groups(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes [..., in_features] under scales [..., groups], of any format whose codes are numbers, as f32."""
    grouped = codes.to(torch.float32).reshape(*scale.shape, -1)
    return (grouped * scale.to(torch.float32).unsqueeze(-1)).reshape(codes.shape)


def multiplier_parts(scale: Tensor) -> tuple[Tensor, Tensor]:
    """Scales [N, groups] f32 that are multiples of one bf16 value per row, as (multipliers int8 [N, groups], that value
    bf16 [N, 1]): scale = multiplier * value, exactly.

    Of several values that will do the largest. A row of zeros has value 0.
    """
    wanted = scale.to(torch.float64)
    largest = wanted.abs().amax(-1, keepdim=True)
    multipliers = torch.zeros(scale.shape, dtype=torch.int8)
    values = torch.zeros(scale.shape[0], 1, dtype=torch.bfloat16)
    found = largest == 0.0
    for top in range(1, LARGEST_MULTIPLIER + 1):
        value = (largest / top).to(torch.bfloat16)
        ratio = torch.where(found, 0.0, wanted / value.to(torch.float64)).round()
        fits = (ratio * value.to(torch.float64) == wanted).all(-1, keepdim=True) & ~found
        values = torch.where(fits, value, values)
        multipliers = torch.where(fits, ratio.to(torch.int8), multipliers)
        found |= fits
    assert bool(found.all()), "not small multiples of a bf16 value per row"
    return multipliers, values


def quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """W8A8, per row: x [..., in_features] -> codes int8, scales f32 [..., 1]."""
    scale = x.to(torch.float32).abs().amax(-1, keepdim=True) / INT8_LARGEST
    codes = torch.where(scale > 0, x / scale, torch.zeros_like(x)).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


def quantize_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 per row: x [..., in_features] -> codes float8_e4m3fn, scales f32 [..., 1]."""
    scale = x.to(torch.float32).abs().amax(-1, keepdim=True) / E4M3_LARGEST
    codes = torch.where(scale > 0, x / scale, torch.zeros_like(x)).clamp(
        -E4M3_LARGEST, E4M3_LARGEST
    )
    return codes.to(torch.float8_e4m3fn), scale


def quantize_nf4(w: Tensor, group_size: int = 64) -> tuple[Tensor, Tensor]:
    """NF4 W4A16: w [..., in_features] -> indices into NF4_VALUES, int8; scales f32 of bf16 values [..., groups]."""
    grouped = w.to(torch.float32).reshape(*w.shape[:-1], -1, group_size)
    scale = grouped.abs().amax(-1).to(torch.bfloat16).to(torch.float32)
    ratio = torch.where(
        scale.unsqueeze(-1) > 0, grouped / scale.unsqueeze(-1), torch.zeros_like(grouped)
    )
    values = torch.tensor(NF4_VALUES)
    codes = torch.bucketize(ratio, (values[1:] + values[:-1]) / 2)
    return codes.to(torch.int8).reshape(w.shape), scale


def dequantize_nf4(codes: Tensor, scale: Tensor) -> Tensor:
    """[..., in_features] f32."""
    return dequantize_groups(torch.tensor(NF4_VALUES)[codes.long()], scale)
