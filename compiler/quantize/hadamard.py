"""Block-Hadamard rotation: an orthonormal mix of each 64 neighbouring input channels.

    rotated = blocks(x) @ H64 / 8          H64 the Sylvester matrix, symmetric, H64 @ H64 = 64 I

It spreads an outlier over its block, so that a group's largest magnitude comes nearer to its RMS. Rotating
activations and weights alike leaves x @ w.T unchanged. The definition is the butterfly below, in f32 and in this
order of stages, so that a kernel which does the same adds gets the same bits.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

BLOCK = 64
_INVERSE_ROOT = 0.125  # 1/sqrt(64), exact in binary


def can_rotate(in_features: int) -> bool:
    return in_features % BLOCK == 0


def rotate(x: Tensor) -> Tensor:
    """Rotate each block of 64 along the last dim; its own inverse.

    x  [..., in_features]  f32, in_features % 64 == 0   ->   the same shape
    """
    assert can_rotate(x.shape[-1]), f"in_features={x.shape[-1]} is not a multiple of {BLOCK}"
    mixed = x.reshape(-1, BLOCK)
    stride = 1
    while stride < BLOCK:
        pairs = mixed.reshape(-1, BLOCK // (2 * stride), 2, stride)
        even, odd = pairs[:, :, 0], pairs[:, :, 1]
        mixed = torch.stack((even + odd, even - odd), dim=2).reshape(-1, BLOCK)
        stride *= 2
    return (mixed * _INVERSE_ROOT).reshape(x.shape)


@functools.cache
def matrix() -> Tensor:
    """The orthonormal block [64, 64] itself: rotate(x) = blocks(x) @ matrix(), up to rounding."""
    return rotate(torch.eye(BLOCK, device="cpu"))


def rotate_offline(x: Tensor) -> Tensor:
    """`rotate` by matrix product: quicker on large matrices, not the bits that kernels must match."""
    return (x.reshape(-1, BLOCK) @ matrix().to(x.device)).reshape(x.shape)


def rotate_gram(gram: Tensor) -> Tensor:
    """The Gram matrix [in_features, in_features] of rotated activations: H.T @ gram @ H."""
    return rotate_offline(rotate_offline(gram).T.contiguous()).T.contiguous()
