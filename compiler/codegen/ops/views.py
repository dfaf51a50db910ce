"""Ops that move no data: they only say where an element comes from."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from svdqc.compiler.codegen.ops.registry import (
    ElementContext,
    Index,
    argument,
    dtype_of,
    element_rule,
)
from svdqc.compiler.codegen.scalar import Const, Scalar, both, compare_index, guarded
from svdqc.compiler.ir.intexpr import ONE, ZERO, IntExpr, maximum, minimum, prod
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.ir.symbols import Shape

RESHAPES = (
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
)


def linearize(idx: Index, shape: Shape) -> IntExpr:
    """Row-major position of `idx` in a dense tensor."""
    position = ZERO
    for i, size in zip(idx, shape, strict=True):
        position = position * size + i
    return position


def delinearize(position: IntExpr, shape: Shape) -> Index:
    """The index at a row-major position."""
    idx: list[IntExpr] = []
    for axis in range(len(shape) - 1, -1, -1):
        if axis == 0:
            idx.append(position if shape[0] != 1 else ZERO)
        else:
            idx.append(position % shape[axis])
            position = position // shape[axis]
    return tuple(reversed(idx))


def reshape_index(idx: Index, shape: Shape, source: Shape) -> Index:
    """Where element `idx` of a reshaped tensor lies in its source; runs of equal sizes need no division."""
    result: list[IntExpr] = []
    for out_axes, in_axes in reshape_groups(shape, source):
        out_sizes = tuple(shape[a] for a in out_axes)
        in_sizes = tuple(source[a] for a in in_axes)
        position = linearize(tuple(idx[a] for a in out_axes), out_sizes)
        result.extend(delinearize(position, in_sizes))
    return tuple(result)


def reshape_groups(out: Shape, source: Shape) -> list[tuple[list[int], list[int]]]:
    """The finest matching runs of axes with equal products, left to right."""
    groups: list[tuple[list[int], list[int]]] = []
    o = s = 0
    while o < len(out) or s < len(source):
        out_axes, in_axes, left, right = [], [], ONE, ONE
        if o < len(out):
            out_axes, left, o = [o], out[o], o + 1
        if s < len(source):
            in_axes, right, s = [s], source[s], s + 1
        while left != right:
            take_out = o < len(out) and (s == len(source) or _smaller(left, right))
            if take_out:
                left, o = left * out[o], o + 1
                out_axes.append(o - 1)
            elif s < len(source):
                right, s = right * source[s], s + 1
                in_axes.append(s - 1)
            else:  # sizes equal only through facts the algebra cannot see: one group of everything
                return [(list(range(len(out))), list(range(len(source))))]
        groups.append((out_axes, in_axes))
    return groups


def _smaller(lhs: IntExpr, rhs: IntExpr) -> bool:
    difference = rhs - lhs
    if difference.lower() > 0:
        return True
    if difference.upper() < 0:
        return False
    return lhs.upper() < rhs.upper()


@element_rule(*RESHAPES, kind="view")
def _reshape(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    source = node.args[0]
    assert isinstance(source, Node)
    return ctx.read(source, reshape_index(idx, ctx.shape(node), ctx.shape(source)))


@element_rule("aten.permute.default", kind="view")
def _permute(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    source, order = _node(node.args[0]), node.args[1]
    own: list[IntExpr] = [ZERO] * len(idx)
    for position, axis in enumerate(order):  # type: ignore[arg-type]
        own[int(axis) % len(idx)] = idx[position]
    return ctx.read(source, tuple(own))


@element_rule("aten.transpose.int", kind="view")
def _transpose(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    a, b = int(node.args[1]) % len(idx), int(node.args[2]) % len(idx)  # type: ignore[arg-type]
    own = list(idx)
    own[a], own[b] = own[b], own[a]
    return ctx.read(_node(node.args[0]), tuple(own))


@element_rule("aten.t.default", "aten.numpy_T.default", kind="view")
def _t(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return ctx.read(_node(node.args[0]), tuple(reversed(idx)))


@element_rule(
    "aten.alias.default",
    "aten.detach.default",
    "aten.lift_fresh_copy.default",
    kind="view",
)
def _alias(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return ctx.read(_node(node.args[0]), idx)


@element_rule("aten.unsqueeze.default", kind="view")
def _unsqueeze(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    axis = int(node.args[1]) % len(idx)  # type: ignore[arg-type]
    return ctx.read(_node(node.args[0]), idx[:axis] + idx[axis + 1 :])


@element_rule("aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default", kind="view")
def _squeeze(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    source = _node(node.args[0])
    shape = ctx.shape(source)
    axes = argument(node, 1, "dim", list(range(len(shape))))
    dropped = {a % len(shape) for a in ([axes] if isinstance(axes, int) else axes)}
    rest = iter(idx)
    own = tuple(ZERO if a in dropped and shape[a] == 1 else next(rest) for a in range(len(shape)))
    return ctx.read(source, own)


@element_rule("aten.expand.default", kind="view")
def _expand(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return ctx.operand(node.args[0], idx, dtype_of(node))


@element_rule("aten.select.int", kind="view")
def _select(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    source = _node(node.args[0])
    shape = ctx.shape(source)
    axis = int(node.args[1]) % len(shape)  # type: ignore[arg-type]
    position = _from_end(ctx.size(node.args[2]), shape[axis])
    return ctx.read(source, (*idx[:axis], position, *idx[axis:]))


def slice_start(ctx: ElementContext, node: Node) -> tuple[int, IntExpr, IntExpr]:
    """(axis, first element, step) of an aten.slice call."""
    shape = ctx.shape(_node(node.args[0]))
    axis = int(argument(node, 1, "dim", 0)) % len(shape)
    start, step = argument(node, 2, "start"), argument(node, 4, "step", 1)
    first = ZERO if start is None else _from_end(ctx.size(start), shape[axis])
    return axis, maximum(minimum(first, shape[axis]), ZERO), ctx.size(step)


@element_rule("aten.slice.Tensor", kind="view")
def _slice(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    axis, first, step = slice_start(ctx, node)
    own = (*idx[:axis], first + idx[axis] * step, *idx[axis + 1 :])
    return ctx.read(_node(node.args[0]), own)


@element_rule("aten.narrow.default", kind="view")
def _narrow(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    axis = int(node.args[1]) % len(idx)  # type: ignore[arg-type]
    source = _node(node.args[0])
    first = _from_end(ctx.size(node.args[2]), ctx.shape(source)[axis])
    return ctx.read(source, (*idx[:axis], idx[axis] + first, *idx[axis + 1 :]))


@element_rule("aten.cat.default", kind="view")
def _cat(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    axis = int(argument(node, 1, "dim", 0)) % len(idx)
    pieces = [piece for piece in node.args[0] if ctx.shape(piece) != (ZERO,)]  # type: ignore[union-attr,arg-type]
    end = ZERO
    result: Scalar | None = None
    branches: list[tuple[Scalar, Scalar]] = []
    for piece in pieces:
        start, end = end, end + ctx.shape(piece)[axis]  # type: ignore[arg-type]
        if idx[axis].lower() >= end.upper() or idx[axis].upper() < start.lower():
            continue
        own = (*idx[:axis], idx[axis] - start, *idx[axis + 1 :])
        branches.append(
            (compare_index(idx[axis], "lt", end), ctx.operand(piece, own, dtype_of(node)))
        )
    for inside, value in reversed(branches):
        result = value if result is None else guarded(inside, value, result)
    assert result is not None, f"{node}: concatenation of nothing"
    return result


@element_rule("aten.stack.default", kind="view")
def _stack(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    axis = int(argument(node, 1, "dim", 0)) % len(idx)
    own = idx[:axis] + idx[axis + 1 :]
    values = [ctx.operand(piece, own, dtype_of(node)) for piece in node.args[0]]  # type: ignore[union-attr]
    result = values[-1]
    for position in range(len(values) - 2, -1, -1):
        result = guarded(compare_index(idx[axis], "lt", position + 1), values[position], result)
    return result


@element_rule("aten.constant_pad_nd.default", kind="view")
def _constant_pad(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    source = _node(node.args[0])
    shape = ctx.shape(source)
    value = ctx.operand(argument(node, 2, "value", 0), idx, dtype_of(node))
    own, inside = list(idx), _true()
    for pair in range(len(node.args[1]) // 2):  # type: ignore[arg-type]
        axis = len(shape) - 1 - pair
        own[axis] = idx[axis] - ctx.size(node.args[1][2 * pair])  # type: ignore[index]
        inside = both(
            inside,
            both(compare_index(own[axis], "ge", 0), compare_index(own[axis], "lt", shape[axis])),
        )
    return guarded(inside, ctx.read(source, tuple(own)), value)


@element_rule("aten.unfold.default", kind="view")
def _unfold(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    """Windows along an axis: their number takes the axis's place, their elements are a new last axis."""
    source = _node(node.args[0])
    axis = int(node.args[1]) % max(len(idx) - 1, 1)  # type: ignore[arg-type]
    place = idx[axis] * ctx.size(node.args[3]) + idx[-1]  # type: ignore[arg-type]
    own = (*idx[:axis], place, *idx[axis + 1 : -1])
    return ctx.read(source, own[: len(ctx.shape(source))])


@element_rule("aten.diagonal.default", kind="view")
def _diagonal(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    source = _node(node.args[0])
    rank = len(ctx.shape(source))
    offset = int(argument(node, 1, "offset", 0))
    first, second = (int(argument(node, p, f"dim{p - 1}", p - 2)) % rank for p in (2, 3))
    rest = iter(idx[:-1])
    own = [ZERO if axis in (first, second) else next(rest) for axis in range(rank)]
    own[first], own[second] = idx[-1] + max(-offset, 0), idx[-1] + max(offset, 0)
    return ctx.read(source, tuple(own))


@element_rule("aten.flip.default", kind="view")
def _flip(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    source = _node(node.args[0])
    shape, own = ctx.shape(source), list(idx)
    for axis in node.args[1]:  # type: ignore[union-attr]
        a = int(axis) % len(shape)  # type: ignore[arg-type]
        own[a] = shape[a] - 1 - idx[a]
    return ctx.read(source, tuple(own))


@element_rule("aten.roll.default", kind="view")
def _roll(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    source = _node(node.args[0])
    shape, own = ctx.shape(source), list(idx)
    axes = argument(node, 2, "dims", [])
    if not axes:  # the flattened tensor is rolled
        total = prod(shape)
        (shift,) = operands(node)[1]
        position = (linearize(idx, shape) - ctx.size(shift) % total + total) % total
        return ctx.read(source, delinearize(position, shape))
    for shift, axis in zip(node.args[1], axes, strict=True):  # type: ignore[arg-type]
        a = int(axis) % len(shape)
        own[a] = (idx[a] - ctx.size(shift) + shape[a]) % shape[a]
    return ctx.read(source, tuple(own))


@element_rule("aten.repeat.default", kind="view")
def _repeat(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    source = _node(node.args[0])
    shape = ctx.shape(source)
    own = tuple(i % size for i, size in zip(idx[len(idx) - len(shape) :], shape, strict=True))
    return ctx.read(source, own)


@element_rule("aten.slice_scatter.default", kind="view")
def _slice_scatter(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    axis = int(argument(node, 2, "dim", 0)) % len(idx)
    size = ctx.shape(node)[axis]
    start, end = argument(node, 3, "start"), argument(node, 4, "end")
    step = ctx.size(argument(node, 5, "step", 1))
    first = (
        ZERO if start is None else maximum(minimum(_from_end(ctx.size(start), size), size), ZERO)
    )
    last = size if end is None else maximum(minimum(_from_end(ctx.size(end), size), size), ZERO)
    offset = idx[axis] - first
    inside = both(compare_index(idx[axis], "ge", first), compare_index(idx[axis], "lt", last))
    if step != 1:
        inside = both(inside, compare_index(ONE - minimum(offset % step, ONE), "ge", 1))
    own = (*idx[:axis], offset // step, *idx[axis + 1 :])
    return guarded(
        inside,
        ctx.operand(node.args[1], own, dtype_of(node)),
        ctx.operand(node.args[0], idx, dtype_of(node)),
    )


@element_rule("aten.select_scatter.default", kind="view")
def _select_scatter(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    axis = int(node.args[2]) % len(idx)  # type: ignore[arg-type]
    position = _from_end(ctx.size(node.args[3]), ctx.shape(node)[axis])
    chosen = both(
        compare_index(idx[axis], "ge", position), compare_index(idx[axis], "lt", position + 1)
    )
    own = idx[:axis] + idx[axis + 1 :]
    return guarded(
        chosen,
        ctx.operand(node.args[1], own, dtype_of(node)),
        ctx.operand(node.args[0], idx, dtype_of(node)),
    )


def _from_end(position: IntExpr, size: IntExpr) -> IntExpr:
    """A negative position counts from the end."""
    return position + size if position.upper() < 0 else position


def _true() -> Scalar:
    return Const(True, "bool")


def _node(value: Any) -> Node:
    assert isinstance(value, Node)
    return value
