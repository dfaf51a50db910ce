"""Damping chosen on held-out tokens: what calibration must not do to tokens it has hardly seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.quantize.layers import LAYER_B, make_layer
from torch import Tensor

from svdqc.compiler.quantize.damping import DAMPINGS, Damped, choose_damping
from svdqc.compiler.quantize.linear import LinearSamples, QuantizedLinear, quantize_linear
from svdqc.compiler.quantize.problem import Problem, smoothed
from svdqc.compiler.quantize.ranges import ActivationFormat
from svdqc.compiler.quantize.recipe import Recipe

WIDTH = 256


def chosen(weight: Tensor, fit: Tensor, judge: Tensor, allow_shrink: bool = True) -> Damped:
    problem = Problem.of(weight, fit, judge, centered=False).with_gram()
    case = smoothed(problem, torch.ones(weight.shape[1]), ActivationFormat(rotate=True))
    return choose_damping(case, 64, allow_shrink)


def two_kinds(tokens: int, few: float, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens of a 24-dimensional kind, and which of them are of a second kind that lies anywhere and is quieter."""
    g = torch.Generator().manual_seed(seed)
    plane = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(99))
    x = torch.randn(tokens, 24, generator=g) @ plane
    x += 0.05 * torch.randn(tokens, WIDTH, generator=g)
    rare = torch.rand(tokens, generator=g) < few
    x[rare] = 2.0 * torch.randn(int(rare.sum()), WIDTH, generator=g)
    return x, rare


def relative_error(q: QuantizedLinear, weight: Tensor, x: Tensor) -> float:
    wanted = x @ weight.T
    return float((q(x) - wanted).norm() / wanted.norm())


def test_many_tokens__are_trusted_more_than_few() -> None:
    layer = make_layer(64, WIDTH, LAYER_B, calibration_tokens=8192, test_tokens=512)
    few, many = (chosen(layer.weight, layer.calibration[:n], layer.test) for n in (192, 8192))
    assert few.damping > many.damping
    assert {few.damping, many.damping} <= set(DAMPINGS)


def test_covariance__is_mixed_with_its_diagonal() -> None:
    layer = make_layer(64, WIDTH, LAYER_B, calibration_tokens=512, test_tokens=256)
    damped = chosen(layer.weight, layer.calibration, layer.test)
    f = damped.factored.feedback
    whole = (f * damped.factored.energy) @ f.T
    hessian = (damped.covariance + torch.diag(damped.noise))[damped.factored.order]
    torch.testing.assert_close(
        whole, hessian[:, damped.factored.order], rtol=2e-3, atol=1e-3 * float(whole.abs().max())
    )


def test_filter__is_refused_where_not_allowed() -> None:
    layer = make_layer(64, WIDTH, LAYER_B, calibration_tokens=2048, test_tokens=256)
    assert chosen(layer.weight, layer.calibration, layer.test).shrink
    assert not chosen(layer.weight, layer.calibration, layer.test, allow_shrink=False).shrink


def test_rare_tokens__are_not_given_up_for_the_many() -> None:
    """Words among patches of a picture: 3 % of the tokens, quieter, and in directions of their own.

    The weakest damping gives them 2.6 times the error of plain rounding.
    """
    weight = make_layer(192, WIDTH, LAYER_B, test_tokens=1).weight
    x, _ = two_kinds(2048, 0.03, seed=1)
    held_out, _ = two_kinds(512, 0.03, seed=2)
    samples = LinearSamples(x, held_out)
    test, rare = two_kinds(4096, 0.03, seed=3)
    with_feedback = quantize_linear(weight, samples, Recipe())
    without = quantize_linear(weight, samples, Recipe(gptq=False))
    plain, feedback = (relative_error(q, weight, test[rare]) for q in (without, with_feedback))
    assert feedback < 1.5 * plain
    assert relative_error(with_feedback, weight, test[~rare]) < relative_error(
        without, weight, test[~rare]
    )


@pytest.mark.parametrize("tokens", [160, 400])
def test_held_out_tokens_of_another_kind__take_feedback_back(tokens: int) -> None:
    """Fitted on a plane, judged everywhere: whatever is kept, it is no worse than plain rounding, and says so."""
    weight = make_layer(192, WIDTH, LAYER_B, test_tokens=1).weight
    x, _ = two_kinds(tokens, 0.0, seed=1)
    elsewhere, _ = two_kinds(512, 1.0, seed=2)
    samples = LinearSamples(x, elsewhere)
    with_feedback = quantize_linear(weight, samples, Recipe())
    without = quantize_linear(weight, samples, replace(Recipe(), gptq=False))
    assert with_feedback.metrics["error"] <= 1.001 * without.metrics["error"]
    if with_feedback.metrics["error"] == without.metrics["error"]:
        assert any("error feedback" in note for note in with_feedback.notes)
