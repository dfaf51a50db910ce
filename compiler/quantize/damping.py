"""How far to trust a sample covariance: damping chosen on held-out tokens, before any weight is rounded.

Error feedback and the Wiener filter lean on the covariance C of the fitted tokens. Few tokens, or tokens much alike,
leave directions in it that look quiet and are not; a layer fitted to them is worse on other samples than plain
rounding. So C is mixed with its diagonal, C' = (1 - d) C + d diag(C), and d is chosen by what it would cost on tokens
x that were not fitted, coded as x~. With H = C' + N = (F + I) D (F + I).T (gptq.py) and A = C' H^-1:

    feedback:  a rounding error u per column arrives at the output as u (F + I)^-1 x~      mean |(F + I)^-1 x~|^2
    filter:    the residual R is replaced by R A                                           mean |x - A x~|^2
    neither:   R itself reads the codes                                                    mean |x - x~|^2

Residuals and rounding errors are taken as white, so the sum needs no weight: the two means, the first times the power
of rounding. A token's error is taken relative to its own size, and the worst tokens count most, because a few tokens
of another kind (words among patches of a picture) must not be given up for many of one kind. Of dampings that cost
nearly the same the strongest is taken: what the held-out tokens cannot tell apart, tokens unlike them can.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svdqc.compiler.quantize.gptq import FeedbackFactor, factor
from svdqc.compiler.quantize.hadamard import rotate_offline
from svdqc.compiler.quantize.problem import WEIGHT_NOISE, Smoothed

DAMPINGS = (0.6, 0.35, 0.1, 0.05, 0.02)
"""Strongest first."""

_INDIFFERENCE = 1.03
"""Errors within this factor of the least count as equal."""

_TOKENS = 384


@dataclass(frozen=True)
class Damped:
    """The covariance in use, with H = covariance + diag(noise) factored, and whether the filter helps.

    covariance  [in_features, in_features]  f32      noise  [in_features]  f32
    """

    damping: float
    covariance: Tensor
    noise: Tensor
    factored: FeedbackFactor
    shrink: bool


def choose_damping(case: Smoothed, group_size: int, allow_shrink: bool) -> Damped:
    """The strongest damping whose predicted error is nearly the least; group_size is the weight's."""
    gram = case.covariance()
    noise = case.noise.clamp_min(float(case.noise.mean()) * 1e-3 + 1e-30)
    tokens = _HeldOut.of(case)
    costs: list[tuple[float, float]] = []
    for damping in DAMPINGS:
        costs.append(tokens.costs(_damped(gram, noise, damping, group_size)))
    if not allow_shrink:
        costs = [(plain, plain) for plain, _ in costs]
    most = min(min(c) for c in costs) * _INDIFFERENCE**2
    at = next(i for i, c in enumerate(costs) if min(c) <= most)
    plain, filtered = costs[at]
    covariance, factored = _damped(gram, noise, DAMPINGS[at], group_size)
    return Damped(DAMPINGS[at], covariance, noise, factored, allow_shrink and filtered <= plain)


def _damped(
    gram: Tensor, noise: Tensor, damping: float, group_size: int
) -> tuple[Tensor, FeedbackFactor]:
    covariance = torch.mul(gram, 1.0 - damping)
    covariance.diagonal().add_(gram.diagonal(), alpha=damping)
    hessian = covariance.clone()
    hessian.diagonal().add_(noise)
    return covariance, factor(hessian, group_size)


@dataclass(frozen=True)
class _HeldOut:
    """Judging tokens as rotated, and as coded over the gain: [in_features, tokens]; weight [tokens], 1 / power."""

    exact: Tensor
    coded: Tensor
    weight: Tensor

    @staticmethod
    def of(case: Smoothed) -> _HeldOut:
        assert case.judge_hat is not None
        assert case.judge_coded is not None
        stride = max(1, case.judge_hat.shape[0] // _TOKENS)
        exact, coded = case.judge_hat[::stride], case.judge_coded[::stride] / case.gain
        exact = rotate_offline(exact) if case.activation.rotate else exact
        if case.problem.centered:
            exact, coded = exact - exact.mean(0), coded - coded.mean(0)
        power = exact.square().sum(1)
        weight = 1.0 / power.clamp_min(float(power.mean()) * 1e-3 + 1e-30)
        return _HeldOut(exact.T.contiguous(), coded.T.contiguous(), weight)

    def costs(self, damped: tuple[Tensor, FeedbackFactor]) -> tuple[float, float]:
        """(without the filter, with it): expected square of the output error per unit of the residual's power."""
        covariance, factored = damped
        order = factored.order
        spread = torch.linalg.solve_triangular(factored.feedback, self.coded[order], upper=True)
        solved = torch.linalg.solve_triangular(
            factored.feedback.T, spread / factored.energy.unsqueeze(1), upper=False
        )
        inverse = torch.empty_like(solved)
        inverse[order] = solved  # H^-1 x~
        feedback = WEIGHT_NOISE * spread.square().sum(0)
        plain = (self.exact - self.coded).square().sum(0)
        filtered = (self.exact - covariance @ inverse).square().sum(0)
        return self._mean(plain + feedback), self._mean(filtered + feedback)

    def _mean(self, cost: Tensor) -> float:
        """Over the tokens, of their squared relative errors: its own root mean square, so that the worst ones count."""
        return float((cost * self.weight).square().mean().sqrt())
