"""The layer being quantized, in the shape that the search and the solver share.

`smoothed` applies one choice of smoothing and activation format and measures what follows from it: the covariance
of the rotated input, and the noise that coding it adds. Everything there lives in the rotated space:

    x_rot = rotate?(x_hat)     w_rot = rotate?(w_hat)      x_rot @ w_rot.T = x_hat @ w_hat.T

Where the bias may absorb the mean output error, the covariance is taken about the mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from svdqc.compiler.quantize.codecs import decode_activation, encode_activation
from svdqc.compiler.quantize.hadamard import rotate_gram, rotate_offline
from svdqc.compiler.quantize.ranges import ActivationFormat

WEIGHT_NOISE = 0.0085
"""Power of the rounding error of 4-bit codes over the power of a group of 64 near-Gaussian values."""

_NOISE_TOKENS = 512
_LEAST_SHRINKAGE, _MOST_SHRINKAGE = 0.02, 0.4


@dataclass(frozen=True)
class Problem:
    """weight [out_features, in_features]; fit, judge [tokens, in_features] or None without samples; all f32.

    fit and judge hold x + shift. Choices are accepted on `judge`; judge_output [tokens, out_features] is the
    layer's output for it, without bias. `gram` is the second moment [in_features, in_features] of `fit`, about its
    mean where `centered`.
    """

    weight: Tensor
    fit: Tensor | None = None
    judge: Tensor | None = None
    judge_output: Tensor | None = None
    centered: bool = False
    mean: Tensor | None = None
    gram: Tensor | None = None

    @staticmethod
    def of(weight: Tensor, fit: Tensor, judge: Tensor, centered: bool) -> Problem:
        """Without the Gram matrix, which only `with_gram` needs."""
        return Problem(
            weight, fit, judge, judge @ weight.T, centered, fit.mean(0) if centered else None
        )

    def with_gram(self) -> Problem:
        assert self.fit is not None
        gram = self.fit.T @ self.fit / self.fit.shape[0]
        if self.mean is not None:
            gram -= torch.outer(self.mean, self.mean)
        return replace(self, gram=gram)


@dataclass(frozen=True)
class Smoothed:
    """A problem under one smoothing and activation format.

    w_rot        [out_features, in_features]  smoothed and rotated weight
    judge_hat    [tokens, in_features]        smoothed input, as the low-rank branch reads it
    judge_coded  [tokens, in_features]        smoothed, rotated, quantized
    gain         of coding: quantized = gain * (rotated + e), e uncorrelated with rotated
    noise        [in_features]                mean square of e over the fitted tokens, per channel
    power        [in_features]                mean square of rotated over the same tokens
    """

    problem: Problem
    smooth: Tensor
    activation: ActivationFormat
    w_rot: Tensor
    judge_hat: Tensor | None
    judge_coded: Tensor | None
    gain: float
    noise: Tensor
    power: Tensor

    def covariance(self) -> Tensor:
        """[in_features, in_features] of the rotated input over the fitted tokens."""
        assert self.problem.gram is not None
        inv_smooth = 1.0 / self.smooth
        gram = self.problem.gram * torch.outer(inv_smooth, inv_smooth)
        gram = rotate_gram(gram) if self.activation.rotate else gram
        return (gram + gram.T) * 0.5


def smoothed(problem: Problem, smooth: Tensor, activation: ActivationFormat) -> Smoothed:
    w_rot = problem.weight * smooth
    w_rot = rotate_offline(w_rot) if activation.rotate else w_rot
    if problem.fit is None or problem.judge is None:
        unit = torch.ones_like(smooth)
        noise = WEIGHT_NOISE * unit
        return Smoothed(problem, smooth, activation, w_rot, None, None, 1.0, noise, unit)
    inv_smooth = 1.0 / smooth
    stride = max(1, problem.fit.shape[0] // _NOISE_TOKENS)
    fit_rot = problem.fit[::stride] * inv_smooth
    judge_hat = problem.judge * inv_smooth
    judge_rot = judge_hat
    if activation.rotate:
        fit_rot, judge_rot = rotate_offline(fit_rot), rotate_offline(judge_hat)
    coded = decode_activation(*encode_activation(fit_rot, activation))
    power = fit_rot.square().mean(0)
    gain = float((coded * fit_rot).sum() / fit_rot.square().sum().clamp_min(1e-30)) or 1.0
    noise = (coded / gain - fit_rot).square_().mean(0)
    judge_coded = decode_activation(*encode_activation(judge_rot, activation))
    return Smoothed(problem, smooth, activation, w_rot, judge_hat, judge_coded, gain, noise, power)


def group_mean(values: Tensor, group_size: int) -> Tensor:
    """Each value [in_features] replaced by its group's mean."""
    return values.reshape(-1, group_size).mean(1).repeat_interleave(group_size)


def shrinkage(gram: Tensor, tokens: int) -> float:
    """The share of its diagonal to mix into a sample covariance, where no held-out tokens choose it.

    Half of the oracle-approximating shrinkage (Chen, Wiesel, Eldar, Hero 2010) of the correlation matrix: tokens of
    a sequence are no worse than independent ones here, and directions matter more than the Frobenius norm that the
    formula minimises.
    """
    size = gram.shape[0]
    root = gram.diagonal().clamp_min(1e-30).sqrt()
    squares = float((gram / torch.outer(root, root)).square().sum())
    excess = squares - size
    if excess <= 0.0:
        return _MOST_SHRINKAGE
    oracle = (squares + size * size) / ((tokens + 1.0) * excess)
    return min(max(0.5 * oracle, _LEAST_SHRINKAGE), _MOST_SHRINKAGE)
