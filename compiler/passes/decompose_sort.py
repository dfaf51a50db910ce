"""sort, topk, searchsorted → counts of what comes before: every element's place in the order is a reduction.

place[i] = number of j with x[j] before x[i]; of equals, the earlier comes first: the order is stable
order[p] = the i whose place is p
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from svdqc.compiler.ir.rewrite import Rewriter, argument, aten
from svdqc.compiler.passes.decompose_order import MOST_PAIRED, largest, position
from svdqc.compiler.passes.rules import Rule


def _sort(rw: Rewriter, node: Node) -> Node | None:
    """sort(x, dim, descending) → (gather(x, order), order)."""
    stable = node.target is aten.sort.stable
    axis: Any = node.kwargs.get("dim", -1) if stable else argument(node, 1, "dim", -1)
    descending = argument(node, 3 if stable else 2, "descending", False)
    return _ordered(rw, node, axis, bool(descending), None)


def _topk(rw: Rewriter, node: Node) -> Node | None:
    """topk(x, k, dim, largest) → the first k of sort(x, dim, descending=largest)."""
    count = argument(node, 1, "k")
    axis, descending = argument(node, 2, "dim", -1), argument(node, 3, "largest", True)
    return _ordered(rw, node, axis, bool(descending), count)


def _ordered(
    rw: Rewriter, node: Node, axis: int, descending: bool, count: int | Node | None
) -> Node | None:
    x: Any = node.args[0]
    rank = x.meta["val"].dim()
    if rank == 0 or largest(rw, x, axis) > MOST_PAIRED:
        return None
    axis %= rank
    if axis != rank - 1:
        x = rw.call(aten.transpose.int, x, axis, rank - 1)
    places = _places(rw, x, descending)
    wanted = rw.call(aten.unsqueeze.default, position(rw, x, -1, count), -1)  # [k, 1]
    here = rw.call(aten.eq.Tensor, rw.call(aten.unsqueeze.default, places, -2), wanted)
    chosen = rw.call(aten.where.ScalarOther, here, position(rw, x, -1), 0)  # [..., k, n]
    order = rw.call(aten.sum.dim_IntList, chosen, [-1])
    for item in list(node.users):
        result = rw.call(aten.gather.default, x, -1, order) if item.args[1] == 0 else order
        if axis != rank - 1:
            result = rw.call(aten.transpose.int, result, axis, rank - 1)
        rw.replace(item, result)
    return None


def _places(rw: Rewriter, x: Node, descending: bool) -> Node:
    """int64, the shape of x: the place of each element along the last axis. NaN is the greatest, as in PyTorch."""
    own = rw.call(aten.unsqueeze.default, x, -1)
    other = rw.call(aten.unsqueeze.default, x, -2)
    low, high = (own, other) if descending else (other, own)
    before = rw.call(aten.lt.Tensor, low, high)
    equal = rw.call(aten.eq.Tensor, low, high)
    if x.meta["val"].is_floating_point():
        low_nan, high_nan = (rw.call(aten.isnan.default, value) for value in (low, high))
        numbers_first = rw.call(aten.gt.Tensor, high_nan, low_nan)
        before = rw.call(aten.logical_or.default, before, numbers_first)
        both_nan = rw.call(aten.logical_and.default, low_nan, high_nan)
        equal = rw.call(aten.logical_or.default, equal, both_nan)
    own_place = rw.call(aten.unsqueeze.default, position(rw, x, -1), -1)
    earlier = rw.call(aten.lt.Tensor, position(rw, x, -1), own_place)
    before = rw.call(
        aten.logical_or.default, before, rw.call(aten.logical_and.default, equal, earlier)
    )
    return _count(rw, before)


def _count(rw: Rewriter, flags: Node) -> Node:
    """How many are true along the last axis."""
    ones = rw.call(aten.where.Scalar, flags, 1, 0)
    return rw.call(aten.sum.dim_IntList, ones, [-1])


def _bucketize(rw: Rewriter, node: Node) -> Node | None:
    """bucketize(x, boundaries): how many boundaries lie below x."""
    return _insertion(rw, node, boundaries=node.args[1], values=node.args[0])


def _searchsorted(rw: Rewriter, node: Node) -> Node | None:
    if node.kwargs.get("sorter") is not None:
        return None
    return _insertion(rw, node, boundaries=node.args[0], values=node.args[1])


def _insertion(rw: Rewriter, node: Node, boundaries: Any, values: Any) -> Node | None:
    """The number of boundaries below each value; with right=True, also of those equal to it."""
    if largest(rw, boundaries, -1) > MOST_PAIRED:
        return None
    right = argument(node, 3, "right", False) or node.kwargs.get("side") == "right"
    below = aten.le.Tensor if right else aten.lt.Tensor
    if boundaries.meta["val"].dim() > 1:
        boundaries = rw.call(aten.unsqueeze.default, boundaries, -2)
    counted = _count(rw, rw.call(below, boundaries, rw.call(aten.unsqueeze.default, values, -1)))
    dtype = node.meta["val"].dtype
    same = counted.meta["val"].dtype == dtype
    return counted if same else rw.call(aten._to_copy.default, counted, dtype=dtype)


SORT_RULES: dict[Any, Rule] = {
    aten.sort.default: _sort,
    aten.sort.stable: _sort,
    aten.topk.default: _topk,
    aten.bucketize.Tensor: _bucketize,
    aten.searchsorted.Tensor: _searchsorted,
}
