"""Pooling over small static windows: the window is unrolled into one expression."""

from __future__ import annotations

from itertools import product
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
from svdqc.compiler.codegen.scalar import Const, Op, Scalar, both, cast, compare_index, guarded


def _per_axis(value: Any, rank: int, default: list[int]) -> list[int]:
    if value is None or value == []:
        return default
    values = [value] * rank if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _window(
    ctx: ElementContext,
    node: Node,
    idx: Index,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    outside: Scalar,
) -> tuple[list[Scalar], list[Scalar]]:
    """The values under the window of output `idx` and, for each, whether it lies inside the input."""
    source = node.args[0]
    assert isinstance(source, Node)
    shape, rank, dtype = ctx.shape(source), len(kernel), compute_dtype(dtype_of(node))
    lead = len(shape) - rank
    values: list[Scalar] = []
    insides: list[Scalar] = []
    for offsets in product(*(range(k) for k in kernel)):
        own, inside = list(idx), Const(True, "bool")
        condition: Scalar = inside
        for a in range(rank):
            position = idx[lead + a] * stride[a] + offsets[a] - padding[a]
            own[lead + a] = position
            if padding[a]:
                condition = both(
                    condition,
                    both(
                        compare_index(position, "ge", 0),
                        compare_index(position, "lt", shape[lead + a]),
                    ),
                )
        values.append(guarded(condition, cast(ctx.read(source, tuple(own)), dtype), outside))
        insides.append(condition)
    return values, insides


@element_rule("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def _avg_pool(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    rank = int(str(node.target)[len("aten.avg_pool")])
    kernel = _per_axis(node.args[1], rank, [])
    stride = _per_axis(argument(node, 2, "stride"), rank, kernel)
    padding = _per_axis(argument(node, 3, "padding", 0), rank, [0] * rank)
    count_pad = bool(argument(node, 5, "count_include_pad", True))
    dtype = compute_dtype(dtype_of(node))
    values, insides = _window(ctx, node, idx, kernel, stride, padding, Const(0.0, dtype))
    total, count = values[0], cast(insides[0], dtype)
    for value, inside in zip(values[1:], insides[1:], strict=True):
        total = Op("add", (total, value), dtype)
        count = Op("add", (count, cast(inside, dtype)), dtype)
    if count_pad or not any(padding):
        count = Const(float(len(values)), dtype)
    return cast(Op("div", (total, count), dtype), dtype_of(node))


@element_rule("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
def _max_pool(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    rank = int(str(node.target)[len("aten.max_pool")])
    kernel = _per_axis(node.args[1], rank, [])
    stride = _per_axis(argument(node, 2, "stride"), rank, kernel)
    padding = _per_axis(argument(node, 3, "padding", 0), rank, [0] * rank)
    dtype = compute_dtype(dtype_of(node))
    values, _ = _window(ctx, node, idx, kernel, stride, padding, Const(float("-inf"), dtype))
    best = values[0]
    for value in values[1:]:
        best = Op("maximum", (best, value), dtype)
    return cast(best, dtype_of(node))
