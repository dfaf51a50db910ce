"""What a compilation did, as data: the same dict goes to the user, the artifact and `svdqc inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from svdqc.compiler.codegen.lower import label_of
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.driver.variants import Family
from svdqc.compiler.passes.allocate import Allocation
from svdqc.compiler.passes.linear_groups import block_name
from svdqc.compiler.passes.select_layers import Decision
from svdqc.compiler.quantize.recipe import Recipe


def compile_report(
    family: Family,
    decisions: list[Decision],
    records: list[dict[str, Any]],
    recipe: Recipe,
    allocation: Allocation | None = None,
) -> dict[str, Any]:
    """Layers, regions, launches per block, sizes, of one family; how bytes were spent, where that was a choice."""
    program, lowered, fusion = family.program, family.lowered, family.fusion
    plan = lowered.plan
    weight_bytes = sum(t.num_bytes for t in lowered.tensors)
    return {
        "name": program.name,
        "origin": program.origin,
        "precision": recipe.precision,
        "precisions": _layers_by_precision(records),
        "quantized": [d.layer for d in decisions if d.quantized],
        "kept": {d.layer: d.reason for d in decisions if not d.quantized},
        "layers": records,
        "num_kernels": len(plan.kernels),
        "num_launches": len(plan.launches),
        "launches_per_block": launches_per_block(lowered.launches),
        "regions": [describe_region(r) for r in fusion.regions],
        "weight_bytes": weight_bytes,
        "arena_bytes": plan.arena_bytes,
        **({} if allocation is None else {"allocation": allocation_report(allocation)}),
    }


def allocation_report(allocation: Allocation) -> dict[str, Any]:
    """The summary, and for each group what it got and why; kept groups too."""
    chosen = [{"name": name, **layer} for name, layer in allocation.layers.items()]
    return {**allocation.summary, "choices": chosen}


def _layers_by_precision(records: list[dict[str, Any]]) -> dict[str, int]:
    """How many quantized layers have each precision."""
    counts: Counter[str] = Counter()
    for record in records:
        counts[record["precision"]] += len(record["layers"])
    return dict(sorted(counts.items()))


def launches_per_block(launches: Sequence[Sequence[Region]]) -> dict[str, int]:
    """Launches by repeated block, that of their first region; "" holds what lies outside."""
    return dict(Counter(block_name(label_of(regions[0]) + ".") for regions in launches))


def describe_region(region: Region) -> dict[str, Any]:
    return {
        "source": label_of(region),
        "anchor": str(region.anchor.target).split(".")[1] if region.anchor is not None else "",
        "ops": [str(n.target).split(".")[1] for n in region.nodes],
        "rows": str(region.layout.num_rows),
    }
