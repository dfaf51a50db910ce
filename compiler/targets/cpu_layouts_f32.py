"""Weight layouts of the 16/32-bit CPU kernels: panels of 16 output channels, one vector per step of K.

    f32_n16, w16_n16    w [N, K]          -> same dtype [ceil(N/16), K, 16]
    bf16_n16k2          w [N, K]          -> bfloat16   [ceil(N/16), ceil(K/2), 16, 2]
    conv                w [N, C, *kernel] -> [groups, ceil(N/groups/16), taps * C, 16], K ordered (*tap, channel)
    depthwise           w [C, 1, *kernel] -> float32    [taps, C]

N and an odd K are padded with 0. templates/cpu/include/svdq_cpu/gemm_f32.h and conv.h read them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from svdqc.errors import SvdqcError

PANEL = 16


class UnpackableFloatWeight(SvdqcError):
    """A 16- or 32-bit weight has a shape or type that the layout cannot hold."""


def pack_gemm_f32(w: Tensor) -> Tensor:
    """Any float type [N, K] to float32 [ceil(N/16), K, 16]."""
    return _panels(_matrix(w).to(torch.float32))


def pack_gemm_w16(w: Tensor) -> Tensor:
    """bfloat16 or float16 [N, K] to the same type [ceil(N/16), K, 16]."""
    if w.dtype not in (torch.bfloat16, torch.float16):
        raise UnpackableFloatWeight("pack", "w", str(w.dtype), "give bfloat16 or float16")
    return _panels(_matrix(w))


def pack_gemm_bf16dot(w: Tensor) -> Tensor:
    """Any float type [N, K] to bfloat16 [ceil(N/16), ceil(K/2), 16, 2]: pairs along K side by side."""
    matrix = _matrix(w).to(torch.bfloat16)
    panels = _panels(pad(matrix, (0, matrix.shape[1] % 2)))  # [panels, K, 16]
    pairs = panels.reshape(panels.shape[0], panels.shape[1] // 2, 2, PANEL)
    return pairs.transpose(2, 3).contiguous()


def pack_conv(
    w: Tensor, groups: int = 1, transposed: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A convolution's weight to [groups, ceil(N/groups/16), K, 16], K = taps * C with the channel innermost.

    w  [N, C, *kernel], or [groups * C, N/groups, *kernel] of a transposed convolution; C counts one group's channels.
    """
    if w.dim() < 3 or groups < 1 or w.shape[0] % groups:
        found = f"shape {list(w.shape)} with groups={groups}"
        raise UnpackableFloatWeight("pack", "w", found, "give [N, C, *kernel], groups dividing N")
    split = w.to(dtype).reshape(groups, w.shape[0] // groups, *w.shape[1:])
    if transposed:
        split = split.transpose(1, 2)
    rows = split.movedim(2, -1).flatten(2)  # [groups, N/groups, taps * C]
    return torch.stack([_panels(group) for group in rows])


def pack_depthwise(w: Tensor) -> Tensor:
    """[C, 1, *kernel] to float32 [taps, C]."""
    if w.dim() < 3 or w.shape[1] != 1:
        found = f"shape {list(w.shape)}"
        raise UnpackableFloatWeight("pack", "w", found, "a depthwise weight is [C, 1, *kernel]")
    return w.to(torch.float32).flatten(1).t().contiguous()


def _matrix(w: Tensor) -> Tensor:
    if w.dim() != 2 or not w.is_floating_point():
        found = f"{w.dtype} of shape {list(w.shape)}"
        raise UnpackableFloatWeight("pack", "w", found, "give a float matrix [N, K]")
    return w


def _panels(w: Tensor) -> Tensor:
    """[N, K] to [ceil(N/16), K, 16], zero padded."""
    padded = pad(w, (0, 0, 0, -w.shape[0] % PANEL))
    return padded.reshape(padded.shape[0] // PANEL, PANEL, w.shape[1]).transpose(1, 2).contiguous()
