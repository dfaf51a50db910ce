"""What a layer would cost and miss in every precision and rank, without quantizing it in each.

A few quick quantizations (round to nearest, one pass, one activation format) are drafted; between their ranks the
logarithm of the error is interpolated. Over all layers of a model the drafts lie 5 to 25 % above the finished error,
by a factor that hardly depends on the rank, so that they rank choices as the finished errors would.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, replace

from torch import Tensor

from svdqc.compiler.quantize.hadamard import can_rotate
from svdqc.compiler.quantize.linear import LinearSamples, quantize_linear
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import num_bytes, scheme_of

RANK_STEP = 16
"""Tensor cores take the inner dimension of the up-projection in steps of 16."""
RANKS = tuple(range(0, 129, RANK_STEP))
DRAFTED_RANKS = (0, 32, 64, 128)


@dataclass(frozen=True)
class Candidate:
    """One way to store a layer: error is its expected relative output error, 0.01 for 1 %."""

    precision: str
    rank: int
    num_bytes: int
    error: float


def candidates(
    weight: Tensor,
    samples: LinearSamples | None,
    recipe: Recipe,
    precisions: tuple[str, ...],
    judge: Tensor | None = None,
    name: str = "linear",
) -> list[Candidate]:
    """Every precision with every rank that the layer has room for.

    weight      [out_features, in_features]
    precisions  of `schemes.SCHEMES`, and "none" for 16 bits; 8-bit ones come without a branch
    judge       [tokens, in_features] inputs to measure errors on, where there are no samples to quantize with
    """
    out_features, in_features = weight.shape
    found = []
    for precision in precisions:
        if precision == "none":
            tried, errors = [0], {0: 0.0}
        else:
            tried = _ranks_of(precision, min(out_features, in_features))
            base = replace(recipe, precision=precision)
            errors = error_curve(weight, samples, base, tried, judge, name)
        group = recipe.group_size
        found += [
            Candidate(
                precision, r, num_bytes(precision, out_features, in_features, r, group), errors[r]
            )
            for r in tried
        ]
    return found


def error_curve(
    weight: Tensor,
    samples: LinearSamples | None,
    recipe: Recipe,
    ranks: list[int],
    judge: Tensor | None = None,
    name: str = "linear",
) -> dict[int, float]:
    """Expected relative output error by rank."""
    drafted = [r for r in DRAFTED_RANKS if ranks[0] <= r <= ranks[-1]]
    drafted = sorted({ranks[0], *drafted, ranks[-1]})
    errors = [draft_error(weight, samples, recipe, r, judge, name) for r in drafted]
    logs = [math.log(max(error, 1e-12)) for error in errors]
    for at in range(1, len(logs)):
        logs[at] = min(logs[at], logs[at - 1])  # more rank is never worse
    return {r: math.exp(_interpolated(drafted, logs, r)) for r in ranks}


def draft_error(
    weight: Tensor,
    samples: LinearSamples | None,
    recipe: Recipe,
    rank: int,
    judge: Tensor | None = None,
    name: str = "linear",
) -> float:
    """Relative output error of a quick quantization: on held-out tokens, else on `judge`.

    With neither, the error of coding the weight is measured, and that of coding the activations, where they have as
    many bits, is taken to be as large.
    """
    quick = replace(recipe, rank=rank, budget=None, gptq=False, refine_iterations=0)
    if quick.rotate == "auto":
        quick = replace(quick, rotate=can_rotate(weight.shape[1]))
    if quick.precision == "int4" and quick.activation_range == "auto":
        quick = replace(quick, activation_range="signed8")
    found = quantize_linear(weight, samples, quick, name=name)
    if "error" in found.metrics:
        return found.metrics["error"]
    if judge is not None:
        wanted = judge @ weight.T
        return float((found(judge) - wanted).norm() / wanted.norm().clamp_min(1e-30))
    scheme = scheme_of(quick.precision)
    as_wide = scheme.weight == scheme.activation
    return found.metrics["weight_error"] * (math.sqrt(2.0) if as_wide else 1.0)


def _ranks_of(precision: str, limit: int) -> list[int]:
    scheme = scheme_of(precision)
    if not scheme.branch or scheme.code_bits > 4:
        return [0]
    return [r for r in RANKS if r <= limit]


def _interpolated(ranks: list[int], logs: list[float], rank: int) -> float:
    if rank in ranks:
        return logs[ranks.index(rank)]
    after = bisect.bisect(ranks, rank)
    share = (rank - ranks[after - 1]) / (ranks[after] - ranks[after - 1])
    return (1 - share) * logs[after - 1] + share * logs[after]
