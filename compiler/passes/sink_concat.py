"""f(cat(a, b)) → cat(f(a), f(b)) on the way to an attention: each part's work fuses with what produced it.

Text and image tokens are concatenated in front of the attention, and rotary embeddings come after the concatenation.
Pushed up into the parts, they fuse into the epilogue of the projections.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.ops.registry import rule_of
from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import Rewriter, aten, concat_parts, is_call, is_tensor
from svdqc.compiler.passes.base import PassReport

_RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def sink_concat(program: Program) -> PassReport:
    report, rw = PassReport(), Rewriter(program)
    for node in list(rw.graph.nodes):
        if is_call(node, aten.cat.default) and _bound_for_attention(node):
            sunk = _sink(rw, node)
            if sunk:
                report.changed["sunk"] += sunk
            else:
                report.skipped.append((node.meta.get("source", ""), "its readers mix the parts"))
    rw.finish()
    return report


def _bound_for_attention(cat: Node) -> bool:
    """Whether every path from here leads through pointwise ops and views to an attention, with work between.

    Tokens are concatenated along an axis before the last; the last one holds features.
    """
    if concat_parts(cat)[1] == cat.meta["val"].dim() - 1:
        return False
    stack, seen, work = list(cat.users), set(), 0
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if str(node.target) in (anchors.ATTENTION, anchors.BMM):
            continue
        rule = rule_of(node)
        if rule is None or rule.kind not in ("pointwise", "view"):
            return False
        work += rule.kind == "pointwise"
        stack.extend(node.users)
    return work > 0


class _Split:
    """A value known to be a concatenation: its parts along an axis."""

    def __init__(self, parts: list[Node], axis: int) -> None:
        self.parts, self.axis = parts, axis
        self.sizes = [p.meta["val"].shape[axis] for p in parts]


def _sink(rw: Rewriter, cat: Node) -> int:
    """Rewrite the readers of `cat` as long as they keep its parts apart; returns how many ops were split."""
    pieces, axis = concat_parts(cat)
    if any(not isinstance(p.meta["val"].shape[axis], int) for p in pieces):
        return 0
    splits = {cat: _Split(pieces, axis)}
    order = {n: i for i, n in enumerate(rw.graph.nodes)}
    closure: set[Node] = set()
    stack = list(cat.users)
    while stack:
        node = stack.pop()
        if node not in closure and str(node.target) not in (anchors.ATTENTION, anchors.BMM):
            closure.add(node)
            stack.extend(node.users)
    done: list[Node] = []
    for node in sorted(closure, key=order.__getitem__):
        with rw.before(node):
            split = _split_op(rw, node, splits)
        if split is None:
            return 0
        splits[node] = split
        done.append(node)
    for node in done:
        if any(str(u.target) in (anchors.ATTENTION, anchors.BMM) for u in node.users):
            with rw.after(node):
                joined = rw.call(aten.cat.default, splits[node].parts, splits[node].axis)
            node.replace_all_uses_with(joined)
    return len(done)


def _split_op(rw: Rewriter, node: Node, splits: dict[Node, _Split]) -> _Split | None:
    """`node` applied to each part, or None if it mixes parts."""
    operands = [n for n in node.all_input_nodes if n in splits]
    lead = splits[operands[0]]
    rank = node.meta["val"].dim()
    if node.target is aten.cat.default:
        return _split_cat(rw, node, splits)
    rule = rule_of(node)
    assert rule is not None
    if rule.kind == "pointwise":
        axis = lead.axis + rank - operands[0].meta["val"].dim()
        parts = []
        for position in range(len(lead.parts)):
            args = [_part(rw, a, splits, position, axis, rank, lead) for a in node.args]
            if any(a is _MIXED for a in args):
                return None
            parts.append(rw.call(node.target, *args, **node.kwargs))
        return _Split(parts, axis)
    return _split_view(rw, node, lead, rank)


_MIXED = object()


def _part(
    rw: Rewriter,
    value: Any,
    splits: dict[Node, _Split],
    position: int,
    axis: int,
    rank: int,
    lead: _Split,
) -> Any:
    """The operand that belongs to one part of the result."""
    if not is_tensor(value):
        return value
    own_axis = axis - (rank - value.meta["val"].dim())
    if value in splits:
        split = splits[value]
        same = split.axis == own_axis and split.sizes == lead.sizes
        return split.parts[position] if same else _MIXED
    if own_axis < 0 or value.meta["val"].shape[own_axis] == 1:
        return value
    start = sum(lead.sizes[:position])
    return rw.call(aten.slice.Tensor, value, own_axis, start, start + lead.sizes[position])


def _split_cat(rw: Rewriter, node: Node, splits: dict[Node, _Split]) -> _Split | None:
    """A concatenation along another axis of values that are split alike."""
    pieces, axis = concat_parts(node)
    if any(p not in splits for p in pieces):
        return None
    lead = splits[pieces[0]]
    if axis == lead.axis or any(
        splits[p].axis != lead.axis or splits[p].sizes != lead.sizes for p in pieces
    ):
        return None
    parts = [
        rw.call(aten.cat.default, [splits[p].parts[i] for p in pieces], axis)
        for i in range(len(lead.parts))
    ]
    return _Split(parts, lead.axis)


def _split_view(rw: Rewriter, node: Node, lead: _Split, rank: int) -> _Split | None:
    source = node.args[0]
    shape = list(source.meta["val"].shape)  # type: ignore[union-attr]
    target = node.target
    if target in _RESHAPES:
        return _split_reshape(rw, node, lead, shape)
    axis = lead.axis
    if target is aten.permute.default:
        order = [int(a) % rank for a in node.args[1]]  # type: ignore[union-attr,arg-type]
        axis = order.index(lead.axis)
    elif target is aten.unsqueeze.default:
        axis += int(node.args[1]) % rank <= lead.axis  # type: ignore[arg-type]
    elif target in (aten.squeeze.dim, aten.squeeze.dims):
        dims = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
        dropped = {int(d) % len(shape) for d in dims}  # type: ignore[arg-type]
        if lead.axis in dropped:
            return None
        axis -= sum(d < lead.axis for d in dropped)
    elif target is aten.select.int:
        chosen = int(node.args[1]) % len(shape)  # type: ignore[arg-type]
        if chosen == lead.axis:
            return None
        axis -= chosen < lead.axis
    elif target is aten.slice.Tensor:
        if int(node.args[1] if len(node.args) > 1 else 0) % len(shape) == lead.axis:  # type: ignore[arg-type]
            return None
    else:
        return None
    return _Split([rw.call(target, p, *node.args[1:], **node.kwargs) for p in lead.parts], axis)


def _split_reshape(rw: Rewriter, node: Node, lead: _Split, shape: list[Any]) -> _Split | None:
    """The split axis must come through a reshape whole."""
    out = list(node.meta["val"].shape)
    sizes = list(shape)
    if not all(isinstance(s, int) for s in out[1:] + sizes[1:]):
        return None
    before = _product(sizes[: lead.axis])
    for axis, size in enumerate(out):
        if _product(out[:axis]) == before and size == sizes[lead.axis]:
            if axis > 0 and not isinstance(out[0], int) and not _keeps_first(lead, out[0]):
                return None
            parts = [
                rw.call(aten.reshape.default, p, [*_sizes(rw, p, out, axis), n, *out[axis + 1 :]])
                for p, n in zip(lead.parts, lead.sizes, strict=True)
            ]
            return _Split(parts, axis)
    return None


def _keeps_first(lead: _Split, size: Any) -> bool:
    return lead.axis > 0 and all(str(p.meta["val"].shape[0]) == str(size) for p in lead.parts)


def _sizes(rw: Rewriter, part: Node, out: list[Any], axis: int) -> list[Any]:
    """out[:axis]; only the first may be symbolic, and then it is the part's own."""
    return [s if isinstance(s, int) else rw.call(aten.sym_size.int, part, 0) for s in out[:axis]]


def _product(sizes: list[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * size
    return total
