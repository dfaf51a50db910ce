"""What a compilation would do, found out before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from svdqc.compiler.driver.precisions import resolved
from svdqc.compiler.driver.report import describe_region, launches_per_block
from svdqc.compiler.driver.support import unsupported_ops
from svdqc.compiler.passes.fuse import fuse
from svdqc.compiler.passes.linear_groups import weight_node
from svdqc.compiler.passes.pipeline import CANONICALIZE, LOWER, run_passes
from svdqc.compiler.passes.select_layers import select_layers
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import num_bytes
from svdqc.frontends import capture


def inspect_model(
    model: Any,
    inputs: Mapping[str, Any] | None = None,
    *,
    target: str = "native",
    recipe: Recipe | None = None,
    dynamic: str | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What would be quantized, kept (and why), fused and refused; sizes in bytes. Only folded constants are read."""
    recipe = resolved(recipe or Recipe(), target)
    program = capture(model, inputs, dynamic=dynamic)
    run_passes(program, CANONICALIZE)
    unsupported = unsupported_ops(program)
    decisions = select_layers(program, recipe)
    stored = sum(_bytes(program, n) for n in _weights(program))
    quantized = [(weight_node(d.linear), d.precision) for d in decisions if d.quantized]
    before = sum(_bytes(program, w) for w, _ in quantized)
    after = sum(_quantized_bytes(w, precision, recipe) for w, precision in quantized)
    report: dict[str, Any] = {
        "name": program.name,
        "origin": program.origin,
        "precision": recipe.precision,
        "inputs": [
            {"name": s.name, "shape": [str(d) for d in s.shape], "dtype": str(s.dtype)}
            for s in program.inputs
        ],
        "outputs": [
            {"name": s.name, "shape": [str(d) for d in s.shape], "dtype": str(s.dtype)}
            for s in program.outputs
        ],
        "dims": {d.name: [d.lo, d.hi, d.multiple] for d in program.dims.values()},
        "quantized": [d.layer for d in decisions if d.quantized],
        "precisions": {d.layer: d.precision for d in decisions if d.quantized},
        "kept": {d.layer: d.reason for d in decisions if not d.quantized},
        "unsupported": unsupported,
        "weight_bytes": stored,
        "compiled_bytes": stored - before + after,
    }
    if not unsupported:
        run_passes(program, LOWER)
        fusion = fuse(program)
        report.update(
            num_launches=len(fusion.regions),
            launches_per_block=launches_per_block([[region] for region in fusion.regions]),
            regions=[describe_region(r) for r in fusion.regions],
        )
    return report


def _weights(program: Any) -> list[Any]:
    return [n for n in program.graph_module.graph.nodes if n.op == "get_attr"]


def _bytes(program: Any, node: Any) -> int:
    return int(program.weights.spec(node.meta["weight"]).num_bytes)


def _quantized_bytes(weight: Any, precision: str, recipe: Recipe) -> int:
    out_features, in_features = (int(s) for s in weight.meta["val"].shape)
    rank = replace(recipe, precision=precision).rank_for(out_features, in_features)
    return num_bytes(precision, out_features, in_features, rank, recipe.group_size)
