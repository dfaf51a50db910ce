"""Which precision and rank each group of linears gets: `Recipe.rank` "auto" and `Recipe.budget`.

Three measurements, then arithmetic:

    sensitivity   what a layer's error does to the model's output            (passes/allocate_probe.py)
    candidates    what each precision and rank costs and misses              (quantize/budget_curves.py)
    expected      = sum over layers of sensitivity * error^2, minimised      (quantize/budget.py)

Rank "auto" without a budget spends the bytes of rank 32 everywhere, in one precision. Sensitivities need inputs like
those the model will see: on made-up ones a trained model is another (on the emoji model they choose ranks that are
worse than rank 32 everywhere), so that without samples and inputs every layer counts alike, and rank "auto" is 32.
A budget counts all weights of
the model, those that are kept too; layers may then also stay in 16 bits and, under precision "auto", take 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.allocate_probe import Probed, probe_groups
from svdqc.compiler.passes.linear_groups import LinearGroup, weight_node
from svdqc.compiler.passes.select_layers import Decision
from svdqc.compiler.passes.svdquant import in_order, load_group
from svdqc.compiler.quantize.budget import Option, allocate, parse_budget
from svdqc.compiler.quantize.budget_curves import Candidate, candidates
from svdqc.compiler.quantize.linear import LinearSamples
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import num_bytes, scheme_of

EQUAL_RANK = 32
"""Rank "auto" spends what this rank would cost everywhere."""
_KEPT = "16 bits: its error would cost more than its bytes"

AllocationProgress = Callable[[str, int, int, str], None]
"""(stage, done, total, what is worked on): stages "probe" and "draft"."""


@dataclass(frozen=True)
class Allocation:
    """recipes by group name; `summary` and `layers` are for the report.

    layers: a record per group: name, precision, rank, num_bytes, expected_error (of the layer's output, relative),
    sensitivity, expected_share (of the model's output energy).
    """

    recipes: dict[str, Recipe]
    summary: dict[str, Any]
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)


def wants_allocation(recipe: Recipe) -> bool:
    return recipe.precision != "none" and (recipe.rank == "auto" or recipe.budget is not None)


def allocate_recipes(
    program: Program,
    groups: list[LinearGroup],
    samples: Mapping[str, LinearSamples],
    recipes: Mapping[str, Recipe],
    probes: Sequence[Mapping[str, Tensor]],
    *,
    mixed: bool = False,
    progress: AllocationProgress | None = None,
    jobs: int = 0,
) -> Allocation:
    """Choose a recipe for each group.

    recipes  of each group by its name, as they would be without a choice; all ask for the same rank and budget
    probes   named inputs to measure sensitivities on
    mixed    8-bit precisions may be chosen too
    """
    if not groups:
        return Allocation({}, {})
    recipe = recipes[groups[0].name]
    report = progress or (lambda stage, done, total, name: None)
    probed, notes = _probed(program, groups, probes, recipe, report)
    if notes and recipe.budget is None:
        return _unprobed(program, groups, recipes, notes)
    weight = probed.sensitivity
    found: dict[str, list[Candidate]] = {}
    report("draft", 0, len(groups), "")

    def drafted(group: LinearGroup) -> list[Candidate]:
        wanted = _precisions(recipes[group.name], mixed)
        matrix, judge = load_group(program, group), probed.tokens.get(group.name)
        found = samples.get(group.name)
        return candidates(matrix, found, recipes[group.name], wanted, judge, group.name)

    for done, (group, options) in enumerate(
        zip(groups, in_order(groups, drafted, jobs), strict=True)
    ):
        found[group.name] = options
        report("draft", done + 1, len(groups), group.name)
    equal = sum(_equal_bytes(program, g, recipes[g.name]) for g in groups)
    total, kept = _allowed_bytes(program, groups, recipe, equal)
    costs = [
        [Option(c.num_bytes, weight[g.name] * c.error**2) for c in found[g.name]] for g in groups
    ]
    picked = allocate(costs, total, kept)
    chosen = {g.name: found[g.name][i] for g, i in zip(groups, picked, strict=True)}
    layers = {name: _record(c, weight[name]) for name, c in chosen.items()}
    spent = sum(c.num_bytes for c in chosen.values())
    summary = {
        "budget": recipe.budget,
        "budget_bytes": total,
        "spent_bytes": spent + kept,
        "kept_bytes": kept,
        "num_probes": len(probes),
        "expected_error": _total(layers.values()),
        "expected_error_at_rank_32": _equal_error(found, recipes, weight),
        "notes": notes,
    }
    return Allocation({n: _applied(recipes[n], c) for n, c in chosen.items()}, summary, layers)


def decided(
    decisions: list[Decision], groups: list[LinearGroup], allocation: Allocation
) -> list[Decision]:
    """The decisions with the precisions that were chosen."""
    by_linear = {n: allocation.recipes[g.name].precision for g in groups for n in g.linears}
    changed = []
    for d in decisions:
        precision = by_linear.get(d.linear, d.precision)
        if precision == "none" and d.quantized:
            d = replace(d, precision=precision, reason=_KEPT)
        elif precision != d.precision:
            d = replace(d, precision=precision)
        changed.append(d)
    return changed


def _probed(
    program: Program,
    groups: list[LinearGroup],
    probes: Sequence[Mapping[str, Tensor]],
    recipe: Recipe,
    report: AllocationProgress,
) -> tuple[Probed, list[str]]:
    """Equal sensitivities, and a note, where the model gives no useful answer."""
    equal = Probed(dict.fromkeys((g.name for g in groups), 1.0), {})
    if not probes:
        return equal, ["nothing to probe the model with (give calibration samples or inputs)"]
    try:
        found = probe_groups(
            program, groups, probes, recipe.seed, lambda i, n: report("probe", i, n, "")
        )
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return equal, [f"the model cannot be differentiated: {reason}"]
    sizes = list(found.sensitivity.values())
    if not all(math.isfinite(s) for s in sizes) or max(sizes) == 0.0:
        return equal, ["the probes do not reach the model's output"]
    return found, []


def _unprobed(
    program: Program, groups: list[LinearGroup], recipes: Mapping[str, Recipe], notes: list[str]
) -> Allocation:
    equal = {name: replace(recipe, rank=EQUAL_RANK) for name, recipe in recipes.items()}
    layers = {
        g.name: {
            "precision": equal[g.name].precision,
            "rank": equal[g.name].rank_for(*_shape(program, g)),
            "num_bytes": _equal_bytes(program, g, equal[g.name]),
        }
        for g in groups
    }
    notes = [f"{note}; rank {EQUAL_RANK} everywhere" for note in notes]
    return Allocation(equal, {"budget": None, "num_probes": 0, "notes": notes}, layers)


def _precisions(recipe: Recipe, mixed: bool) -> tuple[str, ...]:
    """What a group may be stored in: its own precision and, under a budget, more bits."""
    if recipe.budget is None:
        return (recipe.precision,)
    wider = ("int8",) if mixed and scheme_of(recipe.precision).code_bits == 4 else ()
    return (recipe.precision, *wider, "none")


def _shape(program: Program, group: LinearGroup) -> tuple[int, int]:
    """[out_features, in_features] of the stacked weights."""
    shapes = [program.weights.spec(_name(n)).shape for n in group.linears]
    return sum(s[0] for s in shapes), shapes[0][1]


def _name(linear: Any) -> str:
    node = weight_node(linear)
    assert node is not None
    return str(node.meta["weight"])


def _equal_bytes(program: Program, group: LinearGroup, recipe: Recipe) -> int:
    out_features, in_features = _shape(program, group)
    rank = replace(recipe, rank=EQUAL_RANK).rank_for(out_features, in_features)
    return num_bytes(recipe.precision, out_features, in_features, rank, recipe.group_size)


def _allowed_bytes(
    program: Program, groups: list[LinearGroup], recipe: Recipe, equal: int
) -> tuple[int, int]:
    """(bytes allowed, bytes of the weights that are not chosen for); the first includes the second."""
    own = {_name(n) for g in groups for n in g.linears}
    stored = {str(n.meta["weight"]) for n in program.graph_module.graph.nodes if n.op == "get_attr"}
    specs = {name: program.weights.spec(name) for name in sorted(stored)}
    kept = sum(spec.num_bytes for name, spec in specs.items() if name not in own)
    if recipe.budget is None:
        return equal + kept, kept
    in_16_bits = sum(2 * math.prod(spec.shape) for spec in specs.values())
    return parse_budget(recipe.budget).bytes_of(in_16_bits), kept


def _applied(recipe: Recipe, chosen: Candidate) -> Recipe:
    return replace(recipe, precision=chosen.precision, rank=chosen.rank, budget=None)


def _record(chosen: Candidate, sensitivity: float) -> dict[str, Any]:
    return {
        "precision": chosen.precision,
        "rank": chosen.rank,
        "num_bytes": chosen.num_bytes,
        "expected_error": chosen.error,
        "sensitivity": sensitivity,
        "expected_share": sensitivity * chosen.error**2,
    }


def _total(layers: Any) -> float:
    """Expected relative error of the model's output."""
    return math.sqrt(sum(layer["expected_share"] for layer in layers))


def _equal_error(
    found: Mapping[str, list[Candidate]],
    recipes: Mapping[str, Recipe],
    weight: Mapping[str, float],
) -> float:
    """What rank 32 everywhere, in each group's own precision, would miss."""
    total = 0.0
    for name, options in found.items():
        own = [c for c in options if c.precision == recipes[name].precision]
        total += weight[name] * _equal(own).error ** 2
    return math.sqrt(total)


def _equal(options: list[Candidate]) -> Candidate:
    """Rank 32, or the largest below it."""
    return max((c for c in options if c.rank <= EQUAL_RANK), key=lambda c: c.rank)
