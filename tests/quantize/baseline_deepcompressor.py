"""DeepCompressor's default recipe, with and without GPTQ, written independently of svdqc: the baseline to beat.

Steps, as in github.com/nunchaku-ai/deepcompressor's svdquant configurations:
1. smooth    lambda = absmax(X)^a / absmax(W)^b over 39 candidates; objective: output error with X and W quantized
             and the rank-r branch inside;
2. low rank  L = SVD_r(W - Qw), Qw = Q(W - L), at most 100 times, stop at the first increase, keep the best;
3. weights   plain absmax ranges, round to nearest, or GPTQ (damp 0.01, act-order, static groups) on the residual;
4. activations  per token and group, dynamic.
Low-rank factors stay in f32 here, which favours the baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Quantizer = Callable[[Tensor], Tensor]
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def int4_scales(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, 64).abs().amax(-1, keepdim=True) / 7.0


def nvfp4_scales(x: Tensor) -> Tensor:
    """Per 16: E4M3 scale of (absmax / 6) under a per-tensor scale that sends the largest to 448."""
    absmax = x.reshape(x.shape[0], -1, 16).abs().amax(-1, keepdim=True)
    tensor_scale = absmax.max() / (6.0 * 448.0)
    return (absmax / 6.0 / tensor_scale).to(torch.float8_e4m3fn).float() * tensor_scale


def round_int4(x: Tensor, scale: Tensor) -> Tensor:
    return (x / scale.clamp_min(1e-30)).round().clamp(-7, 7) * scale


def round_e2m1(x: Tensor, scale: Tensor) -> Tensor:
    grid = torch.tensor(E2M1)
    ratio = x / scale.clamp_min(1e-30)
    index = torch.bucketize(ratio.abs(), (grid[1:] + grid[:-1]) / 2)
    return torch.sign(ratio) * grid[index] * scale


@dataclass(frozen=True)
class Format:
    scales: Callable[[Tensor], Tensor]
    round: Callable[[Tensor, Tensor], Tensor]
    group_size: int

    def quantize(self, x: Tensor) -> Tensor:
        grouped = x.reshape(x.shape[0], -1, self.group_size)
        return self.round(grouped, self.scales(x)).reshape(x.shape)


INT4 = Format(int4_scales, round_int4, 64)
NVFP4 = Format(nvfp4_scales, round_e2m1, 16)


def svd_rank(w: Tensor, rank: int) -> Tensor:
    """The best rank-r approximation, through eigh of the smaller Gram matrix (the same to 1e-6 of the SVD's)."""
    if w.shape[0] < w.shape[1]:
        return svd_rank(w.T, rank).T
    gram = w.T.double() @ w.double()
    v = torch.linalg.eigh(gram).eigenvectors[:, -rank:].float()
    return (w @ v) @ v.T


@dataclass(frozen=True)
class Quantized:
    """y = x_hat @ branch.T + Q(x_hat) @ residual.T, x_hat = x / smooth."""

    smooth: Tensor
    branch: Tensor
    residual: Tensor
    fmt: Format

    def __call__(self, x: Tensor) -> Tensor:
        x_hat = x / self.smooth
        return x_hat @ self.branch.T + self.fmt.quantize(x_hat) @ self.residual.T


def naive(w: Tensor, fmt: Format) -> Quantized:
    ones = torch.ones(w.shape[1])
    return Quantized(ones, torch.zeros_like(w), fmt.quantize(w), fmt)


def one_pass(w: Tensor, smooth: Tensor, rank: int, fmt: Format) -> Quantized:
    w_hat = w * smooth
    branch = svd_rank(w_hat, rank) if rank else torch.zeros_like(w)
    return Quantized(smooth, branch, fmt.quantize(w_hat - branch), fmt)


def smoothing(w: Tensor, x: Tensor, rank: int, fmt: Format) -> Tensor:
    span_x, span_w = x.abs().amax(0).clamp_min(1e-5), w.abs().amax(0).clamp_min(1e-5)
    y = x @ w.T
    steps = [i / 20 for i in range(1, 20)]
    pairs = [(0.0, 0.0)] + [(a, 0.0) for a in steps] + [(a, 1.0 - a) for a in steps]
    candidates = [span_x**a / span_w**b for a, b in pairs]
    return min(candidates, key=lambda s: (one_pass(w, s, rank, fmt)(x) - y).square().sum().item())


def default(
    w: Tensor, x: Tensor, rank: int, fmt: Format, smooth: Tensor | None = None
) -> Quantized:
    """Smoothing and the iterated low-rank branch; weights round to nearest."""
    smooth = smoothing(w, x, rank, fmt) if smooth is None else smooth
    w_hat, y = w * smooth, x @ w.T
    residual, best, least = torch.zeros_like(w), None, float("inf")
    for _ in range(100):
        branch = svd_rank(w_hat - residual, rank)
        residual = fmt.quantize(w_hat - branch)
        candidate = Quantized(smooth, branch, residual, fmt)
        error = (candidate(x) - y).square().sum().item()
        if error >= least:
            break
        best, least = candidate, error
    assert best is not None
    return best


def with_gptq(plain: Quantized, w: Tensor, x: Tensor) -> Quantized:
    """Round the residual of `plain` anew, by GPTQ."""
    target = w * plain.smooth - plain.branch
    x_hat = x / plain.smooth
    residual = gptq(target, x_hat.T @ x_hat, plain.fmt)
    return Quantized(plain.smooth, plain.branch, residual, plain.fmt)


def gptq(w: Tensor, hessian: Tensor, fmt: Format, damp: float = 0.01, block: int = 128) -> Tensor:
    """GPTQ (arXiv 2210.17323), act-order, the scales of groups fixed before."""
    scale = fmt.scales(w).expand(-1, -1, fmt.group_size).reshape(w.shape)
    order = hessian.diagonal().argsort(descending=True)
    w, scale, hessian = w[:, order].clone(), scale[:, order], hessian[order][:, order].double()
    hessian += torch.eye(len(order)) * damp * hessian.diagonal().mean()
    inverse = torch.linalg.inv(hessian)
    upper = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True).float()
    out = torch.empty_like(w)
    for start in range(0, w.shape[1], block):
        stop = min(start + block, w.shape[1])
        errors = torch.zeros_like(w[:, start:stop])
        for k in range(start, stop):
            out[:, k] = fmt.round(w[:, k], scale[:, k])
            error = (w[:, k] - out[:, k]) / upper[k, k]
            w[:, k:stop] -= error.unsqueeze(1) * upper[k, k:stop]
            errors[:, k - start] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    result = torch.empty_like(out)
    result[:, order] = out
    return result


def relative_error(model: Callable[[Tensor], Tensor], w: Tensor, x: Tensor) -> float:
    y = x @ w.T
    return ((model(x) - y).norm() / y.norm()).item()
