"""Comparisons, booleans and bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from svdqc.frontends.onnx.call import Call, require_tensor
from svdqc.frontends.onnx.host import Host, Value
from svdqc.frontends.onnx.ops.arithmetic import operands, widened
from svdqc.frontends.onnx.registry import onnx_op

COMPARISONS: dict[str, Callable[..., Tensor]] = {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
}

MIRRORED = {
    "Equal": "Equal",
    "Greater": "Less",
    "GreaterOrEqual": "LessOrEqual",
    "Less": "Greater",
    "LessOrEqual": "GreaterOrEqual",
}


@onnx_op(*COMPARISONS, host="all")
def compare(call: Call, a: Value, b: Value) -> Tensor:
    name = call.node.op_type
    x, y = operands(a, b)
    if not isinstance(x, Tensor):
        x, y, name = y, x, MIRRORED[name]
    return widened(COMPARISONS[name], x, y)


@onnx_op("And", "Or", "Xor")
def boolean(call: Call, a: Tensor, b: Tensor) -> Tensor:
    function = {"And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor}
    return function[call.node.op_type](a, b)


@onnx_op("Not")
def logical_not(call: Call, x: Tensor) -> Tensor:
    return torch.logical_not(x)


@onnx_op("BitwiseAnd", "BitwiseOr", "BitwiseXor", since=18)
def bitwise(call: Call, a: Tensor, b: Tensor) -> Tensor:
    function = {
        "BitwiseAnd": torch.bitwise_and,
        "BitwiseOr": torch.bitwise_or,
        "BitwiseXor": torch.bitwise_xor,
    }[call.node.op_type]
    return widened(function, a, b)


@onnx_op("BitwiseNot", since=18)
def bitwise_not(call: Call, x: Tensor) -> Tensor:
    return widened(torch.bitwise_not, x)


@onnx_op("BitShift")
def bit_shift(call: Call, x: Tensor, amount: Tensor) -> Tensor:
    """Shifts by the width or more give 0 (or the sign, to the right)."""
    bits = x.dtype.itemsize * 8
    unsigned = not x.dtype.is_signed
    wide = x.to(torch.int64)
    distance = amount.to(torch.int64)
    if call.required("direction") == "LEFT":
        shifted = torch.bitwise_left_shift(wide, distance.clamp(max=63))
        return torch.where(distance >= bits, 0, shifted).to(x.dtype)
    if unsigned and bits == 64:
        # A logical shift in int64: clear the copies of the sign bit.
        low = distance.clamp(max=63)
        keep = ~torch.bitwise_left_shift(torch.full_like(wide, -1), 64 - low.clamp(min=1))
        shifted = torch.bitwise_right_shift(wide, low) & torch.where(low == 0, -1, keep)
        return torch.where(distance >= bits, 0, shifted).to(x.dtype)
    return torch.bitwise_right_shift(wide, distance.clamp(max=63)).to(x.dtype)


@onnx_op("Where", host=(1, 2))
def where(call: Call, condition: Tensor, a: Value, b: Value) -> Tensor:
    numbers = [_number(value, condition) for value in (a, b)]
    if numbers[0] is not None and numbers[1] is not None:
        return torch.where(condition, require_tensor(a), require_tensor(b))
    x = require_tensor(a) if numbers[0] is None else numbers[0]
    y = require_tensor(b) if numbers[1] is None else numbers[1]
    return torch.where(condition, x, y)


def _number(value: Value, beside: Tensor) -> float | int | None:
    """A known scalar as a number, where that changes neither type nor rank of the result."""
    if not isinstance(value, Host) or value.numel != 1 or len(value.shape) > beside.dim():
        return None
    if value.dtype not in (torch.float32, torch.int64) or not value.is_static():
        return None
    number = value.number()
    assert isinstance(number, (int, float))
    return number


@onnx_op("IsNaN")
def is_nan(call: Call, x: Tensor) -> Tensor:
    return torch.isnan(x.to(torch.float32) if x.dtype.itemsize == 1 else x)


@onnx_op("IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    wide = x.to(torch.float32) if x.dtype.itemsize == 1 else x
    positive, negative = call.flag("detect_positive", True), call.flag("detect_negative", True)
    if positive and negative:
        return torch.isinf(wide)
    if positive:
        return torch.isposinf(wide)
    return torch.isneginf(wide) if negative else torch.zeros_like(wide, dtype=torch.bool)
