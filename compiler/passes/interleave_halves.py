"""f(y[:n], y[n:]) of a linear y → the same of a linear whose columns alternate in blocks: both halves lie in one tile.

    columns of y          a a a a … b b b b …
    of the linear here    a a b b a a b b …       blocks of 32: what is computed of both halves mixes 64 columns

Gated activations are such functions. y may also be a part of a merged product, with the others left as they are.
The weight's rows, its scales', the up-projection's and the bias are stored in that order. For GPUs, which cut products
along their columns; where whole rows are computed there is nothing to gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.ops.registry import rule_of
from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import Rewriter, argument, aten, is_call, is_weight_cast
from svdqc.compiler.ir.weights import WeightSpec
from svdqc.compiler.passes.base import PassReport

BLOCK = 32
OF_COLUMNS = {anchors.LINEAR: (1, 2), anchors.LINEAR_S4: (3, 4, 5, 6)}
OF_COLUMNS[anchors.LINEAR_CODED] = OF_COLUMNS[anchors.LINEAR_S4]
"""By anchor, the operands that have a row for every column of the result."""


def interleave_halves(program: Program) -> PassReport:
    report, rw = PassReport(), Rewriter(program)
    for node in list(rw.graph.nodes):
        if node.op != "call_function" or str(node.target) not in OF_COLUMNS:
            continue
        slices = _slices(node)
        pairs = _pairs(slices)
        if pairs and all(_stored(operand) is not None for operand in _operands(node)):
            _interleave(rw, node, slices, pairs)
            report.changed["interleaved"] += len(pairs)
        elif pairs:
            report.skipped.append((node.meta.get("source", ""), "an operand is computed"))
    rw.finish()
    return report


@dataclass(frozen=True)
class _Slice:
    """Columns [start, end) of a product."""

    node: Node
    start: int
    end: int


def _slices(linear: Node) -> list[_Slice]:
    """The parts of a linear's columns, in order; none if something else reads it, or if they overlap."""
    found = _parts(linear, 0)
    found.sort(key=lambda part: part.start)
    if any(a.end > b.start for a, b in pairwise(found)):
        return []
    return [] if any(part.node is linear for part in found) else found


def _parts(value: Node, first: int) -> list[_Slice]:
    """What is read of a value that begins at column `first`: slices, of slices too, or all of it."""
    width = int(value.meta["val"].shape[-1])
    found: list[_Slice] = []
    for user in value.users:
        start = _start(user)
        if start is None:
            return [_Slice(value, first, first + width)]
        found.extend(_parts(user, first + (start + width if start < 0 else start)))
    return found


def _start(node: Node) -> int | None:
    """The first column that a node takes of a value, if it is a slice of neighbouring ones."""
    if not is_call(node, aten.slice.Tensor) or argument(node, 4, "step", 1) != 1:
        return None
    start, last = argument(node, 2, "start") or 0, node.meta["val"].dim() - 1
    along = int(argument(node, 1, "dim", 0)) % (last + 1) == last
    return start if along and isinstance(start, int) else None


def _pairs(slices: list[_Slice]) -> list[tuple[_Slice, _Slice]]:
    """Neighbours that are halves of something, each in one pair."""
    found: list[tuple[_Slice, _Slice]] = []
    for first, second in pairwise(slices):
        if (not found or found[-1][1] is not first) and _are_halves(first, second):
            found.append((first, second))
    return found


def _are_halves(first: _Slice, second: _Slice) -> bool:
    """Whether two parts side by side are as wide as each other, and something of their size is computed of both."""
    width = first.end - first.start
    if first.end != second.start or second.end - second.start != width:
        return False
    if width % BLOCK or first.start % (2 * BLOCK):
        return False
    both = _pointwise_readers(first.node) & _pointwise_readers(second.node)
    return any(str(n.meta["val"].shape) == str(first.node.meta["val"].shape) for n in both)


def _pointwise_readers(value: Node) -> set[Node]:
    found: set[Node] = set()
    stack = [value]
    while stack:
        for user in stack.pop().users:
            rule = rule_of(user)
            if rule is not None and rule.kind == "pointwise" and user not in found:
                found.add(user)
                stack.append(user)
    return found


def _operands(linear: Node) -> list[Node]:
    positions = OF_COLUMNS[str(linear.target)]
    found = [linear.args[i] for i in positions if i < len(linear.args)]
    return [operand for operand in found if isinstance(operand, Node)]


def _stored(operand: Node) -> Node | None:
    """The stored weight behind an operand."""
    if is_weight_cast(operand):
        operand = operand.all_input_nodes[0]
    return operand if operand.op == "get_attr" else None


def _interleave(
    rw: Rewriter, linear: Node, slices: list[_Slice], pairs: list[tuple[_Slice, _Slice]]
) -> None:
    order = torch.arange(int(linear.meta["val"].shape[-1]))
    for first, second in pairs:
        halves = order[first.start : second.end].reshape(2, -1, BLOCK)
        order[first.start : second.end] = halves.transpose(0, 1).flatten()
    with rw.after(linear):
        args: list[Any] = list(linear.args)
        for position in OF_COLUMNS[str(linear.target)]:
            if position < len(args) and isinstance(args[position], Node):
                args[position] = _reordered(rw, args[position], order)
        mixed = rw.call(linear.target, *args, **linear.kwargs)
        mixed.meta["source"] = linear.meta.get("source", "")
        lead = [
            size if isinstance(size, int) else rw.call(aten.sym_size.int, mixed, axis)
            for axis, size in enumerate(linear.meta["val"].shape[:-1])
        ]
        replacements = [
            (half.node, part)
            for first, second in pairs
            for half, part in zip(
                (first, second), _halves(rw, mixed, lead, first, second), strict=True
            )
        ]
    for reader in list(linear.users):
        reader.replace_input_with(linear, mixed)
    for old, new in replacements:
        rw.replace(old, new)


def _halves(
    rw: Rewriter, mixed: Node, lead: list[Any], first: _Slice, second: _Slice
) -> list[Node]:
    """The columns of each half, from where they lie now."""
    width = first.end - first.start
    both = rw.call(aten.slice.Tensor, mixed, len(lead), first.start, second.end)
    blocks = rw.call(aten.reshape.default, both, [*lead, width // BLOCK, 2, BLOCK])
    parts = [rw.call(aten.select.int, blocks, len(lead) + 1, i) for i in range(2)]
    return [rw.call(aten.reshape.default, part, [*lead, width]) for part in parts]


def _reordered(rw: Rewriter, operand: Node, order: torch.Tensor) -> Node:
    """The operand with its rows in this order, read from its stored weight when it is needed; a cast is kept."""
    source, store = _stored(operand), rw.program.weights
    assert source is not None
    name, value = source.meta["weight"], source.meta["val"]
    unique, count = f"{name}~halves", 0
    while unique in store:
        count += 1
        unique = f"{name}~halves.{count}"
    spec = WeightSpec(tuple(int(s) for s in value.shape), value.dtype)
    store.derive(unique, spec, lambda: store.load(name)[order].contiguous())
    weight = rw.weight(unique)
    if source is operand:
        return weight
    return rw.call(aten._to_copy.default, weight, dtype=operand.meta["val"].dtype)
