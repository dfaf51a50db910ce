"""argmax, max with positions, running sums and products, vector norms → comparisons with positions and reductions."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from svdqc.compiler.ir.rewrite import Rewriter, argument, aten
from svdqc.compiler.ir.symbols import SymbolTable
from svdqc.compiler.passes.rules import Rule

MOST_PAIRED = 4096
"""What compares each of n elements with each other takes n² steps; longer rows are refused."""


def largest(rw: Rewriter, x: Node, axis: int) -> int:
    """The size of an axis, at most."""
    return SymbolTable(rw.program).expr(x.meta["val"].shape[axis]).upper()


def position(rw: Rewriter, x: Node, axis: int, count: Any = None) -> Node:
    """0 … size - 1 for the size of an axis of x, or 0 … count - 1; int64, one axis."""
    count = rw.size(x, axis) if count is None else count
    return rw.call(aten.arange.start_step, 0, count, 1, dtype=torch.int64)


def _along(rw: Rewriter, positions: Node, axis: int, rank: int) -> Node:
    """One axis of positions as `axis` of a tensor of this rank."""
    return rw.call(aten.reshape.default, positions, [-1 if a == axis else 1 for a in range(rank)])


def _first_equal(rw: Rewriter, x: Node, best: Node, axis: int, keepdim: bool) -> Node | None:
    """The first position along an axis where x equals its best element."""
    place = _along(rw, position(rw, x, axis), axis, x.meta["val"].dim())
    found = rw.call(aten.eq.Tensor, x, best)
    # The extreme of a row with a NaN is NaN, which equals nothing; the first NaN is what PyTorch finds.
    if x.meta["val"].is_floating_point():
        found = rw.call(aten.logical_or.default, found, rw.call(aten.isnan.default, x))
    candidates = rw.call(aten.where.ScalarOther, found, place, 2**31)
    return rw.call(aten.amin.default, candidates, [axis], keepdim)


def _argument(rw: Rewriter, node: Node) -> Node | None:
    """argmax(x) → the least position at which x equals amax(x)."""
    x: Any = node.args[0]
    axis = argument(node, 1, "dim")
    keepdim = bool(argument(node, 2, "keepdim", False))
    if axis is None:
        if keepdim:
            return None
        x, axis = rw.call(aten.reshape.default, x, [-1]), 0
    axis = int(axis) % max(x.meta["val"].dim(), 1)
    extreme = aten.amax.default if node.target is aten.argmax.default else aten.amin.default
    return _first_equal(rw, x, rw.call(extreme, x, [axis], True), axis, keepdim)


def _extreme_with_position(rw: Rewriter, node: Node) -> Node | None:
    """max(x, dim) → (amax(x), argmax(x))."""
    x: Any = node.args[0]
    axis = int(node.args[1]) % max(x.meta["val"].dim(), 1)  # type: ignore[arg-type]
    keepdim = bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
    extreme = aten.amax.default if node.target is aten.max.dim else aten.amin.default
    for item in list(node.users):
        if item.args[1] == 0:
            result: Node | None = rw.call(extreme, x, [axis], keepdim)
        else:
            result = _first_equal(rw, x, rw.call(extreme, x, [axis], True), axis, keepdim)
        if result is not None:
            rw.replace(item, result)
    return None


def _running(rw: Rewriter, node: Node) -> Node | None:
    """cumsum(x)[i] → Σ_j x[j] where j <= i; likewise cumprod."""
    x: Any = node.args[0]
    rank = x.meta["val"].dim()
    if rank == 0:
        return None
    axis = int(node.args[1]) % rank  # type: ignore[arg-type]
    dtype = node.meta["val"].dtype
    if largest(rw, x, axis) > MOST_PAIRED:
        return None
    if x.meta["val"].dtype != dtype:
        x = rw.call(aten._to_copy.default, x, dtype=dtype)
    last = axis == rank - 1
    if not last:
        x = rw.call(aten.transpose.int, x, axis, rank - 1)
    row = rw.call(aten.unsqueeze.default, position(rw, x, -1), -1)
    until = rw.call(aten.le.Tensor, position(rw, x, -1), row)
    product = node.target is aten.cumprod.default
    terms = rw.call(
        aten.where.ScalarOther, until, rw.call(aten.unsqueeze.default, x, -2), int(product)
    )
    if product:
        total = rw.call(aten.prod.dim_int, terms, -1, False, dtype=dtype)
    else:
        total = rw.call(aten.sum.dim_IntList, terms, [-1], False, dtype=dtype)
    return total if last else rw.call(aten.transpose.int, total, axis, rank - 1)


def _vector_norm(rw: Rewriter, node: Node) -> Node | None:
    """(Σ |x|ᵖ)^(1/p), and its limits for ∞ and -∞."""
    x: Any = node.args[0]
    order: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("ord", 2)
    axes: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    keepdim = bool(node.args[3] if len(node.args) > 3 else node.kwargs.get("keepdim", False))
    axes = list(range(x.meta["val"].dim())) if axes is None else list(axes)
    if node.kwargs.get("dtype") is not None:
        return None
    if order == 2:
        squares = rw.call(aten.mul.Tensor, x, x)
        total = rw.call(aten.sum.dim_IntList, squares, axes, keepdim)
        return rw.call(aten.sqrt.default, total)
    size = rw.call(aten.abs.default, x)
    if order == 1:
        return rw.call(aten.sum.dim_IntList, size, axes, keepdim)
    if abs(order) == float("inf"):
        extreme = aten.amax.default if order > 0 else aten.amin.default
        return rw.call(extreme, size, axes, keepdim)
    if order == 0:
        return None
    powers = rw.call(aten.pow.Tensor_Scalar, size, order)
    total = rw.call(aten.sum.dim_IntList, powers, axes, keepdim)
    return rw.call(aten.pow.Tensor_Scalar, total, 1.0 / order)


def _distances(rw: Rewriter, node: Node) -> Node:
    """cdist(x [..., m, d], y [..., n, d]) → norms of the differences of all pairs."""
    x, y, order = node.args[:3]
    difference = rw.call(
        aten.sub.Tensor,
        rw.call(aten.unsqueeze.default, x, -2),
        rw.call(aten.unsqueeze.default, y, -3),
    )
    return rw.call(aten.linalg_vector_norm.default, difference, order, [-1])


def _max_pool_values(rw: Rewriter, node: Node) -> Node | None:
    """max_pool whose positions nobody reads → its values."""
    if any(item.args[1] != 0 for item in node.users):
        return None
    for item in list(node.users):
        rw.replace(item, rw.call(_POOLS[node.target], *node.args, **node.kwargs))
    return None


_POOLS: dict[Any, Any] = {
    aten.max_pool2d_with_indices.default: aten.max_pool2d.default,
    aten.max_pool3d_with_indices.default: aten.max_pool3d.default,
}

ORDER_RULES: dict[Any, Rule] = {
    aten.argmax.default: _argument,
    aten.argmin.default: _argument,
    aten.max.dim: _extreme_with_position,
    aten.min.dim: _extreme_with_position,
    aten.cumsum.default: _running,
    aten.cumprod.default: _running,
    aten.linalg_vector_norm.default: _vector_norm,
    aten._cdist_forward.default: _distances,
    **dict.fromkeys(_POOLS, _max_pool_values),
}
