"""How weights lie in memory for Hopper's warpgroups: stage by stage of a tile, as core matrices, so that one bulk copy
brings what a stage multiplies (templates/cuda/include/svdq_cuda/gemm_wgmma_codes.h).

s8_wgmma     w_codes [N, K] int8         -> int8 [N/128, K/128, 16, 8, 8, 16]
e4m3_wgmma   w_codes [N, K] uint8, E4M3  -> uint8, the same of bytes

N and K are padded to multiples of 128, with zeros. (4-bit codes lie as for mma.sync: u4s8_mma.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.compiler.targets.cuda_layouts import as_e4m3, code_matrix
from svdqc.compiler.targets.layout import Layout, Shape

TILE = 128
ROWS, BYTES = 8, 16
"""Of a core matrix."""


def _padded(size: int) -> int:
    return -(-size // TILE) * TILE


def _stages(w_codes: Tensor) -> Tensor:
    """[N, K] to [N/128, K/128, 16 times 8 rows, 8 times 16 k, row, k]."""
    n, k = w_codes.shape
    padded = torch.nn.functional.pad(w_codes, (0, _padded(k) - k, 0, _padded(n) - n))
    split = padded.reshape(-1, TILE // ROWS, ROWS, _padded(k) // TILE, TILE // BYTES, BYTES)
    return split.permute(0, 3, 1, 4, 2, 5).contiguous()


def _from_stages(stages: Tensor, shape: Shape) -> Tensor:
    matrix = stages.permute(0, 2, 4, 1, 3, 5).reshape(_padded(shape[0]), _padded(shape[1]))
    return matrix[: shape[0], : shape[1]].contiguous()


def pack_s8_wgmma(w_codes: Tensor) -> Tensor:
    code_matrix("w_codes", w_codes, torch.int8, None)
    return _stages(w_codes)


def unpack_s8_wgmma(flat: Tensor, shape: Shape) -> Tensor:
    blocks = (-1, _padded(shape[1]) // TILE, TILE // ROWS, TILE // BYTES, ROWS, BYTES)
    return _from_stages(flat.view(torch.int8).reshape(blocks), shape)


def _code_bytes(shape: Shape) -> int:
    return _padded(shape[0]) * _padded(shape[1])


S8_WGMMA = Layout(pack_s8_wgmma, unpack_s8_wgmma, _code_bytes)
LAYOUTS: dict[str, Layout] = {
    "s8_wgmma": S8_WGMMA,
    "e4m3_wgmma": as_e4m3(S8_WGMMA),
}
