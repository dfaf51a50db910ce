"""Synthetic linears with the outliers of diffusion transformers, of any size and severity.

Activations are correlated (an orthogonal mix of a log-spaced spectrum), their channels have log-normal scales, and 1.5 %
of the channels are `outlier` times larger again. Weights are heavy-tailed (Student-t, 5 degrees of freedom) plus a decaying
rank-24 part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Severity:
    """How hard a layer is: the knobs of the generator."""

    spectrum_decades: float
    channel_sigma: float
    outlier: tuple[float, float]
    low_rank_strength: float


LAYER_A = Severity(2.0, 0.5, (20.0, 40.0), 8.0)
LAYER_B = Severity(1.0, 0.3, (8.0, 15.0), 2.0)


@dataclass(frozen=True)
class Layer:
    """weight [out_features, in_features]; calibration, test [tokens, in_features]; all f32."""

    weight: Tensor
    calibration: Tensor
    test: Tensor


def make_layer(
    out_features: int,
    in_features: int,
    severity: Severity,
    *,
    calibration_tokens: int = 2048,
    test_tokens: int = 1024,
    seed: int = 0,
) -> Layer:
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    mix = torch.linalg.qr(normal(in_features, in_features)).Q
    spectrum = torch.logspace(0.0, -severity.spectrum_decades, in_features)
    channel = torch.exp(severity.channel_sigma * normal(in_features))
    count = max(1, round(0.015 * in_features))
    where = torch.randperm(in_features, generator=g)[:count]
    lo, hi = severity.outlier
    channel[where] *= lo + (hi - lo) * torch.rand(count, generator=g)
    tokens = calibration_tokens + test_tokens
    x = (normal(tokens, in_features) * spectrum) @ mix.T
    x = x / x.square().mean().sqrt() * channel
    chi = normal(5, out_features, in_features).square().sum(0) / 5.0
    weight = normal(out_features, in_features) / chi.sqrt()
    up = torch.linalg.qr(normal(out_features, 24)).Q
    down = torch.linalg.qr(normal(in_features, 24)).Q
    decay = severity.low_rank_strength * (out_features * in_features) ** 0.25 * torch.logspace(0.0, -1.0, 24) * 2.0
    weight = (weight + (up * decay) @ down.T) * 0.02
    return Layer(weight, x[:calibration_tokens].contiguous(), x[calibration_tokens:].contiguous())
