"""How NVFP4 weights lie in memory for block-scaled tensor cores.

By warps (sm_120a), blocks of 32 columns by 64 k in the order in which lanes hold them (mma_e2m1 in mma.h):

    e2m1_mma        E2M1 values, doubled, in int8 [N, K]   -> uint8 [N/32, K/64, 2, 32, 4, 4]  two numbers a byte
    e4m3_scale_mma  E4M3 scales, as uint8 [N, K/16]        -> uint8 [N/32, K/64, 32, 4]  lane (g, t): column 8 t + g

By tcgen05 (sm_100a), as shared memory has them, so that bulk copies bring them (tcgen05.h):

    e2m1_tcgen05        as e2m1_mma       -> uint8 [N/128, K/64, 16, 2, 8, 16]  core matrices: 8 columns by 32 k
    e4m3_scale_tcgen05  as e4m3_scale_mma -> uint8 [N/128, K/64, 32, 4, 4]  of column 32 j + i at [.., i, j]

N is padded to a multiple of 32 or 128, K of 64, with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.compiler.targets import cuda_layouts
from svdqc.compiler.targets.cpu_layouts_codes import E2M1_DOUBLED
from svdqc.compiler.targets.cuda_layouts import UnpackableCudaWeight
from svdqc.compiler.targets.layout import Layout, Shape

COLUMNS, TILE = 32, 128
K, GROUP = 64, 16
SCALES = K // GROUP
"""Of a column in a block."""


def e2m1_numbers(w_codes: Tensor) -> Tensor:
    """Doubled values, int8, as the E2M1 numbers that stand for them: uint8 0 .. 15."""
    if w_codes.dim() != 2 or w_codes.dtype != torch.int8:
        found = f"{w_codes.dtype} of shape {list(w_codes.shape)}"
        raise UnpackableCudaWeight(
            "pack", "w_codes", found, "give int8 [out_features, in_features]"
        )
    table = torch.full((256,), 255, dtype=torch.uint8)
    for number, doubled in enumerate(E2M1_DOUBLED):
        if doubled or number == 0:
            table[doubled % 256] = number
    numbers = table[w_codes.view(torch.uint8).long()]
    if bool((numbers == 255).any()):
        raise UnpackableCudaWeight(
            "pack", "w_codes", "a code that E2M1 lacks", "round to E2M1 first"
        )
    return numbers


def e2m1_doubled(numbers: Tensor) -> Tensor:
    """The inverse of `e2m1_numbers`."""
    return torch.tensor(E2M1_DOUBLED, dtype=torch.int8)[numbers.long()]


def pack_e2m1_mma(w_codes: Tensor) -> Tensor:
    """In the places of s4_mma's nibbles."""
    numbers = e2m1_numbers(w_codes)
    return cuda_layouts.pack_s4_mma((numbers ^ 8).to(torch.int8) - 8)


def unpack_e2m1_mma(flat: Tensor, shape: Shape) -> Tensor:
    return e2m1_doubled(cuda_layouts.unpack_s4_mma(flat, shape).to(torch.uint8) & 15)


def checked_scales(w_scale: Tensor) -> Tensor:
    if w_scale.dim() != 2 or w_scale.dtype != torch.uint8:
        found = f"{w_scale.dtype} of shape {list(w_scale.shape)}"
        raise UnpackableCudaWeight("pack", "w_scale", found, "give E4M3 bits, uint8 [N, groups]")
    return w_scale


def pack_e4m3_scale_mma(w_scale: Tensor) -> Tensor:
    """Column 8 t + g of a panel at [panel, step, (g, t)]."""
    padded = _pad(checked_scales(w_scale), COLUMNS, SCALES)
    columns = padded.reshape(-1, 4, 8, padded.shape[1] // SCALES, SCALES)  # [panel, t, g, step, 4]
    return columns.permute(0, 3, 2, 1, 4).contiguous()


def unpack_e4m3_scale_mma(flat: Tensor, shape: Shape) -> Tensor:
    steps = -(-shape[1] // SCALES)
    columns = flat.reshape(-1, steps, 8, 4, SCALES).permute(0, 3, 2, 1, 4)
    return columns.reshape(-1, steps * SCALES)[: shape[0], : shape[1]].contiguous()


def pack_e2m1_tcgen05(w_codes: Tensor) -> Tensor:
    numbers = _pad(e2m1_numbers(w_codes), TILE, K)
    packed = numbers[:, 0::2] | numbers[:, 1::2] << 4
    cores = packed.reshape(packed.shape[0] // TILE, TILE // 8, 8, -1, 2, 16)
    return cores.permute(
        0, 3, 1, 4, 2, 5
    ).contiguous()  # [tile, step, columns / 8, half, column, byte]


def unpack_e2m1_tcgen05(flat: Tensor, shape: Shape) -> Tensor:
    steps = -(-shape[1] // K)
    cores = flat.reshape(-1, steps, TILE // 8, 2, 8, 16).permute(0, 2, 4, 1, 3, 5)
    packed = cores.reshape(-1, steps * K // 2)
    numbers = torch.stack((packed & 15, packed >> 4), dim=-1).reshape(-1, steps * K)
    return e2m1_doubled(numbers[: shape[0], : shape[1]]).contiguous()


def pack_e4m3_scale_tcgen05(w_scale: Tensor) -> Tensor:
    padded = _pad(checked_scales(w_scale), TILE, SCALES)
    columns = padded.reshape(padded.shape[0] // TILE, 4, 32, -1, SCALES)
    return columns.permute(0, 3, 2, 1, 4).contiguous()  # [tile, step, i, j, 4]


def unpack_e4m3_scale_tcgen05(flat: Tensor, shape: Shape) -> Tensor:
    steps = -(-shape[1] // SCALES)
    columns = flat.reshape(-1, steps, 32, 4, SCALES).permute(0, 3, 2, 1, 4)
    return columns.reshape(-1, steps * SCALES)[: shape[0], : shape[1]].contiguous()


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    extra = (0, -matrix.shape[1] % columns, 0, -matrix.shape[0] % rows)
    return torch.nn.functional.pad(matrix, extra)


LAYOUTS: dict[str, Layout] = {
    "e2m1_mma": Layout(
        pack_e2m1_mma, unpack_e2m1_mma, lambda s: _padded(s[0], COLUMNS) * _padded(s[1], K) // 2
    ),
    "e4m3_scale_mma": Layout(
        pack_e4m3_scale_mma,
        unpack_e4m3_scale_mma,
        lambda s: _padded(s[0], COLUMNS) * _padded(s[1], SCALES),
    ),
    "e2m1_tcgen05": Layout(
        pack_e2m1_tcgen05,
        unpack_e2m1_tcgen05,
        lambda s: _padded(s[0], TILE) * _padded(s[1], K) // 2,
    ),
    "e4m3_scale_tcgen05": Layout(
        pack_e4m3_scale_tcgen05,
        unpack_e4m3_scale_tcgen05,
        lambda s: _padded(s[0], TILE) * _padded(s[1], SCALES),
    ),
}
