"""Adaptive pooling and fold: windows whose places are known when compiling become views and reductions."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from svdqc.compiler.ir.rewrite import Rewriter, aten, operands
from svdqc.compiler.passes.decompose_transposed import spread
from svdqc.compiler.passes.rules import Rule


def _adaptive_average(rw: Rewriter, node: Node) -> Node | None:
    return _adaptive(rw, node, maximum=False)


def _adaptive_maximum(rw: Rewriter, node: Node) -> Node | None:
    """The values; the positions, if someone reads them, have no rule."""
    if any(item.args[1] != 0 for item in node.users):
        return None
    result = _adaptive(rw, node, maximum=True)
    if result is not None:
        for item in list(node.users):
            rw.replace(item, result)
    return None


def _adaptive(rw: Rewriter, node: Node, maximum: bool) -> Node | None:
    """Axis by axis: window i of n elements out of m begins at ⌊i · m / n⌋ and ends before ⌈(i + 1) · m / n⌉."""
    x: Node = operands(node)[0]
    counts: Any = operands(node)[1]
    first = x.meta["val"].dim() - len(counts)
    for axis, count in enumerate(counts, first):
        size = x.meta["val"].shape[axis]
        if not (isinstance(size, int) and isinstance(count, int)):
            return None
        if count != size:
            x = _pooled(rw, x, axis, size, count, maximum)
    return x


def _pooled(rw: Rewriter, x: Node, axis: int, size: int, count: int, maximum: bool) -> Node:
    starts = torch.arange(count) * size // count
    ends = ((torch.arange(count) + 1) * size + count - 1) // count
    width = int((ends - starts).max())
    places = starts[:, None] + torch.arange(width)
    inside = places < ends[:, None]
    rank = x.meta["val"].dim()
    if size % count != 0:
        # Shorter windows repeat their last element, which changes no maximum and has no weight in a mean.
        places = torch.minimum(places, ends[:, None] - 1).reshape(-1)
        table = rw.constant(f"windows_{size}_{count}", places)
        x = rw.call(aten.index_select.default, x, axis, table)
    sizes = rw.sizes(x)
    x = rw.call(aten.reshape.default, x, [*sizes[:axis], count, width, *sizes[axis + 1 :]])
    if maximum:
        return rw.call(aten.amax.default, x, [axis + 1])
    if size % count == 0:
        return rw.call(aten.mean.dim, x, [axis + 1])
    weights = inside.to(x.meta["val"].dtype) / inside.sum(1, keepdim=True)
    weights = weights.reshape(count, width, *[1] * (rank - 1 - axis))
    share = rw.constant(f"shares_{size}_{count}", weights.to(x.meta["val"].dtype))
    return rw.call(aten.sum.dim_IntList, rw.call(aten.mul.Tensor, x, share), [axis + 1])


def _fold(rw: Rewriter, node: Node) -> Node | None:
    """col2im(x [n, c · kh · kw, places]) → Σ over the window of x's part for each of its elements, put in place."""
    x, output, kernel, dilation, padding, stride = operands(node)
    if not all(isinstance(size, int) for size in (*x.meta["val"].shape[-2:], *output)):
        return None
    lead = x.meta["val"].dim() - 2
    counts = [
        (output[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1
        for a in (0, 1)
    ]
    channels = x.meta["val"].shape[-2] // (kernel[0] * kernel[1])
    batch = [-1] * lead
    x = rw.call(aten.reshape.default, x, [*batch, channels, *kernel, *counts])
    total: Node | None = None
    for row in range(kernel[0]):
        part = rw.call(aten.select.int, x, lead + 1, row)
        for column in range(kernel[1]):
            one = rw.call(aten.select.int, part, lead + 1, column)  # [n, c, places]
            around: list[int] = []
            for a, offset in ((1, column), (0, row)):
                one = spread(rw, one, lead + 1 + a, stride[a])
                before = offset * dilation[a] - padding[a]
                around += [before, output[a] - before - counts[a] * stride[a]]
            one = rw.call(aten.constant_pad_nd.default, one, around, 0)
            total = one if total is None else rw.call(aten.add.Tensor, total, one)
    return total


WINDOW_RULES: dict[Any, Rule] = {
    aten._adaptive_avg_pool2d.default: _adaptive_average,
    aten._adaptive_avg_pool3d.default: _adaptive_average,
    aten.adaptive_max_pool2d.default: _adaptive_maximum,
    aten.adaptive_max_pool3d.default: _adaptive_maximum,
    aten.col2im.default: _fold,
}
