"""Smoothing: a scale per input channel that moves outliers between activations and weights.

    x_hat = x / smooth        w_hat = w * smooth        x_hat @ w_hat.T = x @ w.T

With group scales that follow the RMS of a group, both the activation's and the weight's rounding error are proportional to
sum_g (sum_{k in g} x_k^2 / s_k^2) (sum_{k in g} w_k^2 s_k^2), which Cauchy-Schwarz minimises at s_k = sqrt(x_k / w_k), x_k and w_k
the RMS of a channel. Real rounding follows the extremes too, so the exponents around that optimum are searched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST_SPREAD = 1e6


@dataclass(frozen=True)
class ChannelSpans:
    """The sizes of input channels: each [in_features] f32, positive."""

    activation_rms: Tensor
    activation_absmax: Tensor
    weight_rms: Tensor

    @staticmethod
    def measure(x: Tensor, w: Tensor) -> ChannelSpans:
        """x [tokens, in_features], w [out_features, in_features]."""
        return ChannelSpans(
            _floored(x.square().mean(0).sqrt()),
            _floored(x.abs().amax(0)),
            _floored(w.square().mean(0).sqrt()),
        )


@dataclass(frozen=True)
class SmoothingCandidate:
    """smooth = activation_span^alpha / weight_span^beta; `span` says which sizes of the activation are meant."""

    span: str
    alpha: float
    beta: float

    def scale(self, spans: ChannelSpans) -> Tensor:
        """smooth [in_features] f32, its geometric mean 1."""
        size = spans.activation_rms if self.span == "rms" else spans.activation_absmax
        log_smooth = self.alpha * size.log() - self.beta * spans.weight_rms.log()
        log_smooth -= log_smooth.mean()
        bound = torch.log(torch.tensor(_LARGEST_SPREAD)).item()
        return log_smooth.clamp_(-bound, bound).exp_()


NO_SMOOTHING = SmoothingCandidate("rms", 0.0, 0.0)

COARSE = tuple(
    SmoothingCandidate("rms", alpha, beta)
    for alpha, beta in ((0.25, 0.0), (0.5, 0.0), (0.75, 0.0), (0.35, 0.35), (0.5, 0.5), (0.65, 0.35))
)


def finer(best: SmoothingCandidate) -> list[SmoothingCandidate]:
    """Neighbours of the best coarse candidate."""
    moved = [
        SmoothingCandidate(best.span, best.alpha + da, best.beta + db)
        for da, db in ((0.125, 0.0), (-0.125, 0.0), (0.0, 0.125), (0.0, -0.125))
    ]
    return [SmoothingCandidate("absmax", best.alpha, best.beta), *moved]


def _floored(size: Tensor) -> Tensor:
    return size.clamp_min(max(float(size.max()) * 1e-6, 1e-20))
