"""Fold what depends on weights alone, merge equal ops, drop ops that change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import Rewriter, argument, aten, concat_parts, is_call, is_tensor
from svdqc.compiler.ir.weights import WeightSpec
from svdqc.compiler.passes.base import PassReport

FOLD_BYTES = 16 << 20
"""A folded value may be this much larger than what it is made from."""


def simplify(program: Program) -> PassReport:
    report, rewriter = PassReport(), Rewriter(program)
    _hoist_weights(rewriter)
    _drop_identities(rewriter, report)
    _merge_equal(rewriter, report)
    _fold_constants(rewriter, report)
    _merge_equal(rewriter, report)
    rewriter.finish()
    return report


def _hoist_weights(rw: Rewriter) -> None:
    """Weights and their casts come first, so that any op may read any weight."""
    anchor = next((n for n in rw.graph.nodes if n.op == "call_function"), None)
    if anchor is None:
        return
    for node in list(rw.graph.nodes):
        cast = node.target is aten._to_copy.default and node.args[0].op == "get_attr"
        if (node.op == "get_attr" or cast) and node is not anchor:
            anchor.prepend(node)


def _drop_identities(rw: Rewriter, report: PassReport) -> None:
    for node in list(rw.graph.nodes):
        if is_call(node, aten.cat.default) and (whole := _rejoined(node)) is not None:
            report.changed["rejoined slices"] += 1
            rw.replace(node, whole)
            continue
        if node.op != "call_function" or not node.args or not is_tensor(node.args[0]):
            continue
        if _is_identity(node):
            report.changed[f"identity {node.target}"] += 1
            rw.replace(node, node.args[0])


def _is_identity(node: Node) -> bool:
    source, value = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    if node.target in (
        aten.clone.default,
        aten.alias.default,
        aten.detach.default,
        aten.contiguous.default,
        aten.lift_fresh_copy.default,
        aten.dropout.default,
    ):
        return True
    same = (
        isinstance(value, torch.Tensor)
        and value.dtype == source.dtype
        and str(value.shape) == str(source.shape)
    )
    if not same:
        return False
    if node.target in (
        aten._to_copy.default,
        aten.expand.default,
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.squeeze.dims,
    ):
        return True
    if node.target is aten.slice.Tensor:
        return bool(argument(node, 4, "step", 1) == 1)
    if node.target is aten.permute.default:
        return list(node.args[1]) == list(range(len(node.args[1])))  # type: ignore[arg-type]
    if node.target in (aten.mul.Tensor, aten.div.Tensor):
        return _is_number(node.args[1], 1)
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        return _is_number(node.args[1], 0)
    return False


def _rejoined(cat: Node) -> Node | None:
    """x for cat(x[:a], x[a:b], x[b:]) along the axis that was cut."""
    pieces, axis = concat_parts(cat)
    position: Any = 0
    source: Node | None = None
    for piece in pieces:
        if not is_call(piece, aten.slice.Tensor) or argument(piece, 4, "step", 1) != 1:
            return None
        if int(argument(piece, 1, "dim", 0)) % cat.meta["val"].dim() != axis:
            return None
        start = argument(piece, 2, "start") or 0
        if (
            (source is not None and piece.args[0] is not source)
            or isinstance(start, Node)
            or str(start) != str(position)
        ):
            return None
        (source, *_), position = piece.all_input_nodes, position + piece.meta["val"].shape[axis]
    if source is None or str(source.meta["val"].shape) != str(cat.meta["val"].shape):
        return None
    return source


def _is_number(value: Any, number: int) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == number


def _merge_equal(rw: Rewriter, report: PassReport) -> None:
    """Common subexpressions: equal op, equal operands."""
    seen: dict[Any, Node] = {}
    for node in list(rw.graph.nodes):
        if node.op == "get_attr":
            key: Any = ("weight", node.meta["weight"])
        elif node.op == "call_function":
            key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        else:
            continue
        if key in seen:
            report.changed["equal"] += 1
            rw.replace(node, seen[key])
        else:
            seen[key] = node


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(v) for v in value)
    if isinstance(value, dict):
        return tuple(sorted((k, _hashable(v)) for k, v in value.items()))
    if isinstance(value, torch.SymInt):
        return ("symint", str(value))
    if isinstance(value, (bool, int, float)):
        return (type(value).__name__, repr(value))
    return value


def _fold_constants(rw: Rewriter, report: PassReport) -> None:
    """Evaluate every maximal value that depends on weights and constants only, lazily and by name.

    A cast of a weight stays in the graph, since kernels read 16-bit weights directly.
    """
    constant: dict[Node, bool] = {}
    for node in rw.graph.nodes:
        if node.op == "get_attr":
            constant[node] = True
        elif node.op == "call_function":
            inputs = node.all_input_nodes
            constant[node] = (
                (bool(inputs) or node.target in (aten.arange.start_step,))
                and all(constant[i] for i in inputs)
                and all(map(_is_static, _results(node)))
                and not _mentions_symint(node)
            )
        else:
            constant[node] = False
    for node in list(rw.graph.nodes):
        if not constant[node] or node.op == "get_attr" or not _worth_folding(node, constant):
            continue
        with rw.before(node):
            rw.replace(node, _folded(rw, node))
        report.changed["folded"] += 1


def _results(node: Node) -> Sequence[Any]:
    """The value of a node, or its values."""
    value = node.meta["val"]
    return value if isinstance(value, (tuple, list)) else (value,)


def _is_static(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and all(isinstance(s, int) for s in value.shape)


def _mentions_symint(node: Node) -> bool:
    flat = torch.utils._pytree.tree_leaves((node.args, node.kwargs))
    return any(isinstance(v, torch.SymInt) for v in flat)


def _worth_folding(node: Node, constant: dict[Node, bool]) -> bool:
    """Only roots are folded (everything below comes along); small, and more than a cast of a stored weight."""
    several = not isinstance(node.meta["val"], torch.Tensor)
    if several or all(constant.get(user, False) for user in node.users):
        return False
    if node.target is aten._to_copy.default and node.args[0].op == "get_attr":  # type: ignore[union-attr]
        return False
    value = node.meta["val"]
    made_from = sum(i.meta["val"].numel() * i.meta["val"].element_size() for i in _leaves(node))
    return bool(prod(value.shape) * value.element_size() <= made_from + FOLD_BYTES)


def _leaves(node: Node) -> set[Node]:
    if node.op == "get_attr":
        return {node}
    return {leaf for i in node.all_input_nodes for leaf in _leaves(i)}


def _folded(rw: Rewriter, node: Node) -> Node:
    weights = rw.program.weights
    stem = next(iter(sorted(leaf.meta["weight"] for leaf in _leaves(node))), "constant")
    name, count = f"{stem}~{node.name}", 0
    while name in weights:
        count += 1
        name = f"{stem}~{node.name}.{count}"
    value = node.meta["val"]
    evaluate = _evaluator(node, weights.load)
    weights.derive(name, WeightSpec(tuple(value.shape), value.dtype), evaluate)
    return rw.weight(name)


def _evaluator(node: Node, load: Any) -> Any:
    """A function that computes `node` from stored weights; it keeps no graph alive but these few ops."""
    if node.op == "get_attr":
        name = node.meta["weight"]
        return lambda: load(name)
    inputs = {i: _evaluator(i, load) for i in node.all_input_nodes}
    target, args, kwargs = node.target, node.args, node.kwargs

    def evaluate() -> torch.Tensor:
        values = {i: f() for i, f in inputs.items()}
        with torch.no_grad():
            result: torch.Tensor = target(  # type: ignore[operator]
                *map_arg(args, lambda n: values[n]), **map_arg(kwargs, lambda n: values[n])
            )
        return result

    return evaluate
