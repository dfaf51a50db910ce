"""Reductions over axes, and what orders elements along one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.host import Value
from svdqc.frontends.onnx.ops.arithmetic import widened
from svdqc.frontends.onnx.registry import onnx_op


def _reduce(
    call: Call, x: Tensor, axes_input: Value | None, function: Callable[..., Tensor]
) -> Tensor:
    """`function(x, dims, keepdims)`, with the axes of an input (since 18; ReduceSum 13) or attribute."""
    axes = call.axes("axes", axes_input)
    keepdims = call.flag("keepdims", True)
    if not axes:
        # Where this means no reduction, the elementwise part of the operator still applies.
        axes = [] if call.flag("noop_with_empty_axes") else list(range(x.dim()))
    return function(x, sorted(axis % x.dim() for axis in axes), keepdims)


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if not dims:
        return x
    if x.dtype.is_floating_point:
        return x.sum(dims, keepdim=keep)
    return x.to(torch.int64).sum(dims, keepdim=keep).to(x.dtype)


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if not dims:
        return x
    if x.dtype.is_floating_point:
        return x.mean(dims, keepdim=keep)
    return x.to(torch.float64).mean(dims, keepdim=keep).to(x.dtype)


def _prod(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in reversed(dims):
        x = x.prod(dim, keepdim=keep).to(x.dtype)
    return x


def _extremum(largest: bool) -> Callable[[Tensor, list[int], bool], Tensor]:
    def reduce_extremum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        if not dims:
            return x
        if any(isinstance(x.shape[dim], int) and x.shape[dim] == 0 for dim in dims):
            shape = [
                1 if axis in dims else size
                for axis, size in enumerate(x.shape)
                if keep or axis not in dims
            ]
            return torch.full(shape, _limit(x.dtype, lowest=largest), dtype=x.dtype)
        if x.dtype == torch.bool:
            return (
                torch.any(x, dim=dims, keepdim=keep)
                if largest
                else torch.logical_not(torch.any(torch.logical_not(x), dim=dims, keepdim=keep))
            )
        return widened(lambda y: (torch.amax if largest else torch.amin)(y, dims, keep), x)

    return reduce_extremum


def _limit(dtype: torch.dtype, lowest: bool) -> float | int | bool:
    if dtype == torch.bool:
        return not lowest
    if dtype.is_floating_point:
        return float("-inf") if lowest else float("inf")
    info = torch.iinfo(dtype)
    return info.min if lowest else info.max


def _log_sum_exp(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return x.to(x.dtype).logsumexp(dims, keepdim=keep) if dims else x


REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _prod,
    "ReduceMax": _extremum(largest=True),
    "ReduceMin": _extremum(largest=False),
    "ReduceL1": lambda x, dims, keep: _sum(x.abs(), dims, keep),
    "ReduceL2": lambda x, dims, keep: (
        torch.sqrt(_sum(x * x, dims, keep).float()).to(x.dtype)
        if not x.dtype.is_floating_point
        else torch.sqrt(_sum(x * x, dims, keep))
    ),
    "ReduceSumSquare": lambda x, dims, keep: _sum(x * x, dims, keep),
    "ReduceLogSum": lambda x, dims, keep: torch.log(_sum(x, dims, keep)),
    "ReduceLogSumExp": _log_sum_exp,
}


@onnx_op(*REDUCTIONS, host=(1,))
def reduction(call: Call, x: Tensor, axes: Value | None = None) -> Tensor:
    return _reduce(call, x, axes, REDUCTIONS[call.node.op_type])


@onnx_op("ArgMax", "ArgMin")
def arg_extremum(call: Call, x: Tensor) -> Tensor:
    axis, keepdims = call.attribute("axis", 0), call.flag("keepdims", True)
    function = torch.argmax if call.node.op_type == "ArgMax" else torch.argmin
    if not call.flag("select_last_index"):
        return function(x, dim=axis, keepdim=keepdims)
    last = x.shape[axis] - 1
    first = function(x.flip(axis), dim=axis, keepdim=keepdims)
    return torch.rsub(first, last)


@onnx_op("CumSum", host=(1,))
def cum_sum(call: Call, x: Tensor, axis: Value) -> Tensor:
    return _cumulative(call, x, axis, torch.cumsum, 0)


@onnx_op("CumProd", since=26, host=(1,))
def cum_prod(call: Call, x: Tensor, axis: Value) -> Tensor:
    return _cumulative(call, x, axis, torch.cumprod, 1)


def _cumulative(
    call: Call, x: Tensor, axis_input: Value, function: Callable[..., Tensor], neutral: int
) -> Tensor:
    (axis,) = call.static_ints(axis_input, "the axis")
    reverse = call.flag("reverse")
    ordered = x.flip(axis) if reverse else x
    total = function(ordered, dim=axis).to(x.dtype)
    if call.flag("exclusive"):
        first = torch.full_like(total.narrow(axis, 0, 1), neutral)
        total = torch.cat([first, total.narrow(axis, 0, total.shape[axis] - 1)], dim=axis)
    return total.flip(axis) if reverse else total


@onnx_op("TopK", host=(1,))
def top_k(call: Call, x: Tensor, k: Value) -> tuple[Tensor, Tensor]:
    """Ties go to the lower index, so a stable sort is used."""
    (count,) = call.ints(k, "k")
    axis, largest = call.attribute("axis", -1), call.flag("largest", True)
    values, indices = torch.sort(
        x.to(torch.int64) if x.dtype in (torch.uint16, torch.uint32, torch.uint64) else x,
        dim=axis,
        descending=largest,
        stable=True,
    )
    return values.narrow(axis, 0, count).to(x.dtype), indices.narrow(axis, 0, count)
