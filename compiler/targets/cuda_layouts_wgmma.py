"""How weights lie in memory for Hopper's warpgroups: as core matrices, so that a bulk copy brings a piece of a tile.

s8_wgmma     w_codes [N, K] int8        -> int8 [N/8, K/16, 8, 16]
e4m3_wgmma   w_codes [N, K] uint8, E4M3 -> uint8, the same of bytes

N and K are padded to multiples of 128 with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.compiler.targets.cuda_layouts import UnpackableCudaWeight, as_e4m3
from svdqc.compiler.targets.layout import Layout, Shape

TILE = 128
ROWS, BYTES = 8, 16
"""Of a core matrix."""


def _padded(size: int) -> int:
    return -(-size // TILE) * TILE


def pack_s8_wgmma(w_codes: Tensor) -> Tensor:
    if w_codes.dim() != 2 or w_codes.dtype != torch.int8:
        found = f"{w_codes.dtype} of shape {list(w_codes.shape)}"
        raise UnpackableCudaWeight(
            "pack", "w_codes", found, "give int8 [out_features, in_features]"
        )
    n, k = w_codes.shape
    padded = torch.nn.functional.pad(w_codes, (0, _padded(k) - k, 0, _padded(n) - n))
    cores = padded.reshape(_padded(n) // ROWS, ROWS, _padded(k) // BYTES, BYTES)
    return cores.permute(0, 2, 1, 3).contiguous()


def unpack_s8_wgmma(flat: Tensor, shape: Shape) -> Tensor:
    cores = flat.view(torch.int8).reshape(-1, _padded(shape[1]) // BYTES, ROWS, BYTES)
    matrix = cores.permute(0, 2, 1, 3).reshape(-1, _padded(shape[1]))
    return matrix[: shape[0], : shape[1]].contiguous()


S8_WGMMA = Layout(
    pack_s8_wgmma, unpack_s8_wgmma, lambda shape: _padded(shape[0]) * _padded(shape[1])
)
LAYOUTS: dict[str, Layout] = {"s8_wgmma": S8_WGMMA, "e4m3_wgmma": as_e4m3(S8_WGMMA)}
