"""Elementwise mathematics: one or two tensors in, one of the same type out."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from svdqc.frontends.onnx.call import Call, require_tensor
from svdqc.frontends.onnx.host import Host, Value
from svdqc.frontends.onnx.registry import onnx_op

# torch computes little in these: values go through int64, which wraps around the same way.
WIDENED = frozenset({torch.uint16, torch.uint32, torch.uint64})


def widened(function: Callable[..., Tensor], *operands: Any) -> Tensor:
    """`function`, computed in int64 where torch has no kernels for unsigned integers."""
    dtype = next(item.dtype for item in operands if isinstance(item, Tensor))
    if dtype not in WIDENED:
        return function(*operands)
    wide = [item.to(torch.int64) if isinstance(item, Tensor) else item for item in operands]
    result = function(*wide)
    return result.to(dtype) if result.dtype == torch.int64 else result


def operands(a: Value, b: Value) -> tuple[Any, Any]:
    """Two operands to broadcast: one that is a known scalar stays a number, the rest are tensors.

    A number leaves `x * 2` in the graph, where a tensor would leave a constant to be looked up.
    """
    if isinstance(b, Host) and isinstance(a, Tensor) and _is_scalar_beside(b, a):
        return a, b.number()
    if isinstance(a, Host) and isinstance(b, Tensor) and _is_scalar_beside(a, b):
        return a.number(), b
    return require_tensor(a), require_tensor(b)


def _is_scalar_beside(scalar: Host, tensor: Tensor) -> bool:
    return (
        scalar.numel == 1
        and len(scalar.shape) <= tensor.dim()
        and scalar.dtype == tensor.dtype
        and tensor.dtype.is_floating_point | (tensor.dtype in (torch.int64, torch.int32))
    )


@onnx_op("Add", host="all")
def add(call: Call, a: Value, b: Value) -> Tensor:
    return widened(torch.add, *_tensor_first(*operands(a, b)))


@onnx_op("Mul", host="all")
def mul(call: Call, a: Value, b: Value) -> Tensor:
    return widened(torch.mul, *_tensor_first(*operands(a, b)))


def _tensor_first(a: Any, b: Any) -> tuple[Any, Any]:
    return (a, b) if isinstance(a, Tensor) else (b, a)


@onnx_op("Sub", host="all")
def sub(call: Call, a: Value, b: Value) -> Tensor:
    x, y = operands(a, b)
    return widened(torch.sub, x, y) if isinstance(x, Tensor) else torch.rsub(y, x)


@onnx_op("Div", host="all")
def div(call: Call, a: Value, b: Value) -> Tensor:
    x, y = operands(a, b)
    if a.dtype.is_floating_point or a.dtype.is_complex:
        quotient: Tensor = x / y
        return quotient
    # Integer division truncates towards zero.
    x = x if isinstance(x, Tensor) else require_tensor(a)
    return widened(lambda p, q: torch.div(p, q, rounding_mode="trunc"), x, y)


@onnx_op("Mod")
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return widened(torch.fmod if call.flag("fmod") else torch.remainder, a, b)


@onnx_op("Pow", host="all")
def power(call: Call, a: Value, b: Value) -> Tensor:
    base, exponent = require_tensor(a), b
    if isinstance(exponent, Host) and exponent.numel == 1 and len(exponent.shape) <= base.dim():
        number = exponent.number()
        if base.dtype.is_floating_point:
            return torch.pow(base, number)
        if isinstance(number, int) and number >= 0:
            return torch.pow(base, number)
    exponent = require_tensor(exponent)
    if not base.dtype.is_floating_point:
        # The result has the type of the base, whatever the exponent is.
        if exponent.dtype.is_floating_point:
            return torch.pow(base.to(torch.float64), exponent.to(torch.float64)).to(base.dtype)
        return torch.pow(base.to(torch.int64), exponent.to(torch.int64)).to(base.dtype)
    return torch.pow(base, exponent.to(base.dtype))


@onnx_op("Max", "Min")
def extremum(call: Call, *inputs: Tensor) -> Tensor:
    function = torch.maximum if call.node.op_type == "Max" else torch.minimum
    return reduce(lambda a, b: widened(function, a, b), inputs)


@onnx_op("Sum")
def sum_of(call: Call, *inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs)


@onnx_op("Mean")
def mean_of(call: Call, *inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs) / len(inputs)


@onnx_op("Clip", host=(1, 2))
def clip(call: Call, x: Tensor, lo: Value | None = None, hi: Value | None = None) -> Tensor:
    if lo is None and hi is None:
        return x
    if all(bound is None or isinstance(bound, Host) for bound in (lo, hi)):
        numbers = [bound.number() if isinstance(bound, Host) else None for bound in (lo, hi)]
        return widened(torch.clamp, x, *numbers)
    # Scalars of shape [1] are tolerated: they must not raise the rank of x.
    bounds = [None if bound is None else require_tensor(bound).reshape(()) for bound in (lo, hi)]
    return widened(torch.clamp, x, *bounds)


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


@onnx_op(*UNARY)
def unary(call: Call, x: Tensor) -> Tensor:
    return widened(UNARY[call.node.op_type], x)


@onnx_op("Identity", host="all")
def identity(call: Call, x: Value) -> Value:
    return x


@onnx_op("Dropout", host=(1, 2))
def dropout(
    call: Call, x: Tensor, ratio: Value | None = None, training: Value | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    if training is not None and bool(call.host(training, "training_mode").number()):
        probability = 0.5 if ratio is None else float(call.host(ratio, "the ratio").number())
        if probability != 0.0:
            raise call.error("Dropout in training mode", "export the model in evaluation mode")
    return (x, torch.ones_like(x, dtype=torch.bool)) if call.wants(1) else x
