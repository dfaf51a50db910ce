"""The 16-bit low-rank branch: which rank-r part of a weight to keep out of the 4-bit codes.

For any metric M (positive semi-definite, [in_features, in_features]) the best rank-r approximation of B is a
projection:

    argmin_L tr((B - L) M (B - L).T)  =  U U.T B,       U = the r leading eigenvectors of B M B.T

so no square root of M and no singular vectors of the large side are needed, only products with thin matrices. U comes
from randomized subspace iteration (Halko, Martinsson, Tropp 2011). With M the identity this is SVDQuant's SVD.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from svdqc.compiler.quantize.hadamard import rotate_offline
from svdqc.compiler.quantize.ranges import to_bf16_values

Metric = Callable[[Tensor], Tensor]
"""v [in_features, p] -> M @ v."""

_OVERSAMPLING = 10


@dataclass(frozen=True)
class LowRank:
    """L = lora_up @ lora_down, both bf16 values held in f32.

    lora_down  [rank, in_features]   f32
    lora_up    [out_features, rank]  f32
    """

    lora_down: Tensor
    lora_up: Tensor

    @property
    def rank(self) -> int:
        return self.lora_down.shape[0]

    def dense(self) -> Tensor:
        """[out_features, in_features] f32."""
        return self.lora_up @ self.lora_down


def diagonal_metric(energy: Tensor) -> Metric:
    """M = diag(energy), energy [in_features]."""
    return lambda v: energy.unsqueeze(1) * v


def leading_subspace(
    b: Tensor, metric: Metric, rank: int, seed: int, iterations: int = 4, near: Tensor | None = None
) -> Tensor:
    """U [out_features, rank]: the leading eigenvectors of b @ M @ b.T, by subspace iteration.

    It starts from seeded random directions and from `near` [out_features, any], a guess at U.
    """
    out_features, in_features = b.shape
    if rank == 0:
        return b.new_zeros(out_features, 0)
    width = min(rank + _OVERSAMPLING, out_features, in_features)
    dice = torch.Generator().manual_seed(seed)
    start = torch.randn(in_features, width, generator=dice, device="cpu").to(b.device)
    if near is not None:
        start[:, : near.shape[1]] = b.T @ near
    basis = torch.linalg.qr(b @ metric(start)).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(b @ metric(b.T @ basis)).Q
    projected = basis.T @ b  # [width, in_features]
    inner = projected @ metric(projected.T)
    _, vectors = torch.linalg.eigh((inner + inner.T) * 0.5)
    subspace: Tensor = basis @ vectors.flip(1)[:, :rank]
    return subspace


def branch_of(basis: Tensor, b: Tensor, rotated: bool) -> LowRank:
    """The part of b in the span of `basis` [out_features, rank], orthonormal, in bf16; lora_down reads unrotated
    input.

    lora_up is rounded first; lora_down then solves the least squares for the rounded lora_up, and is rounded last.
    What rounding loses stays in b - L, for the residual to carry.

    b  [out_features, in_features]  f32, rotated where `rotated`
    """
    lora_up = to_bf16_values(basis)
    if lora_up.shape[1] == 0:
        return LowRank(b.new_zeros(0, b.shape[1]), lora_up)
    gram = lora_up.T @ lora_up  # near the identity
    lora_down = torch.linalg.solve(gram, lora_up.T @ b)
    if rotated:
        lora_down = rotate_offline(lora_down)
    return LowRank(to_bf16_values(lora_down), lora_up)
