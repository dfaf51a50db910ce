"""argmax, max with positions, cumsum, vector norms → comparisons with positions and reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from svdqc.compiler.ir.rewrite import Rewriter, argument, aten

MOST_SUMMED = 4096
"""A running sum over n elements takes n² / 2 additions here; longer ones are refused."""


def _position(rw: Rewriter, size: int, rank: int, axis: int) -> Node:
    """0 … size - 1 along `axis` of a tensor of this rank."""
    positions = rw.constant(f"positions_{size}", torch.arange(size))
    return rw.call(aten.reshape.default, positions, [size if a == axis else 1 for a in range(rank)])


def _first_equal(rw: Rewriter, x: Node, best: Node, axis: int, keepdim: bool) -> Node | None:
    """The first position along an axis where x equals its best element."""
    size, rank = x.meta["val"].shape[axis], x.meta["val"].dim()
    if not isinstance(size, int):
        return None
    found = rw.call(aten.eq.Tensor, x, best)
    place = _position(rw, size, rank, axis)
    # A row of NaN equals nothing: its position is the last one.
    candidates = rw.call(aten.where.ScalarOther, found, place, size - 1)
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


def _running_sum(rw: Rewriter, node: Node) -> Node | None:
    """cumsum(x)[i] → Σ_j x[j] where j <= i."""
    x: Any = node.args[0]
    rank = x.meta["val"].dim()
    if rank == 0:
        return None
    axis = int(node.args[1]) % rank  # type: ignore[arg-type]
    size, dtype = x.meta["val"].shape[axis], node.meta["val"].dtype
    if not isinstance(size, int) or size > MOST_SUMMED:
        return None
    if x.meta["val"].dtype != dtype:
        x = rw.call(aten._to_copy.default, x, dtype=dtype)
    last = axis == rank - 1
    if not last:
        x = rw.call(aten.transpose.int, x, axis, rank - 1)
    row, column = _position(rw, size, 2, 0), _position(rw, size, 2, 1)
    terms = rw.call(
        aten.where.ScalarOther,
        rw.call(aten.le.Tensor, column, row),
        rw.call(aten.unsqueeze.default, x, -2),
        0,
    )
    total = rw.call(aten.sum.dim_IntList, terms, [-1], False, dtype=dtype)
    return total if last else rw.call(aten.transpose.int, total, axis, rank - 1)


def _vector_norm(rw: Rewriter, node: Node) -> Node | None:
    """|x| for norms 1, 2 and ∞."""
    x: Any = node.args[0]
    order = node.args[1] if len(node.args) > 1 else node.kwargs.get("ord", 2)
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
    return rw.call(aten.amax.default, size, axes, keepdim) if order == float("inf") else None


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

ORDER_RULES: dict[Any, Callable[[Rewriter, Node], Node | None]] = {
    aten.argmax.default: _argument,
    aten.argmin.default: _argument,
    aten.max.dim: _extreme_with_position,
    aten.min.dim: _extreme_with_position,
    aten.cumsum.default: _running_sum,
    aten.linalg_vector_norm.default: _vector_norm,
    **dict.fromkeys(_POOLS, _max_pool_values),
}
