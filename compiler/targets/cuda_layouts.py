"""How weights lie in memory for tensor cores: in the order in which the lanes of a warp hold them, so that a lane's
16 bytes are one load and no shared memory is needed (templates/cuda/include/svdq_cuda/mma.h names the fragments).

    s4_mma       w_codes [N, K] int8, 4 bits    -> uint8 [N/32, K/64, 2, 32, 4, 4]  two codes a byte, low nibble first
    u4s8_mma     the same                       -> alike, codes + 8 in the order of 8-bit activations
    multiplier_mma   w_multiplier [N, groups] int8 -> int8 [N/32, groups, 8, 4]
    s8_mma       w_codes [N, K] int8            -> int8  [N/32, K/64, 4, 32, 4, 4]
    e4m3_mma     w_codes [N, K] uint8, E4M3     -> the same of bytes
    scale_mma    w_scale [N, groups]            -> bfloat16 [N/32, groups, 4, 4, 2]
    f32_mma, bf16_mma, f16_mma   w [N, K]       -> same dtype [N/32, K/16, 2, 32, 2, 4]
    s4_rows, nf4_rows            w_codes [N, K] -> uint8 [N/16, K/64, 32, 4, 4]  weights as the left operand
    scale_rows   w_scale [N, groups]            -> bfloat16 [N/16, groups, 8, 2]

Lanes are (g, t) = (lane / 4, lane % 4); g is the column within 8. N is padded to a multiple of 32 (rows: 16), K of
64 (floats: 16), with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.compiler.targets.layout import MULTIPLIERS, Layout, Shape
from svdqc.errors import SvdqcError

COLUMNS, ROWS = 32, 16
K_CODES, K_FLOATS = 64, 16


class UnpackableCudaWeight(SvdqcError):
    """A weight has a type, shape or values that the layout cannot hold."""


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    extra = (0, -matrix.shape[1] % columns, 0, -matrix.shape[0] % rows)
    return torch.nn.functional.pad(matrix, extra)


def code_matrix(
    name: str, matrix: Tensor, dtype: torch.dtype, limits: tuple[int, int] | None
) -> None:
    """A matrix of codes of this type, within limits, or UnpackableCudaWeight."""
    if matrix.dim() != 2 or matrix.dtype != dtype:
        found = f"{matrix.dtype} of shape {list(matrix.shape)}"
        raise UnpackableCudaWeight("pack", name, found, f"give {dtype} [out_features, in_features]")
    if limits is not None and matrix.numel():
        lo, hi = int(matrix.min()), int(matrix.max())
        if lo < limits[0] or hi > limits[1]:
            raise UnpackableCudaWeight(
                "pack", name, f"codes from {lo} to {hi}", f"codes lie in {list(limits)}"
            )


def _blocks(matrix: Tensor, k: int) -> Tensor:
    """[N, K] to [N/32, K/k, 4 tiles of 8 columns, 8 columns, k]."""
    padded = _padded(matrix, COLUMNS, k)
    tiles = padded.reshape(padded.shape[0] // COLUMNS, 4, 8, padded.shape[1] // k, k)
    return tiles.permute(0, 3, 1, 2, 4)


def _from_blocks(blocks: Tensor, shape: Shape) -> Tensor:
    panels, steps, tiles, columns, k = blocks.shape
    matrix = blocks.permute(0, 2, 3, 1, 4).reshape(panels * tiles * columns, steps * k)
    return matrix[: shape[0], : shape[1]].contiguous()


def _block_bytes(shape: Shape, k: int, bits: int) -> int:
    return -(-shape[0] // COLUMNS) * COLUMNS * -(-shape[1] // k) * k * bits // 8


def pack_s4_mma(w_codes: Tensor) -> Tensor:
    """Word r of column g in lane (g, t) has k = 32 r + 8 t + (0 .. 7), the first in the lowest nibble."""
    code_matrix("w_codes", w_codes, torch.int8, (-8, 7))
    blocks = _blocks(w_codes, K_CODES) & 15  # [p, s, tile, g, k]
    p, s = blocks.shape[:2]
    split = blocks.reshape(p, s, 2, 2, 8, 2, 4, 4, 2)  # [p, s, pair, tile, g, r, t, byte, nibble]
    packed = split[..., 0] | (split[..., 1] << 4)
    return _lanes(packed.to(torch.uint8))


def unpack_s4_mma(flat: Tensor, shape: Shape) -> Tensor:
    packed = _from_lanes(flat.view(torch.uint8), shape)
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1)
    return _from_blocks(_signed(nibbles.reshape(*packed.shape[:2], 4, 8, K_CODES)), shape)


def pack_u4s8_mma(w_codes: Tensor) -> Tensor:
    """Word r of column g in lane (g, t): byte j has k = 32 r + 4 t + j low and 32 r + 16 + 4 t + j high."""
    code_matrix("w_codes", w_codes, torch.int8, (-8, 7))
    blocks = _blocks(w_codes, K_CODES) + 8
    p, s = blocks.shape[:2]
    split = blocks.reshape(p, s, 2, 2, 8, 2, 2, 4, 4)  # [p, s, pair, tile, g, r, half, t, byte]
    packed = split[..., 0, :, :] | (split[..., 1, :, :] << 4)
    return _lanes(packed.to(torch.uint8))


def unpack_u4s8_mma(flat: Tensor, shape: Shape) -> Tensor:
    packed = _from_lanes(flat.view(torch.uint8), shape)
    nibbles = torch.stack(
        (packed & 15, packed >> 4), dim=-3
    )  # [p, s, pair, tile, g, r, half, t, j]
    codes = nibbles.reshape(*packed.shape[:2], 4, 8, K_CODES).to(torch.int8) - 8
    return _from_blocks(codes, shape)


def pack_multiplier_mma(w_multiplier: Tensor) -> Tensor:
    """Column 8 j + g of a panel at [panel, group, g, j]."""
    code_matrix("w_multiplier", w_multiplier, torch.int8, MULTIPLIERS)
    padded = _padded(w_multiplier, COLUMNS, 1)
    return padded.reshape(-1, 4, 8, padded.shape[1]).permute(0, 3, 2, 1).contiguous()


def unpack_multiplier_mma(flat: Tensor, shape: Shape) -> Tensor:
    panels = flat.view(torch.int8).reshape(-1, shape[1], 8, 4).permute(0, 3, 2, 1)
    return panels.reshape(-1, shape[1])[: shape[0]].contiguous()


def pack_s8_mma(w_codes: Tensor) -> Tensor:
    """Word r of column g in lane (g, t) has k = 16 r + 4 t + (0 .. 3)."""
    code_matrix("w_codes", w_codes, torch.int8, None)
    blocks = _blocks(w_codes, K_CODES)
    split = blocks.reshape(*blocks.shape[:3], 8, 4, 4, 4)  # [p, s, tile, g, r, t, byte]
    return split.permute(0, 1, 2, 3, 5, 4, 6).contiguous()


def unpack_s8_mma(flat: Tensor, shape: Shape) -> Tensor:
    steps = -(-shape[1] // K_CODES)
    split = flat.view(torch.int8).reshape(-1, steps, 4, 8, 4, 4, 4).permute(0, 1, 2, 3, 5, 4, 6)
    return _from_blocks(split.reshape(-1, steps, 4, 8, K_CODES), shape)


def pack_scale_mma(w_scale: Tensor) -> Tensor:
    """Column 8 j + 2 t + i of a panel at [panel, group, t, j, i]."""
    padded = _padded(bf16_scales(w_scale), COLUMNS, 1)
    columns = padded.reshape(padded.shape[0] // COLUMNS, 4, 4, 2, padded.shape[1])
    return columns.permute(0, 4, 2, 1, 3).contiguous()  # [panel, group, t, j, i]


def unpack_scale_mma(flat: Tensor, shape: Shape) -> Tensor:
    columns = flat.view(torch.bfloat16).reshape(-1, shape[1], 4, 4, 2).permute(0, 3, 2, 4, 1)
    return columns.reshape(-1, shape[1])[: shape[0]].contiguous()


def pack_float_mma(w: Tensor) -> Tensor:
    """Lane (g, t) has k = 2 t, 2 t + 1, 8 + 2 t, 9 + 2 t of column g, for two tiles of 8 columns."""
    if w.dim() != 2 or not w.is_floating_point():
        found = f"{w.dtype} of shape {list(w.shape)}"
        raise UnpackableCudaWeight("pack", "w", found, "give a float matrix [N, K]")
    blocks = _blocks(w, K_FLOATS)
    p, s = blocks.shape[:2]
    split = blocks.reshape(p, s, 2, 2, 8, 2, 4, 2)  # [p, s, pair, tile, g, r, t, i]
    return split.permute(0, 1, 2, 4, 6, 3, 5, 7).contiguous()


def _unpack_float_mma(flat: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    steps = -(-shape[1] // K_FLOATS)
    split = flat.view(dtype).reshape(-1, steps, 2, 8, 4, 2, 2, 2).permute(0, 1, 2, 5, 3, 6, 4, 7)
    return _from_blocks(split.reshape(-1, steps, 4, 8, K_FLOATS), shape)


def pack_s4_rows(w_codes: Tensor) -> Tensor:
    """Weights as rows of the left operand, 16 at a time: lane (g, t) has rows g and g + 8.

    Word s of its four is for k = 32 (s / 2) + 8 t + 4 (s % 2) + (0 .. 3): code + 8 of (row g, k), (g + 8, k),
    (g, k + 2), (g + 8, k + 2) in nibbles 0 .. 3, of k + 1 and k + 3 in nibbles 4 .. 7.
    """
    code_matrix("w_codes", w_codes, torch.int8, (-8, 7))
    return _pack_rows(w_codes.to(torch.int16) + 8, 8)


def unpack_s4_rows(flat: Tensor, shape: Shape) -> Tensor:
    return _unpack_rows(flat, shape) - 8


def pack_nf4_rows(w_codes: Tensor) -> Tensor:
    """Indices of quantiles, 0 .. 15, in the places of s4_rows' codes + 8. Padding is quantile 7: zero."""
    code_matrix("w_codes", w_codes, torch.int8, (0, 15))
    return _pack_rows(w_codes.to(torch.int16), 7)


def _pack_rows(nibbles: Tensor, zero: int) -> Tensor:
    extra = (0, -nibbles.shape[1] % K_CODES, 0, -nibbles.shape[0] % ROWS)
    padded = torch.nn.functional.pad(nibbles, extra, value=zero)
    n, k = padded.shape[0] // ROWS, padded.shape[1] // K_CODES
    split = padded.reshape(
        n, 2, 8, k, 2, 4, 2, 2, 2
    )  # [panel, half, g, step, s/2, t, s%2, pair, i]
    lanes = split.permute(0, 3, 2, 5, 4, 6, 8, 7, 1)  # [panel, step, g, t, s/2, s%2, i, pair, half]
    bytes_ = lanes.reshape(n, k, 32, 4, 4, 2)  # the last: which nibble
    return (bytes_[..., 0] | (bytes_[..., 1] << 4)).to(torch.uint8)


def _unpack_rows(flat: Tensor, shape: Shape) -> Tensor:
    steps = -(-shape[1] // K_CODES)
    packed = flat.view(torch.uint8).reshape(-1, steps, 32, 4, 4)
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1)
    lanes = nibbles.reshape(-1, steps, 8, 4, 2, 2, 2, 2, 2)
    rows = lanes.permute(0, 8, 2, 1, 4, 3, 5, 7, 6).reshape(-1, steps * K_CODES)
    return rows[: shape[0], : shape[1]].to(torch.int8)


def pack_scale_rows(w_scale: Tensor) -> Tensor:
    """Scales of rows g and g + 8 of a panel of 16 at [panel, group, g]."""
    panels = _padded(bf16_scales(w_scale), ROWS, 1).reshape(-1, 2, 8, w_scale.shape[1])
    return panels.permute(0, 3, 2, 1).contiguous()


def unpack_scale_rows(flat: Tensor, shape: Shape) -> Tensor:
    panels = flat.view(torch.bfloat16).reshape(-1, shape[1], 8, 2).permute(0, 3, 2, 1)
    return panels.reshape(-1, shape[1])[: shape[0]].contiguous()


def bf16_scales(w_scale: Tensor) -> Tensor:
    """Scales [N, groups] that bfloat16 holds, or UnpackableCudaWeight."""
    scale = w_scale.to(torch.bfloat16)
    if scale.dim() != 2 or not torch.equal(scale.to(torch.float32), w_scale.to(torch.float32)):
        raise UnpackableCudaWeight(
            "pack", "w_scale", "scales with more bits than bfloat16 has", "round them before coding"
        )
    return scale


def _lanes(packed: Tensor) -> Tensor:
    """[panel, step, pair, tile, g, r, t, byte] to [panel, step, pair, (g, t), (tile, r), byte]."""
    p, s = packed.shape[:2]
    return packed.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(p, s, 2, 32, 4, 4).contiguous()


def _from_lanes(flat: Tensor, shape: Shape) -> Tensor:
    lanes = flat.reshape(-1, -(-shape[1] // K_CODES), 2, 8, 4, 2, 2, 4)
    return lanes.permute(0, 1, 2, 5, 3, 6, 4, 7)


def _signed(nibbles: Tensor) -> Tensor:
    return ((nibbles.to(torch.int16) ^ 8) - 8).to(torch.int8)


def _row_bytes(shape: Shape) -> int:
    return -(-shape[0] // ROWS) * ROWS * -(-shape[1] // K_CODES) * K_CODES // 2


def _float_layout(dtype: torch.dtype) -> Layout:
    def pack(w: Tensor) -> Tensor:
        return pack_float_mma(w.to(dtype))

    return Layout(
        pack,
        lambda flat, shape: _unpack_float_mma(flat, shape, dtype),
        lambda shape: _block_bytes(shape, K_FLOATS, dtype.itemsize * 8),
    )


def as_e4m3(of_bytes: Layout) -> Layout:
    """A layout of int8 for E4M3 numbers, which are uint8: their bits go where those of int8 would."""

    def pack(codes: Tensor) -> Tensor:
        code_matrix("w_codes", codes, torch.uint8, None)
        return of_bytes.pack(codes.view(torch.int8)).view(torch.uint8)

    return Layout(
        pack,
        lambda flat, shape: of_bytes.unpack(flat, shape).view(torch.uint8),
        of_bytes.num_bytes,
    )


S8_MMA = Layout(pack_s8_mma, unpack_s8_mma, lambda s: _block_bytes(s, K_CODES, 8))
LAYOUTS: dict[str, Layout] = {
    "s4_mma": Layout(pack_s4_mma, unpack_s4_mma, lambda s: _block_bytes(s, K_CODES, 4)),
    "u4s8_mma": Layout(pack_u4s8_mma, unpack_u4s8_mma, lambda s: _block_bytes(s, K_CODES, 4)),
    "multiplier_mma": Layout(
        pack_multiplier_mma, unpack_multiplier_mma, lambda s: -(-s[0] // COLUMNS) * COLUMNS * s[1]
    ),
    "s8_mma": S8_MMA,
    "e4m3_mma": as_e4m3(S8_MMA),
    "scale_mma": Layout(
        pack_scale_mma, unpack_scale_mma, lambda s: -(-s[0] // COLUMNS) * COLUMNS * s[1] * 2
    ),
    "s4_rows": Layout(pack_s4_rows, unpack_s4_rows, _row_bytes),
    "nf4_rows": Layout(pack_nf4_rows, _unpack_rows, _row_bytes),
    "scale_rows": Layout(
        pack_scale_rows, unpack_scale_rows, lambda s: -(-s[0] // ROWS) * ROWS * s[1] * 2
    ),
    "f32_mma": _float_layout(torch.float32),
    "bf16_mma": _float_layout(torch.bfloat16),
    "f16_mma": _float_layout(torch.float16),
}
