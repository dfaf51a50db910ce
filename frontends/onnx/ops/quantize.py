"""Quantization operators of the standard."""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.dtypes import (
    FLOAT8_DTYPES,
    NARROW_FLOATS,
    NARROW_INTS,
    onnx_code,
    torch_dtype,
)
from svdqc.frontends.onnx.ops.cast import round_to, to_float8
from svdqc.frontends.onnx.ops.conv import integer_convolution
from svdqc.frontends.onnx.registry import onnx_op


@onnx_op("QuantizeLinear")
def quantize_linear(
    call: Call, x: Tensor, y_scale: Tensor, y_zero_point: Tensor | None = None
) -> Tensor:
    """saturate(round(x / scale) + zero_point), per tensor, axis or block."""
    code = call.attribute("output_dtype", 0)
    if not code:
        code = 2 if y_zero_point is None else call.code(2, y_zero_point)  # uint8 is the default
    precision = call.attribute("precision", 0)
    dtype = torch_dtype(precision, call.node.label) if precision else y_scale.dtype
    compute = torch.float32 if dtype in (torch.int32, torch.float8_e8m0fnu) else dtype
    scale = expanded(call, y_scale.to(compute), x)
    scaled = (x.to(compute) / scale).to(torch.float32)
    zero = None if y_zero_point is None else expanded(call, y_zero_point, x)
    target = torch_dtype(code, call.node.label)
    if code in NARROW_FLOATS:
        return round_to(scaled, NARROW_FLOATS[code])
    if target in FLOAT8_DTYPES:
        shifted = scaled if zero is None else scaled + zero.to(torch.float32)
        return to_float8(shifted, target, call.flag("saturate", True))
    lo, hi = integer_range(code)
    rounded = torch.round(scaled)
    if zero is not None:
        rounded = rounded + zero.to(torch.float32)
    return rounded.clamp(lo, hi).to(torch.int32).to(target)


@onnx_op("DequantizeLinear")
def dequantize_linear(
    call: Call, x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None = None
) -> Tensor:
    """(x - zero_point) · scale, per tensor, axis or block."""
    code = call.attribute("output_dtype", 0)
    dtype = torch_dtype(code, call.node.label) if code else x_scale.dtype
    compute = torch.float32 if dtype == torch.float8_e8m0fnu else dtype
    scale = expanded(call, x_scale, x).to(compute)
    if not x.dtype.is_floating_point:
        wide = x.to(torch.int32)
        if x_zero_point is not None:
            wide = wide - expanded(call, x_zero_point, x).to(torch.int32)
        return wide.to(compute) * scale
    wide = x.to(torch.float32)
    if x_zero_point is not None:
        wide = wide - expanded(call, x_zero_point, x).to(torch.float32)
    return wide.to(compute) * scale


def expanded(call: Call, parameter: Tensor, x: Tensor) -> Tensor:
    """A scale or zero point in a shape that broadcasts with x."""
    if parameter.dim() == 0 or (parameter.dim() == 1 and parameter.shape[0] == 1):
        return parameter.reshape(())
    axis = call.attribute("axis", 1) % x.dim()
    block = call.attribute("block_size", 0)
    if parameter.dim() == 1 and not block:
        return parameter.reshape([-1 if a == axis else 1 for a in range(x.dim())])
    if not block:
        block = -(-x.shape[axis] // parameter.shape[axis])
    narrow = parameter.unsqueeze(axis + 1)
    sizes = list(narrow.shape)
    sizes[axis + 1] = block
    repeated = narrow.expand(sizes).flatten(axis, axis + 1)
    return repeated.narrow(axis, 0, x.shape[axis])


def integer_range(code: int) -> tuple[int, int]:
    if code in NARROW_INTS:
        return NARROW_INTS[code].lo, NARROW_INTS[code].hi
    info = torch.iinfo(torch_dtype(code, "zero point"))
    return info.min, info.max


@onnx_op("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes over the range of x, which is made to contain 0."""
    lo = torch.clamp(x.amin(), max=0.0)
    hi = torch.clamp(x.amax(), min=0.0)
    scale = (hi - lo) / 255.0
    zero = torch.round(torch.clamp(-lo / scale, 0.0, 255.0))
    zero = torch.where(scale == 0, torch.zeros_like(zero), zero)
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = torch.clamp(torch.round(x / safe) + zero, 0.0, 255.0)
    return codes.to(torch.uint8), scale, zero.to(torch.uint8)


@onnx_op("QLinearMatMul")
def qlinear_matmul(
    call: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    x = a.to(torch.int32) - _rows(a_zero).to(torch.int32)
    w = b.to(torch.int32) - _columns(b_zero).to(torch.int32)
    total = torch.matmul(x, w)
    factor = _rows(a_scale).float() * _columns(b_scale).float() / _rows(y_scale).float()
    return _requantized(call, total, factor, _rows(y_zero), call.code(7, y_zero))


def _rows(parameter: Tensor) -> Tensor:
    return parameter.unsqueeze(-1) if parameter.dim() == 1 and parameter.shape[0] > 1 else parameter


def _columns(parameter: Tensor) -> Tensor:
    return parameter.unsqueeze(-2) if parameter.dim() > 1 else parameter


def _requantized(call: Call, total: Tensor, factor: Tensor, zero: Tensor, code: int) -> Tensor:
    lo, hi = integer_range(code)
    rounded = torch.round(total.to(torch.float32) * factor) + zero.to(torch.float32)
    return rounded.clamp(lo, hi).to(torch.int32).to(torch_dtype(code, call.node.label))


@onnx_op("QLinearConv")
def qlinear_conv(
    call: Call,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """int8 convolution summed in int32 with an int32 bias, then requantized per output channel."""
    channels = [-1] + [1] * (w.dim() - 1)

    def of_output(parameter: Tensor) -> Tensor:
        return parameter.reshape(channels) if parameter.dim() else parameter

    centred = x.to(torch.int32) - x_zero.to(torch.int32)
    kernel = w.to(torch.int32) - of_output(w_zero).to(torch.int32)
    total = integer_convolution(call, centred, kernel)
    spatial = [-1] + [1] * (w.dim() - 2)
    if bias is not None:
        total = total + bias.reshape(spatial)
    scale = w_scale.reshape(spatial) if w_scale.dim() else w_scale
    factor = x_scale * scale / y_scale
    return _requantized(call, total, factor, y_zero, onnx_code(y_zero.dtype))
