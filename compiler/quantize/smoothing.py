"""Smoothing: a scale per input channel that moves outliers between activations and weights.

    x_hat = x / smooth        w_hat = w * smooth        x_hat @ w_hat.T = x @ w.T

What is coded in 4 bits is the activation and the residual of the weight, R = W - L. With scales that follow the RMS
of a group, both rounding errors are proportional to

    sum_g (sum_{k in g} x_k^2 / smooth_k^2) (sum_{k in g} r_k^2 smooth_k^2)

x_k and r_k the RMS of channel k of the activation and of the unsmoothed residual. Cauchy-Schwarz gives the minimum
in closed form: smooth_k = sqrt(x_k / r_k). The low-rank branch depends on the smoothing and r on the branch, so the
formula is iterated from r = w; it settles in two or three rounds. No exponents are searched.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 1e-3
"""Channels below this share of the median are taken as this large: a branch can carry a channel whole."""


def channel_rms(values: Tensor) -> Tensor:
    """[rows, channels] -> [channels]."""
    return values.square().mean(0).sqrt()


def balanced(activation_rms: Tensor, weight_rms: Tensor) -> Tensor:
    """smooth = sqrt(activation_rms / weight_rms), [in_features] f32, scaled to a geometric mean of 1."""
    log_smooth = 0.5 * (_floored(activation_rms).log() - _floored(weight_rms).log())
    return (log_smooth - log_smooth.mean()).exp()


def _floored(size: Tensor) -> Tensor:
    positive = size[size > 0]
    if positive.numel() == 0:
        return torch.ones_like(size)
    return size.clamp_min(float(positive.median()) * _SMALLEST)
