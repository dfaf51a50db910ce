"""How weights lie in memory for Hopper's warpgroups: stage by stage of a tile, as core matrices, so that one bulk copy
brings what a stage multiplies (templates/cuda/include/svdq_cuda/gemm_wgmma_codes.h).

s8_wgmma     w_codes [N, K] int8         -> int8 [N/128, K/128, 16, 8, 8, 16]
e4m3_wgmma   w_codes [N, K] uint8, E4M3  -> uint8, the same of bytes
s4_wgmma     w_codes [N, K] int8, 4 bits -> uint8 [N/128, K/128, 16, 4, 8, 16]  16 codes low, the next 16 high
scale_wgmma  w_scale [N, groups]         -> bfloat16 [N/128, groups, 8, 4, 4]

N and K are padded to multiples of 128, groups of 4, with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.compiler.targets.cuda_layouts import as_e4m3, bf16_scales, code_matrix
from svdqc.compiler.targets.layout import Layout, Shape

TILE = 128
ROWS, BYTES = 8, 16
"""Of a core matrix."""
GROUPS = 4
"""Of 32 k, in a stage."""


def _padded(size: int, multiple: int = TILE) -> int:
    return -(-size // multiple) * multiple


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


def pack_s4_wgmma(w_codes: Tensor) -> Tensor:
    code_matrix("w_codes", w_codes, torch.int8, (-8, 7))
    stages = _stages(w_codes & 15)
    low, high = stages[:, :, :, 0::2], stages[:, :, :, 1::2]  # 16 k of 32 each
    return (low | (high << 4)).view(torch.uint8).contiguous()


def unpack_s4_wgmma(flat: Tensor, shape: Shape) -> Tensor:
    blocks = (-1, _padded(shape[1]) // TILE, TILE // ROWS, TILE // BYTES // 2, ROWS, BYTES)
    packed = flat.view(torch.int8).reshape(blocks)
    pairs = torch.stack((packed << 4 >> 4, packed >> 4), dim=4)
    return _from_stages(pairs.flatten(3, 4), shape)


def pack_scale_wgmma(w_scale: Tensor) -> Tensor:
    """Columns 16 p + 8 h + 2 t + i at [.., p, t, h, i]: what one thread needs side by side."""
    scale = bf16_scales(w_scale)
    n, groups = scale.shape
    padded = torch.nn.functional.pad(scale, (0, -groups % GROUPS, 0, -n % TILE))
    split = padded.reshape(-1, 8, 2, 4, 2, padded.shape[1])  # [tile, p, h, t, i, group]
    return split.permute(0, 5, 1, 3, 2, 4).contiguous()


def unpack_scale_wgmma(flat: Tensor, shape: Shape) -> Tensor:
    split = flat.view(torch.bfloat16).reshape(-1, _padded(shape[1], GROUPS), 8, 4, 2, 2)
    padded = split.permute(0, 2, 4, 3, 5, 1).reshape(_padded(shape[0]), -1)
    return padded[: shape[0], : shape[1]].contiguous()


def _code_bytes(shape: Shape) -> int:
    return _padded(shape[0]) * _padded(shape[1])


S8_WGMMA = Layout(pack_s8_wgmma, unpack_s8_wgmma, _code_bytes)
LAYOUTS: dict[str, Layout] = {
    "s8_wgmma": S8_WGMMA,
    "e4m3_wgmma": as_e4m3(S8_WGMMA),
    "s4_wgmma": Layout(pack_s4_wgmma, unpack_s4_wgmma, lambda shape: _code_bytes(shape) // 2),
    "scale_wgmma": Layout(
        pack_scale_wgmma,
        unpack_scale_wgmma,
        lambda shape: _padded(shape[0]) * _padded(shape[1], GROUPS) * 2,
    ),
}
