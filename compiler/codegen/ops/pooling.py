"""Pooling over small static windows: the window is unrolled into one expression."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
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
from svdqc.compiler.ir.symbols import Shape


def _per_axis(value: Any, rank: int, default: list[int]) -> list[int]:
    if value is None or value == []:
        return default
    values = [value] * rank if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


@dataclass(frozen=True)
class _Window:
    """One axis entry per pooled axis; `ceil`: the last window may end outside of the padded input."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    ceil: bool

    @property
    def always_inside(self) -> bool:
        return not self.ceil and not any(self.padding)


def _window_of(node: Node, rank: int, dilation: Any, ceil: bool) -> _Window:
    kernel = _per_axis(node.args[1], rank, [])
    return _Window(
        kernel,
        _per_axis(argument(node, 2, "stride"), rank, kernel),
        _per_axis(argument(node, 3, "padding", 0), rank, [0] * rank),
        _per_axis(dilation, rank, [1] * rank),
        ceil,
    )


def _positions(idx: Index, window: _Window) -> Iterator[Index]:
    """Where each value under the window of output `idx` lies, along the pooled axes."""
    lead = len(idx) - len(window.kernel)
    for offsets in product(*(range(k) for k in window.kernel)):
        yield tuple(
            idx[lead + a] * window.stride[a] + offset * window.dilation[a] - window.padding[a]
            for a, offset in enumerate(offsets)
        )


def _within(position: Index, sizes: Shape, margin: list[int]) -> Scalar:
    """Whether a position lies inside the input with `margin` more elements on each side."""
    condition: Scalar = Const(True, "bool")
    for i, size, more in zip(position, sizes, margin, strict=True):
        condition = both(condition, compare_index(i + more, "ge", 0))
        condition = both(condition, compare_index(i, "lt", size + more))
    return condition


def _values(
    ctx: ElementContext, node: Node, idx: Index, window: _Window, outside: Scalar
) -> list[Scalar]:
    """The values under the window of output `idx`; `outside` where it leaves the input."""
    source = node.args[0]
    assert isinstance(source, Node)
    lead, sizes = len(idx) - len(window.kernel), ctx.shape(source)
    values = []
    for position in _positions(idx, window):
        value = cast(ctx.read(source, idx[:lead] + position), outside.dtype)
        if not window.always_inside:
            inside = _within(position, sizes[lead:], [0] * len(position))
            value = guarded(inside, value, outside)
        values.append(value)
    return values


def _count(ctx: ElementContext, node: Node, idx: Index, window: _Window, padded: bool) -> Scalar:
    """How many values of the window count: those in the input, or in the padded input."""
    source = node.args[0]
    assert isinstance(source, Node)
    dtype = compute_dtype(dtype_of(node))
    sizes = ctx.shape(source)[len(idx) - len(window.kernel) :]
    margin = window.padding if padded else [0] * len(sizes)
    counted = [cast(_within(p, sizes, margin), dtype) for p in _positions(idx, window)]
    if all(isinstance(c, Const) for c in counted):
        return Const(float(sum(c.value for c in counted if isinstance(c, Const))), dtype)
    return reduce(lambda a, b: Op("add", (a, b), dtype), counted)


@element_rule("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def _avg_pool(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    rank = int(str(node.target)[len("aten.avg_pool")])
    window = _window_of(node, rank, 1, bool(argument(node, 4, "ceil_mode", False)))
    with_padding = bool(argument(node, 5, "count_include_pad", True))
    divisor = argument(node, 6, "divisor_override")
    dtype = compute_dtype(dtype_of(node))
    values = _values(ctx, node, idx, window, Const(0.0, dtype))
    total = reduce(lambda a, b: Op("add", (a, b), dtype), values)
    if divisor is not None:
        count: Scalar = Const(float(divisor), dtype)
    elif window.always_inside or (with_padding and not window.ceil):
        count = Const(float(len(values)), dtype)
    else:
        count = _count(ctx, node, idx, window, with_padding)
    return cast(Op("div", (total, count), dtype), dtype_of(node))


@element_rule("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
def _max_pool(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    rank = int(str(node.target)[len("aten.max_pool")])
    dilation, ceil = argument(node, 4, "dilation", 1), bool(argument(node, 5, "ceil_mode", False))
    window = _window_of(node, rank, dilation, ceil)
    dtype = compute_dtype(dtype_of(node))
    values = _values(ctx, node, idx, window, Const(float("-inf"), dtype))
    return cast(reduce(lambda a, b: Op("maximum", (a, b), dtype), values), dtype_of(node))
