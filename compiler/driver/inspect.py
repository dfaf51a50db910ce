"""What a compilation would do, found out before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from svdqc.compiler.driver.compile import _resolved
from svdqc.compiler.driver.report import describe_region, launches_per_block
from svdqc.compiler.driver.support import unsupported_ops
from svdqc.compiler.passes.fuse import fuse
from svdqc.compiler.passes.linear_groups import linear_groups, weight_node
from svdqc.compiler.passes.pipeline import CANONICALIZE, LOWER, run_passes
from svdqc.compiler.passes.select_layers import quantized_groups, select_layers
from svdqc.compiler.quantize.recipe import Recipe
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
    recipe = _resolved(recipe or Recipe(), target)
    program = capture(model, inputs, dynamic=dynamic)
    run_passes(program, CANONICALIZE)
    unsupported = unsupported_ops(program)
    decisions = select_layers(program, recipe)
    groups = quantized_groups(decisions, linear_groups(program))
    stored = sum(_bytes(program, n) for n in _weights(program))
    quantized = [weight_node(n) for g in groups for n in g.linears]
    before = sum(
        w.meta["val"].numel() * w.meta["val"].element_size() for w in quantized if w is not None
    )
    after = sum(_quantized_bytes(w.meta["val"].shape, recipe) for w in quantized if w is not None)
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
            launches_per_block=launches_per_block(fusion.regions),
            regions=[describe_region(r) for r in fusion.regions],
        )
    return report


def _weights(program: Any) -> list[Any]:
    return [n for n in program.graph_module.graph.nodes if n.op == "get_attr"]


def _bytes(program: Any, node: Any) -> int:
    return int(program.weights.spec(node.meta["weight"]).num_bytes)


def _quantized_bytes(shape: Any, recipe: Recipe) -> int:
    """4-bit codes, 16-bit scales per group, 16-bit low-rank factors."""
    out_features, in_features = (int(s) for s in shape)
    rank = recipe.rank_for(out_features, in_features)
    return (
        out_features * in_features // 2
        + 2 * out_features * in_features // recipe.group_size
        + 2 * rank * (out_features + in_features)
    )
