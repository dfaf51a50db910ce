"""Rounding a weight to 4 bits with error feedback (GPTQ, in the form of LDLQ).

Minimise tr((W - Q) H (W - Q).T) over codes Q. Factor H = (F + I) D (F + I).T, F strictly upper triangular, and go
through the columns in order, each aimed at its own value plus what the columns before it still owe:

    aim_k = w_k + sum_{j<k} (w_j - q_j) F[j, k]         q_k = round(aim_k)         loss = sum_k D_k (aim_k - q_k)^2

This equals GPTQ's update with the Cholesky factor of H^-1, without inverting H (QuIP, arXiv 2307.13304, theorem 6).
Groups that share a scale are taken in falling order of their energy in H, and their scale is chosen when their turn
comes, from the values then aimed at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svdqc.compiler.quantize.codecs import Codec, choose_scales
from svdqc.compiler.quantize.errors import NonFiniteSamples
from svdqc.compiler.quantize.ranges import reciprocal

_DAMPING = 1e-4
_LARGEST_DAMPING = 1.0
_TINY = 1e-30
_CACHED_VALUES = 1 << 17
"""f32 values in one pass over a matrix: a working set of a few of them stays in a core's cache."""


@dataclass(frozen=True)
class FeedbackFactor:
    """H, its columns reordered, as (F + I) D (F + I).T.

    order     [in_features]               int64   column visited at each step; group by group
    feedback  [in_features, in_features]  f32     F + I, in the visiting order
    energy    [in_features]               f32     D, in the visiting order
    """

    order: Tensor
    feedback: Tensor
    energy: Tensor


def factor(hessian: Tensor, group_size: int) -> FeedbackFactor:
    """Order the columns and factor a positive semi-definite hessian [in_features, in_features] f32."""
    diagonal = hessian.diagonal()
    by_group = diagonal.reshape(-1, group_size)
    groups = by_group.sum(1).argsort(descending=True, stable=True)
    within = by_group.argsort(dim=1, descending=True, stable=True)[groups]
    order = (groups.unsqueeze(1) * group_size + within).reshape(-1)
    # The flipped Cholesky factor of the flipped matrix is upper triangular: H = V V.T.
    backwards = order.flip(0)
    flipped = hessian[backwards][:, backwards]
    lower = damped_cholesky(flipped)
    upper = lower.flip(0, 1)
    root = upper.diagonal()
    return FeedbackFactor(order, upper / root.unsqueeze(0), root.square())


def damped_cholesky(matrix: Tensor) -> Tensor:
    """The lower Cholesky factor of matrix + d I, d the least of a geometric row that makes it positive definite."""
    mean = float(matrix.diagonal().mean())
    damping = _DAMPING
    while damping <= _LARGEST_DAMPING:
        damped = matrix.clone()
        damped.diagonal().add_(damping * mean + _TINY)
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return lower
        damping *= 10.0
    raise NonFiniteSamples(
        "gptq",
        "hessian",
        "found no positive definite form",
        "check the samples for NaN or infinity, or for values beyond 1e18",
    )


def quantize_with_feedback(
    target: Tensor, factored: FeedbackFactor, codec: Codec, clip: bool
) -> tuple[Tensor, Tensor]:
    """Codes and scales for target under the factored hessian, whose groups must be the codec's.

    target  [out_features, in_features]  f32
    ->  w_codes  [out_features, in_features]  codec.code_dtype
        w_scale  [out_features, in_features / group_size]  f32, storable values
    """
    out_features, in_features = target.shape
    group_size = codec.group_size
    aimed = target.T[factored.order].contiguous()  # [in_features, out_features]
    error = torch.zeros_like(aimed)
    codes = torch.zeros_like(aimed)
    w_scale = target.new_zeros(out_features, in_features // group_size)
    for start in range(0, in_features, group_size):
        stop = start + group_size
        block = aimed[start:stop].clone()
        if start:
            block.addmm_(factored.feedback[:start, start:stop].T, error[:start])
        scale = choose_scales(block.T, codec, clip, factored.energy[start:stop])
        w_scale[:, int(factored.order[start]) // group_size] = scale
        inverse = reciprocal(scale)
        within = factored.feedback[start:stop, start:stop]
        owed = torch.zeros_like(block)
        for k in range(group_size):
            value = block[k]
            if k:
                value = torch.addmv(value, owed[:k].T, within[:k, k])
            codes[start + k] = codec.round_codes(value * inverse)
            owed[k] = aimed[start + k] - codes[start + k] * scale
        error[start:stop] = owed
    w_codes = torch.empty(out_features, in_features, dtype=codec.code_dtype)
    w_codes[:, factored.order] = codes.T.to(codec.code_dtype)
    return w_codes, w_scale


def round_to_nearest(
    target: Tensor, codec: Codec, clip: bool, energy: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes and scales without feedback; `energy` [in_features] weighs the columns in the choice of scales.

    A cache of rows at a time: every candidate passes over them several times, and no row knows of another.
    """
    grouped = target.reshape(target.shape[0], -1, codec.group_size)
    weights = None if energy is None else energy.reshape(-1, codec.group_size)
    w_codes = torch.empty(target.shape, dtype=codec.code_dtype)
    w_scale = target.new_empty(grouped.shape[:2])
    rows = max(1, _CACHED_VALUES // target.shape[1])
    for start in range(0, target.shape[0], rows):
        part, of_part = grouped[start : start + rows], codec.of_rows(slice(start, start + rows))
        scale = choose_scales(part, of_part, clip, weights)
        w_scale[start : start + rows] = scale
        codes = of_part.encode(part, scale)
        w_codes[start : start + rows] = codes.reshape(-1, target.shape[1]).to(codec.code_dtype)
    return w_codes, w_scale
