"""scatter, scatter_reduce, index_put → gathers: each element of the result looks for the writes that hit it.

hit[i, j]  = index[j] == i
written    = last j that hits i           (PyTorch on CPUs: the last write stays)
result[i]  = values[written], or base[i] where nothing hits;      base[i] + Σ_j hit[i, j] · values[j] to accumulate
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from svdqc.compiler.ir.intexpr import prod
from svdqc.compiler.ir.rewrite import Rewriter, argument, aten, is_tensor
from svdqc.compiler.ir.symbols import SymbolTable
from svdqc.compiler.passes.decompose_order import position
from svdqc.compiler.passes.rules import Rule

MOST_COMPARED = 1 << 28
"""Places times writes; more is refused: a second and more of comparisons."""


# --- scatter(base, axis, index, values): along one axis ------------------------------------------------


def _scatter(rw: Rewriter, node: Node) -> Node | None:
    """scatter(base, axis, index, values), and with a reduction what meets in one place is combined."""
    base, axis, index, values = node.args[:4]
    how = _REDUCTIONS.get(node.target) or argument(node, 4, "reduce")
    include = bool(node.kwargs.get("include_self", True))
    assert isinstance(base, Node)
    assert isinstance(index, Node)
    assert isinstance(axis, int)
    rank = base.meta["val"].dim()
    if rank == 0 or how not in (None, *_REDUCE) or _compared(rw, base, [index], axis) is None:
        return None
    axis %= rank
    if is_tensor(values):
        values = _cropped(rw, values, index, range(rank))  # type: ignore[arg-type]
    # Other axes of the index may be shorter: beyond them the base stays.
    shorter = [a for a in range(rank) if a != axis and not _same_size(base, index, a)]
    part = _cropped(rw, base, index, shorter)
    part, index, values = (_last(rw, value, axis) for value in (part, index, values))
    result = _last(rw, _written(rw, part, index, values, how, include), axis)
    return _put_back(rw, base, result, shorter)


def _written(
    rw: Rewriter, base: Node, index: Node, values: Any, how: str | None, include: bool
) -> Node:
    """base [..., n], index [..., m], values like the index or one number → [..., n]."""
    place = rw.call(aten.unsqueeze.default, position(rw, base, -1), -1)
    hit = rw.call(aten.eq.Tensor, rw.call(aten.unsqueeze.default, index, -2), place)
    if how is not None:
        return _reduced(rw, base, hit, values, how, include)
    if not is_tensor(values):
        anything = rw.call(aten.any.dim, hit, -1)
        return rw.call(aten.where.self, anything, _filled(rw, base, values), base)
    write = _last_hit(rw, hit, position(rw, index, -1))
    taken = rw.call(aten.gather.default, values, -1, rw.call(aten.clamp.default, write, 0))
    return rw.call(aten.where.self, rw.call(aten.ge.Scalar, write, 0), taken, base)


def _reduced(rw: Rewriter, base: Node, hit: Node, values: Any, how: str, include: bool) -> Node:
    neutral, reduce, combine = _REDUCE[how]
    dtype = base.meta["val"].dtype
    if neutral is None:
        neutral = _least(dtype) if how == "amax" else _greatest(dtype)
    spread = rw.call(aten.unsqueeze.default, values, -2) if is_tensor(values) else values
    if is_tensor(values):
        terms = rw.call(aten.where.ScalarOther, hit, spread, neutral)
    else:
        terms = rw.call(aten.where.self, hit, _filled(rw, base, spread), _filled(rw, base, neutral))
    axes: Any = -1 if reduce is aten.prod.dim_int else [-1]
    total = rw.call(reduce, terms, axes)
    result = rw.call(combine, base, total) if include else total
    if how == "mean":
        ones = rw.call(aten.where.Scalar, hit, 1, 0)
        count = rw.call(aten.sum.dim_IntList, ones, [-1])
        count = (
            rw.call(aten.add.Tensor, count, 1) if include else rw.call(aten.clamp.default, count, 1)
        )
        kwargs = {} if dtype.is_floating_point else {"rounding_mode": "floor"}
        divide = aten.div.Tensor if dtype.is_floating_point else aten.div.Tensor_mode
        result = rw.call(divide, result, count, **kwargs)
    if include:
        return result
    return rw.call(aten.where.self, rw.call(aten.any.dim, hit, -1), result, base)


_REDUCE: dict[str, tuple[Any, Any, Any]] = {
    "add": (0, aten.sum.dim_IntList, aten.add.Tensor),
    "sum": (0, aten.sum.dim_IntList, aten.add.Tensor),
    "mean": (0, aten.sum.dim_IntList, aten.add.Tensor),
    "multiply": (1, aten.prod.dim_int, aten.mul.Tensor),
    "prod": (1, aten.prod.dim_int, aten.mul.Tensor),
    "amax": (None, aten.amax.default, aten.maximum.default),
    "amin": (None, aten.amin.default, aten.minimum.default),
}
"""reduction → its neutral value (None: the type's least or greatest), the fold, and how its result meets the base."""

_REDUCTIONS: dict[Any, str] = {aten.scatter_add.default: "add"}


def _least(dtype: torch.dtype) -> float | int:
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _greatest(dtype: torch.dtype) -> float | int:
    return float("inf") if dtype.is_floating_point else torch.iinfo(dtype).max


def _filled(rw: Rewriter, like: Node, value: Any) -> Node:
    return rw.call(aten.full.default, [1], value, dtype=like.meta["val"].dtype)


def _last_hit(rw: Rewriter, hit: Node, writes: Node) -> Node:
    """hit [..., m] → the last j that hits, -1 for none."""
    return rw.call(aten.amax.default, rw.call(aten.where.ScalarOther, hit, writes, -1), [-1])


def _last(rw: Rewriter, value: Any, axis: int) -> Any:
    """An axis and the last one exchanged; numbers stay."""
    if not is_tensor(value) or axis == value.meta["val"].dim() - 1:
        return value
    return rw.call(aten.transpose.int, value, axis, value.meta["val"].dim() - 1)


def _same_size(x: Node, y: Node, axis: int) -> bool:
    return str(x.meta["val"].shape[axis]) == str(y.meta["val"].shape[axis])


def _cropped(rw: Rewriter, x: Node, like: Node, axes: Sequence[int] | range) -> Node:
    for axis in axes:
        if not _same_size(x, like, axis):
            x = rw.call(aten.slice.Tensor, x, axis, 0, rw.size(like, axis))
    return x


def _put_back(rw: Rewriter, base: Node, part: Node, axes: Sequence[int]) -> Node:
    """`base` with its first elements along these axes replaced by `part`."""
    if not axes:
        return part
    axis, end = axes[0], rw.size(part, axes[0])
    slab = rw.call(aten.slice.Tensor, base, axis, 0, end)
    inner = _put_back(rw, slab, part, axes[1:])
    return rw.call(aten.slice_scatter.default, base, inner, axis, 0, end)


# --- index_put(base, indices, values): base[indices] = values ------------------------------------------


def _index_put(rw: Rewriter, node: Node) -> Node | None:
    base: Any = node.args[0]
    indices: list[Any] = list(node.args[1])  # type: ignore[arg-type]
    values, accumulate = node.args[2], bool(argument(node, 3, "accumulate", False))
    used = [axis for axis, index in enumerate(indices) if index is not None]
    if any(indices[axis].meta["val"].dtype in (torch.bool, torch.uint8) for axis in used):
        return _masked(rw, base, indices, values, accumulate)
    if _compared(rw, base, [indices[axis] for axis in used], *used) is None:
        return None
    chosen = torch.broadcast_shapes(*(indices[axis].meta["val"].shape for axis in used))
    many, rank = len(chosen), base.meta["val"].dim()
    rest = [axis for axis in range(rank) if axis not in used]
    sizes = _broadcast_sizes(rw, [indices[axis] for axis in used], many)
    # values as [writes, rest...]: the chosen axes lie where the used ones were if those are neighbours, else in front.
    first = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    rest_sizes = [rw.size(base, axis) for axis in rest]
    full = [*rest_sizes[:first], *sizes, *rest_sizes[first:]]
    values = rw.call(aten.expand.default, values, full)
    order = [*range(first, first + many), *range(first), *range(first + many, len(full))]
    values = rw.call(aten.permute.default, values, order)
    values = rw.call(aten.reshape.default, values, [-1, *rest_sizes])
    hit = _all_hit(rw, base, [(axis, indices[axis]) for axis in used], sizes)  # [used..., writes]
    moved = rw.call(aten.permute.default, base, [*used, *rest])
    if accumulate:
        result = _accumulated(rw, moved, hit, values, len(rest))
    else:
        write = _last_hit(rw, hit, position(rw, values, 0))  # [used...]
        safe = rw.call(aten.clamp.default, write, 0)
        taken = rw.call(aten.index.Tensor, values, [safe])
        found = _with_axes_behind(rw, rw.call(aten.ge.Scalar, write, 0), len(rest))
        result = rw.call(aten.where.self, found, taken, moved)
    back = sorted(range(rank), key=[*used, *rest].__getitem__)
    return rw.call(aten.permute.default, result, back)


def _all_hit(
    rw: Rewriter, base: Node, indices: Sequence[tuple[int, Node]], sizes: Sequence[Any]
) -> Node:
    """Whether write m hits place (d, …) of the indexed axes: [d..., m]."""
    hit: Node | None = None
    for number, (axis, index) in enumerate(indices):
        size = rw.size(base, axis)
        wide = rw.call(aten.expand.default, index, list(sizes)) if sizes else index
        flat = rw.call(aten.reshape.default, wide, [-1])
        wrapped = rw.call(aten.add.Tensor, flat, size)
        flat = rw.call(aten.where.self, rw.call(aten.lt.Scalar, flat, 0), wrapped, flat)
        behind = len(indices) - number
        place = _with_axes_behind(rw, position(rw, base, axis), behind)
        own = rw.call(aten.eq.Tensor, place, flat)
        hit = own if hit is None else rw.call(aten.logical_and.default, hit, own)
    assert hit is not None
    return hit


def _accumulated(rw: Rewriter, base: Node, hit: Node, values: Node, num_rest: int) -> Node:
    """base [used..., rest...] + Σ_m where hit [used..., m] of values [m, rest...]."""
    hit = _with_axes_behind(rw, hit, num_rest)
    terms = rw.call(aten.where.ScalarOther, hit, values, 0)
    axis = -1 - num_rest
    total = rw.call(aten.sum.dim_IntList, terms, [axis], False, dtype=base.meta["val"].dtype)
    return rw.call(aten.add.Tensor, base, total)


def _masked(
    rw: Rewriter, base: Node, indices: Sequence[Any], values: Any, accumulate: bool
) -> Node | None:
    """base[mask] = v for a v that is the same for all masked places; others depend on the mask's count."""
    mask = indices[0]
    rank, covered = base.meta["val"].dim(), mask.meta["val"].dim() if mask is not None else 0
    shape = values.meta["val"].shape
    per_place = len(shape) > rank - covered and str(shape[0]) != "1"
    if mask is None or any(index is not None for index in indices[1:]) or per_place:
        return None
    if len(shape) > rank - covered:
        values = rw.call(aten.squeeze.dim, values, 0)
    if accumulate:
        values = rw.call(aten.add.Tensor, base, values)
    if mask.meta["val"].dtype != torch.bool:
        mask = rw.call(aten.ne.Scalar, mask, 0)
    return rw.call(aten.where.self, _with_axes_behind(rw, mask, rank - covered), values, base)


def _with_axes_behind(rw: Rewriter, x: Node, count: int) -> Node:
    for _ in range(count):
        x = rw.call(aten.unsqueeze.default, x, -1)
    return x


def _broadcast_sizes(rw: Rewriter, values: Sequence[Node], rank: int) -> list[Any]:
    sizes: list[Any] = [1] * rank
    for value in values:
        own = value.meta["val"].dim()
        for axis in range(own):
            size = rw.size(value, axis)
            if not (isinstance(size, int) and size == 1):
                sizes[rank - own + axis] = size
    return sizes


def _compared(rw: Rewriter, base: Node, indices: Sequence[Node], *axes: int) -> int | None:
    """Places times writes, at most; None if those are too many."""
    table = SymbolTable(rw.program)
    shape = table.shape(base)
    writes = max(prod(table.shape(index)).upper() for index in indices)
    count = prod(shape[axis] for axis in axes).upper() * writes
    return count if count <= MOST_COMPARED else None


SCATTER_RULES: dict[Any, Rule] = {
    aten.scatter.src: _scatter,
    aten.scatter.value: _scatter,
    aten.scatter.reduce: _scatter,
    aten.scatter.value_reduce: _scatter,
    aten.scatter_add.default: _scatter,
    aten.scatter_reduce.two: _scatter,
    aten.index_put.default: _index_put,
}
