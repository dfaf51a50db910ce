"""Arithmetic on host values: Python numbers and symbols, element by element."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.dtypes import TORCH_DTYPES
from svdqc.frontends.onnx.host import (
    FOLDED_DTYPES,
    SYMBOLS,
    Host,
    host,
    host_array,
    sym_max,
    sym_min,
)
from svdqc.frontends.onnx.registry import host_op


class _CannotFoldError(Exception):
    """An element has no exact result in Python numbers: the operator runs on tensors."""


def _elementwise(function: Callable[..., Any], dtype: torch.dtype, *hosts: Host) -> Any:
    """`function` over broadcast elements."""
    arrays = np.broadcast_arrays(*(value.items for value in hosts))
    shape = arrays[0].shape
    try:
        results = [function(*(array[index] for array in arrays)) for index in np.ndindex(shape)]
    except _CannotFoldError:
        return NotImplemented
    return host(results, shape, dtype)


def _divide(a: Any, b: Any) -> Any:
    if not isinstance(b, SYMBOLS) and b == 0:
        raise _CannotFoldError
    if isinstance(a, (float, torch.SymFloat)) or isinstance(b, (float, torch.SymFloat)):
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return quotient if (a >= 0) == (b >= 0) else -quotient
    # Sizes are not negative, so truncation and floor agree.
    return a // b


def _modulo(a: Any, b: Any) -> Any:
    if (not isinstance(b, SYMBOLS) and b == 0) or isinstance(a, (float, torch.SymFloat)):
        raise _CannotFoldError
    return a % b


def _power(a: Any, b: Any) -> Any:
    if isinstance(b, SYMBOLS) or b < 0 or not float(b).is_integer() or b > 64:
        raise _CannotFoldError
    return reduce(operator.mul, [a] * int(b), 1)


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": _divide,
    "Mod": _modulo,
    "Pow": _power,
}


@host_op(*BINARY)
def fold_binary(call: Call, a: Host, b: Host) -> Any:
    if call.flag("fmod") or (call.node.op_type == "Pow" and a.dtype.is_floating_point):
        return NotImplemented
    return _elementwise(BINARY[call.node.op_type], a.dtype, a, b)


@host_op("Max", "Min")
def fold_extremum(call: Call, *hosts: Host) -> Any:
    function = sym_max if call.node.op_type == "Max" else sym_min
    if any(isinstance(x, float) and math.isnan(x) for value in hosts for x in value.flat()):
        return NotImplemented
    return reduce(lambda a, b: _elementwise(function, a.dtype, a, b), hosts)


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
}


@host_op(*COMPARISONS)
def fold_comparison(call: Call, a: Host, b: Host) -> Any:
    return _elementwise(COMPARISONS[call.node.op_type], torch.bool, a, b)


@host_op("And", "Or", "Xor")
def fold_boolean(call: Call, a: Host, b: Host) -> Any:
    function = {"And": operator.and_, "Or": operator.or_, "Xor": operator.xor}
    return _elementwise(function[call.node.op_type], torch.bool, a, b)


@host_op("Not")
def fold_not(call: Call, x: Host) -> Any:
    return _elementwise(torch.sym_not, torch.bool, x)


def _integral(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Floor and Ceil: of a symbol they are a symbolic integer, of an infinity themselves."""

    def apply(x: Any) -> Any:
        if isinstance(x, float) and not math.isfinite(x):
            return x
        return function(x)

    return apply


def _square_root(x: Any) -> Any:
    if isinstance(x, SYMBOLS) or x < 0:
        raise _CannotFoldError
    return math.sqrt(x)


def _sign(x: Any) -> Any:
    if isinstance(x, SYMBOLS) or x != x:
        raise _CannotFoldError
    return (x > 0) - (x < 0)


UNARY: dict[str, Callable[[Any], Any]] = {
    "Abs": abs,
    "Neg": operator.neg,
    "Floor": _integral(math.floor),
    "Ceil": _integral(math.ceil),
    "Sqrt": _square_root,
    "Sign": _sign,
}


@host_op(*UNARY)
def fold_unary(call: Call, x: Host) -> Any:
    if x.dtype == torch.bool:
        return NotImplemented
    return _elementwise(UNARY[call.node.op_type], x.dtype, x)


@host_op("Cast")
def fold_cast(call: Call, x: Host) -> Any:
    return _cast(x, TORCH_DTYPES.get(call.required("to")))


@host_op("CastLike")
def fold_cast_like(call: Call, x: Host, like: Host) -> Any:
    return _cast(x, like.dtype)


def _symbolic(name: str, *operands: Any) -> Any:
    """One of torch's functions on symbols, which have no types."""
    return getattr(torch, name)(*operands)


def _cast(x: Host, dtype: torch.dtype | None) -> Any:
    if dtype not in FOLDED_DTYPES:
        return NotImplemented

    def convert(item: Any) -> Any:
        if dtype == torch.bool:
            return item if isinstance(item, torch.SymBool) else item != 0
        if dtype.is_floating_point:
            return _symbolic("sym_float", item) if isinstance(item, SYMBOLS) else float(item)
        if isinstance(item, torch.SymBool):
            return int(bool(item))
        if isinstance(item, torch.SymFloat):
            return _symbolic("sym_int", item)
        if isinstance(item, torch.SymInt):
            return item
        if isinstance(item, float) and not math.isfinite(item):
            raise _CannotFoldError
        if not -(2**31) <= int(item) < 2**31 and dtype == torch.int32:
            raise _CannotFoldError
        return int(item)

    return _elementwise(convert, dtype, x)


@host_op("Where")
def fold_where(call: Call, condition: Host, a: Host, b: Host) -> Any:
    def choose(c: Any, x: Any, y: Any) -> Any:
        # Decides, as a guard on the dims where their ranges do not decide already.
        return x if c else y

    return _elementwise(choose, a.dtype, condition, a, b)


REDUCTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "ReduceSum": lambda items: sum(items[1:], items[0]),
    "ReduceProd": lambda items: reduce(operator.mul, items),
    "ReduceMax": lambda items: reduce(sym_max, items),
    "ReduceMin": lambda items: reduce(sym_min, items),
}


@host_op(*REDUCTIONS)
def fold_reduction(call: Call, x: Host, axes: Host | None = None) -> Any:
    """Over everything: vectors of sizes are what comes here."""
    chosen = call.axes("axes", axes)
    if call.flag("noop_with_empty_axes") and not chosen:
        return NotImplemented
    covered = {axis % max(len(x.shape), 1) for axis in chosen or range(len(x.shape))}
    if len(covered) != len(x.shape) or x.numel == 0 or x.dtype.is_floating_point:
        return NotImplemented
    result = REDUCTIONS[call.node.op_type](x.flat())
    shape = (1,) * len(x.shape) if call.flag("keepdims", True) else ()
    return host([result], shape, x.dtype)


@host_op("CumSum")
def fold_cum_sum(call: Call, x: Host, axis: Host) -> Any:
    if len(x.shape) != 1 or call.flag("exclusive") or call.flag("reverse"):
        return NotImplemented
    return host_array(np.cumsum(x.items, dtype=object), x.dtype)
