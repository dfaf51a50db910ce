"""The parts of the solver against dense linear algebra."""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.compiler.quantize.codecs import (
    IntegerCodec,
    MultipliedCodec,
    Nvfp4Codec,
    choose_scales,
)
from svdqc.compiler.quantize.gptq import factor, quantize_with_feedback, round_to_nearest
from svdqc.compiler.quantize.low_rank import branch_of, diagonal_metric, leading_subspace
from svdqc.compiler.quantize.polish import sweep
from svdqc.compiler.quantize.problem import shrinkage
from svdqc.compiler.quantize.reference import dequantize_weight
from svdqc.compiler.quantize.smoothing import balanced


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated_hessian(size: int, seed: int = 0) -> Tensor:
    x = randn(3 * size, size, seed=seed) @ randn(size, size, seed=seed + 1) / size**0.5
    return x.T @ x / x.shape[0]


def loss(target: Tensor, hessian: Tensor, w_codes: Tensor, w_scale: Tensor) -> float:
    miss = target - dequantize_weight(w_codes, w_scale)
    return float(((miss @ hessian) * miss).sum())


def test_factor__multiplies_back_to_the_hessian() -> None:
    hessian = correlated_hessian(128)
    f = factor(hessian, 32)
    back = f.feedback @ torch.diag(f.energy) @ f.feedback.T
    torch.testing.assert_close(back, hessian[f.order][:, f.order], atol=1e-3, rtol=1e-3)
    assert torch.equal(f.feedback, f.feedback.triu())
    assert sorted(f.order.tolist()) == list(range(128))
    for step in range(0, 128, 32):  # a group is visited whole
        assert len({int(k) // 32 for k in f.order[step : step + 32]}) == 1


def test_feedback__is_gptq() -> None:
    """With one group and the scale known, the codes are those of the textbook form on the inverse's Cholesky factor."""
    hessian, target = correlated_hessian(64), randn(8, 64, seed=5)
    f, codec = factor(hessian, 64), IntegerCodec(64, "symmetric")
    w_codes, w_scale = quantize_with_feedback(target, f, codec, clip=False)
    ordered = hessian[f.order][:, f.order].double()
    ordered += torch.eye(64) * 1e-4 * ordered.diagonal().mean()
    upper = torch.linalg.cholesky(torch.linalg.inv(ordered), upper=True)
    w, expected = target[:, f.order].double(), torch.empty(8, 64)
    step = w_scale[:, 0].double()
    for k in range(64):
        expected[:, k] = (w[:, k] / step).round().clamp(-7, 7)
        miss = (w[:, k] - expected[:, k] * step) / upper[k, k]
        w[:, k:] -= miss.unsqueeze(1) * upper[k, k:]
    same = (w_codes[:, f.order].float() == expected).float().mean()
    assert same > 0.99  # a near tie may fall the other way in f32


def test_feedback_then_sweeps__each_lowers_the_loss() -> None:
    hessian, target = correlated_hessian(128), randn(40, 128, seed=7)
    multiplied = MultipliedCodec.fitting(target, 32, "signed8")
    for codec in (IntegerCodec(32, "signed8"), Nvfp4Codec(2.0**-8), multiplied):
        nearest = round_to_nearest(target, codec, clip=True)
        found = quantize_with_feedback(target, factor(hessian, codec.group_size), codec, clip=True)
        losses = [loss(target, hessian, *nearest), loss(target, hessian, *found)]
        for _ in range(3):
            pull = (target - dequantize_weight(*found)) @ hessian
            found = sweep(pull, hessian, *found, codec)
            losses.append(loss(target, hessian, *found))
        assert losses == sorted(losses, reverse=True), losses
        assert losses[-1] < 0.95 * losses[1]
        assert torch.equal(found[1], codec.storable(found[1]))


def test_choose_scales__energy_decides_what_is_clipped() -> None:
    w = torch.full((1, 64), 0.1)
    w[0, 0] = 1.0
    codec = IntegerCodec(64, "symmetric")
    heavy = torch.ones(64)
    heavy[0] = 1e3
    plain, weighted = choose_scales(w, codec, True), choose_scales(w, codec, True, heavy)
    assert float(plain) < float(weighted)


def test_leading_subspace__matches_the_weighted_svd() -> None:
    decay = torch.diag(torch.logspace(0, -2, 96))
    b = randn(80, 96) @ decay
    energy = torch.rand(96, generator=torch.Generator().manual_seed(3)) + 0.1
    basis = leading_subspace(b, diagonal_metric(energy), 12, seed=0)
    weighted = b * energy.sqrt()
    best = torch.linalg.svdvals(weighted)[12:].square().sum()
    left = (weighted - basis @ (basis.T @ weighted)).square().sum()
    assert float(left / best) < 1.001


def test_branch_of__leaves_only_what_bf16_lost() -> None:
    b = randn(64, 8) @ randn(8, 128, seed=1)
    basis = torch.linalg.qr(b[:, :8]).Q
    for rotated in (False, True):
        branch = branch_of(basis, b, rotated)
        assert torch.equal(branch.lora_up, branch.lora_up.bfloat16().float())
        assert torch.equal(branch.lora_down, branch.lora_down.bfloat16().float())
    branch = branch_of(basis, b, False)
    assert float((b - branch.dense()).norm() / b.norm()) < 2**-7


def test_balanced__is_scale_free_and_survives_zeros() -> None:
    x, w = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    smooth = balanced(x, w)
    assert torch.isfinite(smooth).all()
    torch.testing.assert_close(smooth[1] / smooth[0], torch.tensor(2.0))
    torch.testing.assert_close(smooth, balanced(x * 1000, w * 7))
    assert torch.equal(balanced(torch.zeros(3), torch.zeros(3)), torch.ones(3))


def test_shrinkage__falls_with_tokens() -> None:
    hessian = correlated_hessian(64)
    assert shrinkage(hessian, 100) > shrinkage(hessian, 1000) >= 0.02
    assert shrinkage(torch.eye(64), 1000) == 0.4
