"""Ops whose addresses are data: gathers, embeddings, advanced indexing."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from svdqc.compiler.codegen.ops.registry import (
    ElementContext,
    Index,
    element_rule,
)
from svdqc.compiler.codegen.scalar import Scalar
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
