"""The choice under a number of bytes: exact against exhaustive search, deterministic, and honest when nothing fits."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from tests.quantize.layers import LAYER_B, make_layer

from svdqc.compiler.quantize.budget import GAP, Option, allocate, parse_budget
from svdqc.compiler.quantize.budget_curves import RANK_STEP, candidates
from svdqc.compiler.quantize.errors import BudgetTooSmall, InvalidRecipe
from svdqc.compiler.quantize.linear import LinearSamples, quantize_linear
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import num_bytes


def exhaustive(layers: list[list[Option]], budget: int) -> float | None:
    """The least total error of all combinations that fit."""
    errors = [
        sum(options[i].error for options, i in zip(layers, choice, strict=True))
        for choice in itertools.product(*(range(len(options)) for options in layers))
        if sum(options[i].num_bytes for options, i in zip(layers, choice, strict=True)) <= budget
    ]
    return min(errors, default=None)


def random_layers(dice: random.Random, count: int) -> list[list[Option]]:
    return [
        [Option(dice.randint(0, 60), dice.random()) for _ in range(dice.randint(1, 5))]
        for _ in range(count)
    ]


def test_allocate__as_good_as_exhaustive_search() -> None:
    dice = random.Random(0)
    solved = refused = 0
    for _ in range(300):
        layers = random_layers(dice, dice.randint(1, 6))
        budget = dice.randint(0, 250)
        best = exhaustive(layers, budget)
        if best is None:
            with pytest.raises(BudgetTooSmall):
                allocate(layers, budget)
            refused += 1
            continue
        chosen = allocate(layers, budget)
        spent = sum(options[i].num_bytes for options, i in zip(layers, chosen, strict=True))
        error = sum(options[i].error for options, i in zip(layers, chosen, strict=True))
        assert spent <= budget
        assert error <= best * (1 + GAP) + 1e-12
        solved += 1
    assert solved > 100
    assert refused > 10


def test_allocate__a_step_that_is_not_on_the_hull() -> None:
    """The greedy order stops at 10 + 10 bytes; the optimum takes an option that lies above the convex hull."""
    layers = [[Option(0, 10.0), Option(6, 8.0), Option(10, 0.0)], [Option(0, 10.0), Option(9, 0.5)]]
    assert allocate(layers, 15) == [1, 1]
    assert exhaustive(layers, 15) == 8.5


def test_allocate__many_layers_fit_and_repeat() -> None:
    dice = random.Random(1)
    layers = [
        [Option(32 * size * r, scale * 2.718 ** (-r / 3)) for r in range(9)]
        for size, scale in ((dice.choice((768, 1280, 2048)), dice.random()) for _ in range(300))
    ]
    budget = sum(options[2].num_bytes for options in layers)
    chosen = allocate(layers, budget)
    assert chosen == allocate(layers, budget)
    total = sum(options[i].error for options, i in zip(layers, chosen, strict=True))
    equal = sum(options[2].error for options in layers)
    spent = sum(options[i].num_bytes for options, i in zip(layers, chosen, strict=True))
    assert budget * 0.999 < spent <= budget
    assert total < equal


def test_allocate__says_the_least_possible() -> None:
    layers = [[Option(700, 0.0), Option(400, 1.0)], [Option(300, 0.5)]]
    with pytest.raises(BudgetTooSmall, match=r"1,600 bytes.*least possible is 1,700 bytes"):
        allocate(layers, 1600, fixed_bytes=1000)
    assert allocate(layers, 1700, fixed_bytes=1000) == [1, 0]


@pytest.mark.parametrize(
    ("text", "num_bytes_of_1000"),
    [
        ("6.5MB", 6_500_000),
        ("1.2 GB", 1_200_000_000),
        ("2KiB", 2048),
        ("700b", 700),
        (0.3, 300),
        ("0.25", 250),
        ("30%", 300),
        (1, 1000),
    ],
)
def test_parse_budget(text: str | float, num_bytes_of_1000: int) -> None:
    assert parse_budget(text).bytes_of(1000) == num_bytes_of_1000


@pytest.mark.parametrize("text", ["", "much", "-3MB", "0", 0, "1.5", 7, True, "0MB", "nan", "3 PB"])
def test_parse_budget__refuses(text: str | float) -> None:
    with pytest.raises(InvalidRecipe, match="budget"):
        parse_budget(text)
    with pytest.raises(InvalidRecipe, match="budget"):
        Recipe(budget=text)


def test_candidates__follow_the_finished_quantization() -> None:
    """Drafts need not hit the finished error, but its fall with the rank: within 15 % of each ratio."""
    layer = make_layer(192, 256, LAYER_B, seed=3)
    samples = LinearSamples(layer.calibration[:512], layer.test[:256])
    recipe = Recipe(rank="auto")
    found = candidates(layer.weight, samples, recipe, ("int4", "int8", "none"))
    int4 = {c.rank: c for c in found if c.precision == "int4"}
    assert list(int4) == list(range(0, 129, RANK_STEP))
    errors = [c.error for c in int4.values()]
    assert errors == sorted(errors, reverse=True)
    assert all(c.num_bytes == num_bytes("int4", 192, 256, c.rank) for c in int4.values())
    for rank in (0, 48, 128):
        drafted = int4[rank].error / int4[32].error
        finished = [
            quantize_linear(layer.weight, samples, Recipe(rank=r)).metrics["error"]
            for r in (rank, 32)
        ]
        assert drafted == pytest.approx(finished[0] / finished[1], rel=0.15)
    (int8,) = (c for c in found if c.precision == "int8")
    (kept,) = (c for c in found if c.precision == "none")
    assert int8.error < int4[32].error / 2
    assert (kept.error, kept.num_bytes) == (0.0, 2 * 192 * 256)


def test_candidates__a_small_layer_has_only_ranks_that_fit() -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    found = candidates(weight, None, Recipe(), ("int4",))
    assert [c.rank for c in found] == [0, 16, 32]
