"""How the codes of formats beside int4 lie in memory for the CPU kernels: panels of 16 output channels, as in
cpu_layouts.py.

    nf4_n16k4        indices of quantiles, 0 .. 15     -> uint8 [N/16, K/8, 16, 4]   two indices a byte
    e2m1_n16k4       E2M1 values, doubled, in int8     -> uint8 [N/16, K/8, 16, 4]   two E2M1 numbers a byte
    s8_n16k4         int8                              -> uint8 [N/16, K/4, 16, 4]   code + 128
    e4m3_n16         E4M3 numbers, as uint8            -> uint8 [N/16, K, 16]
    e4m3_scale_n16   E4M3 scales, as uint8             -> uint8 [N/16, groups, 16]
    multiplier_n16   int8, of the codes of a group     -> int8  [N/16, groups, 16]

N is padded to a multiple of 16 with what stands for 0. Nibbles lie as in s4_n16k4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.compiler.targets.cpu_layouts import PANEL, UnpackableWeight, num_panels
from svdqc.compiler.targets.layout import MULTIPLIERS, Layout, Shape

E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the value of each E2M1 number: bit 3 is the sign."""
_BIAS = 128  # bytes are unsigned in memory: the operand order of vpdpbusd


def _padded(rows: Tensor, fill: int = 0) -> Tensor:
    """[N, K] with rows of `fill` up to a multiple of PANEL."""
    missing = num_panels(rows.shape[0]) * PANEL - rows.shape[0]
    return torch.cat((rows, rows.new_full((missing, rows.shape[1]), fill))) if missing else rows


def _check(tensor: Tensor, multiple: int, dtype: torch.dtype) -> None:
    if tensor.dim() != 2 or tensor.shape[1] % multiple or tensor.dtype != dtype:
        raise UnpackableWeight(
            "pack",
            "codes",
            f"{tensor.dtype} of shape {list(tensor.shape)}",
            f"give {dtype} [out_features, a multiple of {multiple}]",
        )


def _pack_nibbles(nibbles: Tensor) -> Tensor:
    """uint8 [N, K] in 0 .. 15, N padded, to [N/16, K/8, 16, 4]: k = 8b + j in the low half, 8b + 4 + j in the high."""
    split = nibbles.reshape(-1, PANEL, nibbles.shape[1] // 8, 2, 4)
    return (split[:, :, :, 0] | (split[:, :, :, 1] << 4)).transpose(1, 2).contiguous()


def _unpack_nibbles(flat: Tensor, shape: Shape) -> Tensor:
    """uint8 [N, K]."""
    by_channel = flat.reshape(-1, shape[1] // 8, PANEL, 4).transpose(1, 2)
    nibbles = torch.stack((by_channel & 15, by_channel >> 4), dim=3)
    return nibbles.reshape(-1, shape[1])[: shape[0]].contiguous()


def _nibble_bytes(shape: Shape) -> int:
    return num_panels(shape[0]) * PANEL * shape[1] // 2


def pack_nf4_n16k4(w_codes: Tensor) -> Tensor:
    _check(w_codes, 8, torch.int8)
    if w_codes.numel() and not 0 <= int(w_codes.min()) <= int(w_codes.max()) <= 15:
        raise UnpackableWeight("pack", "w_codes", "an index past the quantiles", "use 0 to 15")
    return _pack_nibbles(_padded(w_codes, 7).to(torch.uint8))  # quantile 7 is zero


def unpack_nf4_n16k4(flat: Tensor, shape: Shape) -> Tensor:
    return _unpack_nibbles(flat, shape).to(torch.int8)


def pack_e2m1_n16k4(w_codes: Tensor) -> Tensor:
    _check(w_codes, 8, torch.int8)
    size = w_codes.to(torch.int64).abs()
    table = torch.full((129,), 255, dtype=torch.uint8)
    table[torch.tensor(E2M1_DOUBLED[:8])] = torch.arange(8, dtype=torch.uint8)
    numbers = table[size]
    if bool((numbers == 255).any()):
        raise UnpackableWeight("pack", "w_codes", "a code that E2M1 lacks", "round to E2M1 first")
    return _pack_nibbles(_padded(numbers | ((w_codes < 0).to(torch.uint8) << 3)))


def unpack_e2m1_n16k4(flat: Tensor, shape: Shape) -> Tensor:
    return torch.tensor(E2M1_DOUBLED, dtype=torch.int8)[_unpack_nibbles(flat, shape).long()]


def pack_s8_n16k4(w_codes: Tensor) -> Tensor:
    _check(w_codes, 4, torch.int8)
    biased = (_padded(w_codes).to(torch.int16) + _BIAS).to(torch.uint8)
    return biased.reshape(-1, PANEL, w_codes.shape[1] // 4, 4).transpose(1, 2).contiguous()


def unpack_s8_n16k4(flat: Tensor, shape: Shape) -> Tensor:
    rows = flat.reshape(-1, shape[1] // 4, PANEL, 4).transpose(1, 2).reshape(-1, shape[1])
    return (rows[: shape[0]].to(torch.int16) - _BIAS).to(torch.int8)


def pack_bytes_n16(tensor: Tensor) -> Tensor:
    """uint8 [N, K] to [N/16, K, 16]."""
    _check(tensor, 1, torch.uint8)
    return _padded(tensor).reshape(-1, PANEL, tensor.shape[1]).transpose(1, 2).contiguous()


def unpack_bytes_n16(flat: Tensor, shape: Shape) -> Tensor:
    rows = flat.reshape(-1, shape[1], PANEL).transpose(1, 2).reshape(-1, shape[1])
    return rows[: shape[0]].contiguous()


def pack_multiplier_n16(w_multiplier: Tensor) -> Tensor:
    _check(w_multiplier, 1, torch.int8)
    if w_multiplier.numel() and int(w_multiplier.to(torch.int16).abs().max()) > MULTIPLIERS[1]:
        raise UnpackableWeight(
            "pack", "w_multiplier", "an integer past 15", "its product with a code is to be an int8"
        )
    return pack_bytes_n16(w_multiplier.view(torch.uint8)).view(torch.int8)


def unpack_multiplier_n16(flat: Tensor, shape: Shape) -> Tensor:
    return unpack_bytes_n16(flat, shape).view(torch.int8)


def _byte_bytes(shape: Shape) -> int:
    return num_panels(shape[0]) * PANEL * shape[1]


LAYOUTS: dict[str, Layout] = {
    "nf4_n16k4": Layout(pack_nf4_n16k4, unpack_nf4_n16k4, _nibble_bytes),
    "e2m1_n16k4": Layout(pack_e2m1_n16k4, unpack_e2m1_n16k4, _nibble_bytes),
    "s8_n16k4": Layout(pack_s8_n16k4, unpack_s8_n16k4, _byte_bytes),
    "e4m3_n16": Layout(pack_bytes_n16, unpack_bytes_n16, _byte_bytes),
    "e4m3_scale_n16": Layout(pack_bytes_n16, unpack_bytes_n16, _byte_bytes),
    "multiplier_n16": Layout(pack_multiplier_n16, unpack_multiplier_n16, _byte_bytes),
}
