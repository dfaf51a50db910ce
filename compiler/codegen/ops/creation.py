"""Ops that make values from nothing but an index: always folded into whoever reads them."""

from __future__ import annotations

from torch.fx import Node

from svdqc.compiler.codegen.ops.registry import (
    ElementContext,
    Index,
    argument,
    compute_dtype,
    dtype_of,
    element_rule,
)
from svdqc.compiler.codegen.scalar import Const, IndexValue, Op, Scalar, cast, compare_index, where


@element_rule("aten.full.default", "aten.full_like.default", kind="creation")
def _full(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return ctx.operand(node.args[1], idx, dtype_of(node))


@element_rule("aten.scalar_tensor.default", kind="creation")
def _scalar_tensor(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return ctx.operand(node.args[0], idx, dtype_of(node))


@element_rule(
    "aten.zeros.default",
    "aten.zeros_like.default",
    "aten.empty.memory_format",
    "aten.new_zeros.default",
    kind="creation",
)
def _zeros(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return cast(Const(0, "i64"), dtype_of(node))


@element_rule(
    "aten.ones.default", "aten.ones_like.default", "aten.new_ones.default", kind="creation"
)
def _ones(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    return cast(Const(1, "i64"), dtype_of(node))


@element_rule("aten.arange.start_step", "aten.arange.default", "aten.arange.start", kind="creation")
def _arange(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    short = str(node.target) == "aten.arange.default"
    start = 0 if short else argument(node, 0, "start", 0)
    step = 1 if short else argument(node, 2, "step", 1)
    dtype = dtype_of(node)
    if dtype in ("i64", "i32"):
        return cast(IndexValue(ctx.size(start) + idx[0] * ctx.size(step)), dtype)
    compute = compute_dtype(dtype)
    position = cast(IndexValue(idx[0]), compute)
    scaled = Op("mul", (position, ctx.operand(step, idx, compute)), compute)
    return cast(Op("add", (scaled, ctx.operand(start, idx, compute)), compute), dtype)


@element_rule("aten.eye.default", "aten.eye.m", kind="creation")
def _eye(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    same = Op("eq", (IndexValue(idx[0]), IndexValue(idx[1])), "bool")
    return cast(same, dtype_of(node))


def _triangle(target: str, keep_lower: bool) -> None:
    @element_rule(target)
    def rule(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
        diagonal = ctx.size(argument(node, 1, "diagonal", 0))
        offset = idx[-1] - idx[-2] - diagonal  # <= 0 on and below the diagonal
        keep = compare_index(offset, "lt", 1) if keep_lower else compare_index(offset, "ge", 0)
        zero = cast(Const(0, "i64"), dtype_of(node))
        return where(keep, ctx.operand(node.args[0], idx, dtype_of(node)), zero)


_triangle("aten.tril.default", keep_lower=True)
_triangle("aten.triu.default", keep_lower=False)
