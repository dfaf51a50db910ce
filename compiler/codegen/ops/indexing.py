"""Ops whose addresses are data: gathers, embeddings, advanced indexing, interpolation."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from svdqc.compiler.codegen.ops.registry import (
    ElementContext,
    Index,
    argument,
    compute_dtype,
    dtype_of,
    element_rule,
)
from svdqc.compiler.codegen.scalar import (
    Const,
    IndexValue,
    Op,
    Scalar,
    cast,
)
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.ir.rewrite import operands


def _tensor_at(ctx: ElementContext, value: Any, idx: Index) -> Scalar:
    return ctx.operand(value, idx, "i64")


@element_rule("aten.embedding.default")
def _embedding(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    weight, indices = node.args[0], node.args[1]
    rows = ctx.shape(weight)[0]  # type: ignore[arg-type]
    row = ctx.indirects.index(_tensor_at(ctx, indices, idx[:-1]), rows)
    return ctx.read(weight, (row, idx[-1]))  # type: ignore[arg-type]


@element_rule("aten.index_select.default")
def _index_select(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    source, axis, index = operands(node)
    axis = int(axis) % len(idx)
    chosen = ctx.indirects.index(_tensor_at(ctx, index, (idx[axis],)), ctx.shape(source)[axis])
    return ctx.read(source, (*idx[:axis], chosen, *idx[axis + 1 :]))


@element_rule("aten.gather.default")
def _gather(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    source, axis = node.args[0], int(node.args[1]) % len(idx)  # type: ignore[arg-type]
    chosen = ctx.indirects.index(_tensor_at(ctx, node.args[2], idx), ctx.shape(source)[axis])  # type: ignore[arg-type]
    return ctx.read(source, (*idx[:axis], chosen, *idx[axis + 1 :]))  # type: ignore[arg-type]


@element_rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def _index(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    """Advanced indexing with integer tensors: the broadcast index axes replace the indexed ones, in place if those are
    adjacent, else in front (NumPy's rule)."""
    source, indices = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    shape = ctx.shape(source)  # type: ignore[arg-type]
    indices += [None] * (len(shape) - len(indices))
    used = [a for a, i in enumerate(indices) if i is not None]
    rank = max(len(ctx.shape(indices[a])) for a in used)
    adjacent = used == list(range(used[0], used[-1] + 1))
    first = used[0] if adjacent else 0
    shared = idx[first : first + rank]
    rest = iter(idx[:first] + idx[first + rank :])
    own: list[IntExpr] = []
    for axis, index_node in enumerate(indices):
        if index_node is None:
            own.append(next(rest))
        else:
            own.append(ctx.indirects.index(_tensor_at(ctx, index_node, shared), shape[axis]))
    return ctx.read(source, tuple(own))  # type: ignore[arg-type]


@element_rule(
    "aten.upsample_nearest1d.default",
    "aten.upsample_nearest2d.default",
    "aten.upsample_nearest3d.default",
    "aten.upsample_nearest1d.vec",
    "aten.upsample_nearest2d.vec",
    "aten.upsample_nearest3d.vec",
    kind="view",
)
def _upsample_nearest(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    """floor(i * in / out), in integers: exact where the scale is a ratio of the sizes, as it is for whole factors."""
    source = node.args[0]
    sizes, outs = ctx.shape(source), ctx.shape(node)  # type: ignore[arg-type]
    own = list(idx)
    for axis in range(2, len(sizes)):
        own[axis] = (idx[axis] * sizes[axis]) // outs[axis]
    return ctx.read(source, tuple(own))  # type: ignore[arg-type]


@element_rule(
    "aten.upsample_bilinear2d.default",
    "aten.upsample_bilinear2d.vec",
    "aten.upsample_linear1d.vec",
    "aten.upsample_linear1d.default",
)
def _upsample_linear(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    """Linear interpolation along the last one or two axes, with or without aligned corners."""
    source = node.args[0]
    assert isinstance(source, Node)
    sizes, outs = ctx.shape(source), ctx.shape(node)
    align = bool(argument(node, 2, "align_corners", False))
    dtype = compute_dtype(dtype_of(node))

    def at(axis: int, prefix: Index) -> Scalar:
        if axis == len(sizes):
            return cast(ctx.read(source, prefix), dtype)
        position = _source_position(idx[axis], sizes[axis], outs[axis], align)
        low = Op("floor", (position,), "f32")
        weight = cast(Op("sub", (position, low), "f32"), dtype)
        first = ctx.indirects.index(cast(low, "i64"), sizes[axis])
        second = ctx.indirects.index(
            Op(
                "minimum",
                (
                    Op("add", (cast(low, "i64"), Const(1, "i64")), "i64"),
                    IndexValue(sizes[axis] - 1),
                ),
                "i64",
            ),
            sizes[axis],
        )
        a, b = at(axis + 1, (*prefix, first)), at(axis + 1, (*prefix, second))
        one = Const(1.0, dtype)
        return Op(
            "add",
            (Op("mul", (Op("sub", (one, weight), dtype), a), dtype), Op("mul", (weight, b), dtype)),
            dtype,
        )

    return cast(at(2, idx[:2]), dtype_of(node))


def _source_position(i: IntExpr, size: IntExpr, out: IntExpr, align: bool) -> Scalar:
    """The real-valued source coordinate of output element i, clamped at 0 (torch's area_pixel_compute_source_index)."""
    position = cast(IndexValue(i), "f32")
    if align:
        ratio = Op(
            "div", (cast(IndexValue(size - 1), "f32"), cast(IndexValue(out - 1), "f32")), "f32"
        )
        return Op("mul", (position, ratio), "f32") if out.lower() > 1 else Const(0.0, "f32")
    half = Const(0.5, "f32")
    ratio = Op("div", (cast(IndexValue(size), "f32"), cast(IndexValue(out), "f32")), "f32")
    centre = Op("mul", (Op("add", (position, half), "f32"), ratio), "f32")
    return Op("maximum", (Op("sub", (centre, half), "f32"), Const(0.0, "f32")), "f32")
