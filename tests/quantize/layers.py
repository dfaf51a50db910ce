"""Synthetic linears with the outliers of diffusion transformers, of any size and severity.

Activations are correlated (an orthogonal mix of a log-spaced spectrum), their channels have log-normal scales, and
1.5 % of the channels are larger again by a factor out of `outlier`. Weights are heavy-tailed (Student-t, 5 degrees
of freedom) plus a rank-24 part that decays geometrically.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PLANTED_RANK = 24
OUTLIER_SHARE = 0.015


@dataclass(frozen=True)
class Severity:
    """How hard a layer is.

    spectrum_decades  the input's standard deviations span 10^-decades .. 1
    channel_sigma     of the log-normal channel scales
    outlier           the factors of outlier channels are uniform between these
    planted           strength of the rank-24 part of the weight
    planted_decades   its singular values span 10^-decades .. 1
    """

    spectrum_decades: float
    channel_sigma: float
    outlier: tuple[float, float]
    planted: float
    planted_decades: float


# Fitted so that the baseline has the errors published for two such layers (test_baseline.py): A is 768 x 768 with a
# worst channel of about 60 times the median, B is 512 x 512 with one of about 15.
LAYER_A = Severity(1.318, 0.666, (12.97, 69.6), 17.4, 0.421)
LAYER_B = Severity(0.969, 0.493, (3.859, 6.456), 14.632, 0.735)
MILD = Severity(0.5, 0.25, (2.0, 4.0), 8.0, 0.7)
SEVERE = Severity(1.5, 0.9, (40.0, 80.0), 25.0, 0.5)


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

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    mix = torch.linalg.qr(normal(in_features, in_features)).Q
    channel = torch.exp(severity.channel_sigma * normal(in_features))
    outliers = max(1, round(OUTLIER_SHARE * in_features))
    where = torch.randperm(in_features, generator=g)[:outliers]
    lo, hi = severity.outlier
    channel[where] *= lo + (hi - lo) * torch.rand(outliers, generator=g)
    spectrum = torch.logspace(0.0, -severity.spectrum_decades, in_features)
    x = (normal(calibration_tokens + test_tokens, in_features) * spectrum) @ mix.T
    x = x / x.square().mean().sqrt() * channel
    bulk = normal(out_features, in_features)
    chi = normal(5, out_features, in_features)
    up = torch.linalg.qr(normal(out_features, PLANTED_RANK)).Q
    down = torch.linalg.qr(normal(in_features, PLANTED_RANK)).Q
    size = severity.planted * (out_features * in_features) ** 0.25
    planted = (up * size * torch.logspace(0.0, -severity.planted_decades, PLANTED_RANK)) @ down.T
    weight = (bulk / (chi.square().sum(0) / 5.0).sqrt() + planted) * 0.02
    return Layer(weight, x[:calibration_tokens].contiguous(), x[calibration_tokens:].contiguous())
