"""linear(x, A), linear(x, B) → slices of linear(x, [A; B]): one product where several read the same input."""

from __future__ import annotations

import torch
from torch.fx import Node

from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import Rewriter, argument, aten, is_call, is_weight_cast, operands
from svdqc.compiler.ir.weights import WeightSpec
from svdqc.compiler.passes.base import PassReport
from svdqc.compiler.passes.linear_groups import LinearGroup, linear_groups, weight_node

MAX_WEIGHT_BYTES = 256 << 20


def merge_linears(program: Program) -> PassReport:
    report, rw = PassReport(), Rewriter(program)
    for group in linear_groups(program):
        reason = _reason_against(group)
        if len(group.linears) > 1 and reason is None:
            _merge(rw, group)
            report.changed["merged"] += len(group.linears)
        elif reason is not None and len(group.linears) > 1:
            report.skipped.append((group.name, reason))
    rw.finish()
    return report


def _reason_against(group: LinearGroup) -> str | None:
    weights = [weight_node(n) for n in group.linears]
    values = [w.meta["val"] for w in weights if w is not None]
    if len({v.dtype for v in values}) != 1:
        return "weights of different types"
    if sum(v.numel() * v.element_size() for v in values) > MAX_WEIGHT_BYTES:
        return "the merged weight would be too large to stream"
    return None


def _merge(rw: Rewriter, group: LinearGroup) -> None:
    first = group.linears[0]
    with rw.after(last_input(rw, group)):
        weight = concatenate_weights(
            rw, [operands(n)[1] for n in group.linears], f"{group.name}~merged.weight"
        )
        bias = concatenate_biases(rw, group)
        merged = rw.call(aten.linear.default, group.x, weight, bias)
        merged.meta["source"] = first.meta.get("source", "")
        replace_by_slices(rw, group, merged)


def last_input(rw: Rewriter, group: LinearGroup) -> Node:
    """The latest node that the merged op reads: it can stand right after it."""
    order = {n: i for i, n in enumerate(rw.graph.nodes)}
    inputs = {i for n in group.linears for i in n.all_input_nodes}
    return max(inputs, key=order.__getitem__)


def replace_by_slices(rw: Rewriter, group: LinearGroup, merged: Node) -> None:
    """Each linear's result is a range of the merged one's columns."""
    pieces, start = [], 0
    for linear in group.linears:
        end = start + int(linear.meta["val"].shape[-1])
        pieces.append(rw.call(aten.slice.Tensor, merged, linear.meta["val"].dim() - 1, start, end))
        start = end
    for linear, piece in zip(
        group.linears, pieces, strict=True
    ):  # the insertion point may be a linear: erase last
        rw.replace(linear, piece)


def concatenate_weights(rw: Rewriter, weights: list[Node], name: str) -> Node:
    """One stored weight made of several along axis 0, read when needed; a cast in front is kept."""
    cast = is_call(weights[0], aten._to_copy.default)
    sources = [w.args[0] if cast else w for w in weights]
    names = [s.meta["weight"] for s in sources]  # type: ignore[union-attr]
    values = [s.meta["val"] for s in sources]  # type: ignore[union-attr]
    store = rw.program.weights
    spec = WeightSpec((sum(int(v.shape[0]) for v in values), *values[0].shape[1:]), values[0].dtype)
    unique, count = name, 0
    while unique in store:
        count += 1
        unique = f"{name}.{count}"
    store.derive(unique, spec, lambda: torch.cat([store.load(n) for n in names]))
    node = rw.weight(unique)
    return (
        rw.call(aten._to_copy.default, node, dtype=weights[0].meta["val"].dtype) if cast else node
    )


def concatenate_biases(rw: Rewriter, group: LinearGroup) -> Node | None:
    biases = [argument(n, 2, "bias") for n in group.linears]
    if all(b is None for b in biases):
        return None
    filled = []
    for linear, bias in zip(group.linears, biases, strict=True):
        if bias is None:
            value = linear.meta["val"]
            bias = rw.constant(
                f"{group.name}~zeros", torch.zeros(int(value.shape[-1]), dtype=value.dtype)
            )
        filled.append(bias)
    kinds = {
        (b.op, str(b.target) if b.op == "call_function" else "", b.meta["val"].dtype)
        for b in filled
    }
    if len(kinds) == 1 and _is_plain(filled[0]):
        return concatenate_weights(rw, filled, f"{group.name}~merged.bias")
    return rw.call(aten.cat.default, filled, 0)


def _is_plain(node: Node) -> bool:
    return node.op == "get_attr" or is_weight_cast(node)
