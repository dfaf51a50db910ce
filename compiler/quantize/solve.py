"""The low-rank branch and the 4-bit residual of one layer, for a given smoothing and activation format.

Let x be the rotated input, with covariance C. Its codes stand for gain * (x + e), where the gain is a number near 1 and
e is uncorrelated with x (Bussgang's theorem: exact for Gaussian x), with diagonal covariance N. A branch L and a coded
weight Q then miss the output x W.T by x (W - L - gain Q).T - gain e Q.T; writing Q for gain * Q, the expected squared
error is

    J(L, Q) = tr((W - L - Q) C (W - L - Q).T) + tr(Q N Q.T)

- Q given L: complete the square. Q should be near T = (W - L) C (C + N)^-1, a Wiener filter that takes back the
  directions in which the input is quieter than its coding noise, and its own rounding is weighed by H = C + N: GPTQ
  on T under H.
- L first: what remains after the best Q is tr((W - L) M (W - L).T), M = N (C + N)^-1 C, plus the rounding of Q,
  which follows the size of W - L: a diagonal. Their sum is the metric of the first low-rank split.
- L given Q: the low-rank part of W - Q nearest to it under C (QERA, arXiv 2410.06040).
- Q given L and the last Q: coordinate descent on codes and scales under H.

The last two steps are repeated, each lowering J; the best on held-out tokens is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svdqc.compiler.quantize.codecs import Codec, codec_of
from svdqc.compiler.quantize.damping import choose_damping
from svdqc.compiler.quantize.gptq import (
    FeedbackFactor,
    damped_cholesky,
    quantize_with_feedback,
    round_to_nearest,
)
from svdqc.compiler.quantize.hadamard import rotate_offline
from svdqc.compiler.quantize.low_rank import LowRank, branch_of, diagonal_metric, leading_subspace
from svdqc.compiler.quantize.polish import sweep
from svdqc.compiler.quantize.problem import WEIGHT_NOISE, Smoothed, group_mean
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.reference import dequantize_weight
from svdqc.compiler.quantize.schemes import scheme_of


@dataclass(frozen=True)
class Solution:
    """low_rank reads the smoothed input; w_codes, w_scale code the (rotated) residual."""

    low_rank: LowRank
    w_codes: Tensor
    w_scale: Tensor
    error: float

    def residual(self) -> Tensor:
        return dequantize_weight(self.w_codes, self.w_scale)


def output_error(
    case: Smoothed, low_rank: LowRank, residual: Tensor, uncoded: Tensor | None = None
) -> float:
    """Relative output error on the judging tokens; without samples, of the weight itself.

    uncoded  what the low-rank branch leaves of the weight, where the caller has it
    """
    if case.judge_hat is None or case.judge_coded is None or case.problem.judge_output is None:
        wanted = rotated_residual(case, low_rank) if uncoded is None else uncoded
        return float(torch.dist(wanted, residual) / case.w_rot.norm().clamp_min(1e-30))
    wanted = case.problem.judge_output
    miss = torch.addmm(wanted, case.judge_coded, residual.T, alpha=-1.0)
    miss.addmm_(case.judge_hat @ low_rank.lora_down.T, low_rank.lora_up.T, alpha=-1.0)
    if case.problem.centered:
        miss -= miss.mean(0)
    return float(miss.norm() / wanted.norm().clamp_min(1e-30))


def weight_error(case: Smoothed, solution: Solution) -> float:
    """|W - L - Q| / |W|, smoothed."""
    missing = rotated_residual(case, solution.low_rank) - solution.residual()
    return float(missing.norm() / case.w_rot.norm().clamp_min(1e-30))


def rotated_residual(case: Smoothed, low_rank: LowRank) -> Tensor:
    """What the low-rank branch leaves of the weight, rotated: [out_features, in_features]."""
    lora_down = rotate_offline(low_rank.lora_down) if case.activation.rotate else low_rank.lora_down
    return torch.addmm(case.w_rot, low_rank.lora_up, lora_down, alpha=-1.0)


def weight_codec(residual: Tensor, recipe: Recipe) -> Codec:
    """The weight format that the recipe asks for."""
    return codec_of(recipe.precision, residual, recipe.group_size, recipe.weight_range)


def weight_group(case: Smoothed, recipe: Recipe) -> int:
    """Input channels that share a weight scale."""
    return scheme_of(recipe.precision).group_size(case.w_rot.shape[1], recipe.group_size)


def draft(case: Smoothed, rank: int, recipe: Recipe) -> Solution:
    """A quick solution to compare smoothings by: diagonal metric, round to nearest."""
    energy = group_mean(case.noise + WEIGHT_NOISE * case.power, weight_group(case, recipe))
    basis = leading_subspace(case.w_rot, diagonal_metric(energy), rank, recipe.seed, iterations=2)
    low_rank = branch_of(basis, case.w_rot, case.activation.rotate)
    residual = rotated_residual(case, low_rank)
    w_codes, w_scale = round_to_nearest(residual, weight_codec(residual, recipe), clip=False)
    return Solution(
        low_rank,
        w_codes,
        w_scale,
        output_error(case, low_rank, dequantize_weight(w_codes, w_scale)),
    )


def solve(case: Smoothed, rank: int, recipe: Recipe) -> Solution:
    """The best solution found under the recipe."""
    if case.problem.gram is None:
        return _without_feedback(case, rank, recipe)
    rotated = case.activation.rotate
    model = _model(case, recipe)
    basis = leading_subspace(case.w_rot, model.remaining, rank, recipe.seed)
    low_rank = branch_of(basis, case.w_rot, rotated)
    residual = rotated_residual(case, low_rank)
    codec = weight_codec(residual, recipe)
    w_codes, w_scale = quantize_with_feedback(
        model.target(residual) / model.gain, model.factored, codec, recipe.clip
    )
    best = _judged(case, low_rank, w_codes, w_scale)
    for _ in range(recipe.refine_iterations):
        pull = model.pull(residual, dequantize_weight(w_codes, w_scale) * model.gain) / model.gain
        w_codes, w_scale = sweep(pull, model.hessian, w_codes, w_scale, codec)
        uncoded = case.w_rot - dequantize_weight(w_codes, w_scale) * model.gain
        basis = leading_subspace(uncoded, model.carried, rank, recipe.seed, iterations=2)
        low_rank = branch_of(basis, uncoded, rotated)
        residual = rotated_residual(case, low_rank)
        best = min(best, _judged(case, low_rank, w_codes, w_scale), key=lambda s: s.error)
    return best


@dataclass(frozen=True)
class _Model:
    """The quadratic model J of one case, in the rotated space.

    covariance  C                                           factored  C + N, for feedback rounding
    hessian     C + N                                       lower     its Cholesky factor
    noise       [in_features] the diagonal of N
    rounding    [in_features] expected square of the weight's rounding, per unit of the residual's power
    gain        of coding the input: codes of the weight are scaled by its inverse
    """

    covariance: Tensor
    hessian: Tensor
    lower: Tensor
    noise: Tensor
    rounding: Tensor
    factored: FeedbackFactor
    gain: float
    shrink: bool

    def remaining(self, v: Tensor) -> Tensor:
        """(M + rounding) v, the metric of the first split: M = N (C + N)^-1 C."""
        filtered = torch.cholesky_solve(self.covariance @ v, self.lower)
        return self.noise.unsqueeze(1) * filtered + self.rounding.unsqueeze(1) * v

    def carried(self, v: Tensor) -> Tensor:
        """C v, the metric of a branch that mends a given Q."""
        return self.covariance @ v

    def target(self, residual: Tensor) -> Tensor:
        """T = R C (C + N)^-1 = R - R N (C + N)^-1."""
        if not self.shrink:
            return residual
        return residual - torch.cholesky_solve((residual * self.noise).T, self.lower).T

    def pull(self, residual: Tensor, coded: Tensor) -> Tensor:
        """(T - Q) (C + N), which needs no inverse: (R - Q) C - Q N."""
        if not self.shrink:
            return (residual - coded) @ self.hessian
        return (residual - coded) @ self.covariance - coded * self.noise


def _model(case: Smoothed, recipe: Recipe) -> _Model:
    group = weight_group(case, recipe)
    damped = choose_damping(case, group, recipe.shrink)
    factored, noise = damped.factored, damped.noise
    energy = torch.empty_like(noise)
    energy[factored.order] = factored.energy
    rounding = WEIGHT_NOISE * group_mean(energy, group)
    hessian = damped.covariance.clone()
    hessian.diagonal().add_(noise)
    lower = damped_cholesky(hessian)
    gain = case.gain if recipe.shrink else 1.0
    return _Model(damped.covariance, hessian, lower, noise, rounding, factored, gain, damped.shrink)


def _judged(case: Smoothed, low_rank: LowRank, w_codes: Tensor, w_scale: Tensor) -> Solution:
    return Solution(
        low_rank,
        w_codes,
        w_scale,
        output_error(case, low_rank, dequantize_weight(w_codes, w_scale)),
    )


def _without_feedback(case: Smoothed, rank: int, recipe: Recipe) -> Solution:
    """Iterated SVD of what rounding leaves, as SVDQuant does, in the metric of the coding noise."""
    energy = group_mean(case.noise + WEIGHT_NOISE * case.power, weight_group(case, recipe))
    best: Solution | None = None
    basis: Tensor | None = None
    uncoded = case.w_rot
    for _ in range(1 + recipe.refine_iterations):
        basis = leading_subspace(
            uncoded, diagonal_metric(energy), rank, recipe.seed, 4 if basis is None else 1, basis
        )
        low_rank = branch_of(basis, uncoded, case.activation.rotate)
        residual = rotated_residual(case, low_rank)
        w_codes, w_scale = round_to_nearest(residual, weight_codec(residual, recipe), recipe.clip)
        coded = dequantize_weight(w_codes, w_scale)
        found = Solution(low_rank, w_codes, w_scale, output_error(case, low_rank, coded, residual))
        if best is not None and found.error >= best.error:
            break
        best = found
        del residual
        uncoded = torch.sub(case.w_rot, coded, out=coded)
    assert best is not None
    return best
