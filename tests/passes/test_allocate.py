"""Sensitivities against what really happens, and ranks that lower the whole model's error at equal bytes."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svdqc.compiler.driver.compile import Canonical, capture_canonical
from svdqc.compiler.driver.probes import ProbeSamples, SizedProbeSamples, probe_inputs, watch
from svdqc.compiler.ir.interpreter import ProgramInterpreter
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.allocate import (
    Allocation,
    allocate_recipes,
    decided,
    wants_allocation,
)
from svdqc.compiler.passes.allocate_probe import probe_groups
from svdqc.compiler.passes.linear_groups import LinearGroup, linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups, recipes_of
from svdqc.compiler.passes.svdquant import svdquant
from svdqc.compiler.quantize.errors import BudgetTooSmall
from svdqc.compiler.quantize.linear import LinearSamples
from svdqc.compiler.quantize.recipe import Recipe

WIDTH, TOKENS = 128, 48


class Block(nn.Module):
    """Attention-free residual block; `gain` is what its branch is worth."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.gain * self.down(nn.functional.silu(self.up(self.norm(x))))
        return y


class Model(nn.Module):
    """Blocks of unequal weight; weights with a few large singular values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(32, WIDTH)
        self.blocks = nn.ModuleList(Block(g) for g in (2.0, 0.05, 1.0))
        self.out = nn.Linear(WIDTH, 32)
        for block in self.blocks:
            for linear in (block.up, block.down):
                n, k = linear.weight.shape
                planted = torch.randn(n, 48) * torch.logspace(0, -1, 48) @ torch.randn(48, k)
                linear.weight.data += planted * 0.05

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.out(x)
        return y


@functools.cache
def samples() -> list[dict[str, Tensor]]:
    dice = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(1, TOKENS, 32, generator=dice)} for _ in range(12)]


@functools.cache
def weights() -> Model:
    return Model().eval()


def captured(recipe: Recipe) -> tuple[Canonical, list[LinearGroup]]:
    found = capture_canonical(weights(), samples()[0], None, recipe)
    return found, quantized_groups(found.decisions, linear_groups(found.program))


@functools.cache
def tokens() -> dict[str, LinearSamples]:
    """The inputs of every group on all samples but the last two."""
    found, groups = captured(Recipe())
    program = found.program
    seen: dict[str, list[Tensor]] = {g.name: [] for g in groups}
    by_node = {g.x: g.name for g in groups}

    def observe(node: Any, value: Any) -> None:
        if node in by_node:
            seen[by_node[node]].append(value.reshape(-1, value.shape[-1]).clone())

    for sample in samples()[:-2]:
        with torch.no_grad():
            ProgramInterpreter(program, observe).run(sample["x"])
    return {n: LinearSamples(torch.cat(v[:8]), torch.cat(v[8:])) for n, v in seen.items()}


class Perturbed(ProgramInterpreter):
    """Adds a tenth to one group's outputs, as errors in a smoothed weight would."""

    def __init__(self, program: Program, group: LinearGroup, seed: int) -> None:
        super().__init__(program)
        self.group, self.dice = group, torch.Generator().manual_seed(seed)

    def run_node(self, n: Any) -> Any:
        y = super().run_node(n)
        if n not in self.group.linears:
            return y
        x = self.env[self.group.x]
        assert isinstance(n.args[1], torch.fx.Node)
        w, bias = self.env[n.args[1]], self.env[n.args[2]]
        x_hat = x / x.square().mean((0, 1)).sqrt().sqrt()
        wrong = torch.randn(w.shape, generator=self.dice) * w.square().sum(1, keepdim=True).sqrt()
        noise = x_hat @ wrong.T
        return y + noise * (0.1 * (y - bias).norm() / noise.norm())


def test_probe_groups__foretells_what_a_perturbed_layer_does() -> None:
    found, groups = captured(Recipe())
    assert len(groups) == 6
    probes = samples()[:4]
    probed = probe_groups(found.program, groups, probes * 4, seed=3)
    for group in groups:
        shares = []
        for probe in probes:
            (wanted,) = found.program.run(probe)
            for seed in range(4):
                with torch.no_grad():
                    (moved,) = Perturbed(found.program, group, seed).run(probe["x"])
                shares.append(float((moved - wanted).square().sum() / wanted.square().sum()))
        measured = sum(shares) / len(shares) / 0.01
        # A probe is one random direction of 1,536: a few per cent; a tenth of noise is nearly linear.
        assert probed.sensitivity[group.name] == pytest.approx(measured, rel=0.2), group.name
        assert probed.tokens[group.name].shape[1] == group.x.meta["val"].shape[-1]


def test_probe_groups__segments_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """One group at a time, with gradients handed from segment to segment, as in one piece."""
    from svdqc.compiler.passes import allocate_probe

    found, groups = captured(Recipe())
    whole = probe_groups(found.program, groups, samples()[:1]).sensitivity
    monkeypatch.setattr(allocate_probe, "_GROUPS_PER_SEGMENT", 1)
    pieces = probe_groups(found.program, groups, samples()[:1]).sensitivity
    assert pieces == pytest.approx(whole, rel=1e-4)


@functools.cache
def allocated(
    recipe: Recipe, mixed: bool = False
) -> tuple[Canonical, list[LinearGroup], Allocation]:
    found, groups = captured(recipe)
    chosen = allocate_recipes(
        found.program,
        groups,
        tokens(),
        recipes_of(groups, found.decisions, recipe),
        samples()[:8],
        mixed=mixed,
        jobs=1,
    )
    return found, groups, chosen


def output_error(recipes: dict[str, Recipe]) -> tuple[float, int]:
    """(relative error on samples nobody has seen, bytes) of the model quantized by `recipes`."""
    found, groups = captured(Recipe())
    unseen = samples()[-2:]
    wanted = [found.program.run(s)[0] for s in unseen]
    records = svdquant(found.program, groups, tokens(), recipes, jobs=1)
    outputs = [found.program.run(s)[0] for s in unseen]
    miss = sum(float((o - w).square().sum()) for o, w in zip(outputs, wanted, strict=True))
    size = sum(float(w.square().sum()) for w in wanted)
    return math.sqrt(miss / size), sum(r["num_bytes"] for r in records)


def test_rank_auto__less_error_in_the_bytes_of_rank_32() -> None:
    _, groups, chosen = allocated(Recipe(rank="auto"))
    ranks = [chosen.recipes[g.name].rank for g in groups]
    assert all(isinstance(r, int) and r % 16 == 0 for r in ranks)
    assert len(set(ranks)) > 1
    blocks = [sum(int(r) for r in ranks[i : i + 2]) for i in (0, 2, 4)]
    assert blocks[1] == min(blocks), "the block that hardly matters got bytes"
    auto, auto_bytes = output_error(chosen.recipes)
    equal, equal_bytes = output_error({g.name: Recipe(rank=32) for g in groups})
    assert auto_bytes <= equal_bytes
    assert auto < 0.97 * equal
    assert chosen.summary["expected_error"] < chosen.summary["expected_error_at_rank_32"]
    assert set(chosen.layers) == {g.name for g in groups}


def test_rank_auto__the_same_choice_every_time() -> None:
    first = allocated(Recipe(rank="auto"))[2].recipes
    allocated.cache_clear()
    assert allocated(Recipe(rank="auto"))[2].recipes == first


def test_rank_auto__nothing_to_probe_with() -> None:
    recipe = Recipe(rank="auto")
    found, groups = captured(recipe)
    recipes = recipes_of(groups, found.decisions, recipe)
    chosen = allocate_recipes(found.program, groups, {}, recipes, [], jobs=1)
    assert {r.rank for r in chosen.recipes.values()} == {32}
    assert "give calibration samples or inputs" in chosen.summary["notes"][0]


def test_budget__mixes_precisions_and_spends_what_it_may() -> None:
    found, groups, chosen = allocated(Recipe(budget=0.6), mixed=True)
    precisions = [chosen.recipes[g.name].precision for g in groups]
    assert len(set(precisions)) > 1
    assert set(precisions) <= {"int4", "int8", "none"}
    summary = chosen.summary
    assert 0.9 * summary["budget_bytes"] < summary["spent_bytes"] <= summary["budget_bytes"]
    changed = {d.layer: d for d in decided(found.decisions, groups, chosen)}
    for name, precision in zip((g.name for g in groups), precisions, strict=True):
        assert changed[name].precision == precision
        assert (changed[name].reason.startswith("16 bits:")) == (precision == "none")


def test_budget__more_bytes_less_expected_error() -> None:
    errors = [
        allocated(Recipe(budget=ratio), mixed=True)[2].summary["expected_error"]
        for ratio in (0.4, 0.6)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_budget__that_cannot_be_met() -> None:
    with pytest.raises(BudgetTooSmall, match=r"least possible is [0-9,]+ bytes"):
        allocated(Recipe(budget="20KB"))


def test_wants_allocation() -> None:
    assert wants_allocation(Recipe(rank="auto"))
    assert wants_allocation(Recipe(budget=0.5))
    assert not wants_allocation(Recipe())
    assert not wants_allocation(Recipe(precision="none", rank="auto"))


@pytest.mark.parametrize("kind", [ProbeSamples, SizedProbeSamples])
def test_probe_samples__are_drawn_from_the_whole_stream(kind: type[ProbeSamples]) -> None:
    """Of a stream in which every fourth is of one kind, the kept ones are of several kinds."""
    steps: Any = [{"step": i} for i in range(48)]
    stream = kind(steps if kind is SizedProbeSamples else iter(steps), 8)
    assert [s["step"] for s in stream] == list(range(48))
    kept = [s["step"] for s in stream.kept()]
    assert len(set(kept)) == 8
    assert len({k % 4 for k in kept}) > 2
    assert max(kept) > 24


def test_probe_samples__fewer_than_wanted() -> None:
    assert len(SizedProbeSamples([{"x": 1}] * 3, 8).kept()) == 3
    assert len(ProbeSamples(iter([{"x": 1}] * 3), 8).kept()) == 3


def test_probe_samples__known_lengths_stay_known() -> None:
    found, _ = captured(Recipe())
    known = watch(samples(), found.program)
    assert isinstance(known, SizedProbeSamples)
    assert len(known) == 12
    assert not isinstance(watch(iter(samples()), found.program), SizedProbeSamples)
    assert len(probe_inputs(found.program, None, known)) == 8
    assert len(probe_inputs(found.program, samples()[0], None)) == 4
    assert probe_inputs(found.program, None, None) == []
