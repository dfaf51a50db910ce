"""Changes of element type."""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.dtypes import (
    FLOAT8_DTYPES,
    NARROW_FLOATS,
    NARROW_INTS,
    NarrowFloat,
    torch_dtype,
)
from svdqc.frontends.onnx.errors import UnsupportedOnnxTypeError
from svdqc.frontends.onnx.registry import onnx_op


@onnx_op("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    return cast_to(call, x, call.required("to"))


@onnx_op("CastLike", since=15)
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    return cast_to(call, x, call.code(1, like))


def cast_to(call: Call, x: Tensor, code: int) -> Tensor:
    """x as ONNX element type `code`, in its carrier dtype."""
    dtype = torch_dtype(code, call.node.label)
    if code in NARROW_INTS:
        narrow = NARROW_INTS[code]
        whole = x.to(torch.int64)
        # Higher bits are discarded, as in any cast between integers.
        low = torch.bitwise_and(whole, (1 << narrow.bits) - 1)
        if narrow.signed:
            low = torch.where(low > narrow.hi, low - (1 << narrow.bits), low)
        return low.to(dtype)
    if code in NARROW_FLOATS:
        return round_to(x, NARROW_FLOATS[code])
    if dtype == torch.float8_e8m0fnu:
        return _to_e8m0(call, x)
    if dtype in FLOAT8_DTYPES:
        return to_float8(x, dtype, call.flag("saturate", True))
    if x.dtype == torch.float8_e8m0fnu:
        return x.to(torch.float32).to(dtype)
    if x.dtype.is_floating_point and not dtype.is_floating_point and dtype != torch.bool:
        return x.to(torch.int64).to(dtype)
    return x.to(dtype)


def to_float8(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    """Round to nearest even; what is out of range becomes the largest number, or infinity or NaN."""
    wide = x.to(torch.float32)
    largest = torch.finfo(dtype).max
    if saturate:
        # clamp keeps NaN.
        return wide.clamp(-largest, largest).to(dtype)
    # The first value that rounds beyond the largest number lies half a step above it.
    converted = wide.clamp(-largest, largest).to(dtype)
    has_infinity = dtype == torch.float8_e5m2
    beyond = wide.abs() >= _overflow_threshold(dtype)
    code = 0x7C if has_infinity else (0x80 if "fnuz" in str(dtype) else 0x7F)
    sign = torch.where(wide < 0, 0 if code == 0x80 else 0x80, 0)
    overflow = (sign + code).to(torch.uint8)
    return torch.where(beyond, overflow, converted.view(torch.uint8)).view(dtype)


def _overflow_threshold(dtype: torch.dtype) -> float:
    """Half a step above the largest number: from there on, rounding leaves the range."""
    largest = torch.finfo(dtype).max
    exponent = torch.frexp(torch.tensor(largest))[1].item() - 1
    step = 2.0**exponent * torch.finfo(dtype).eps
    return float(largest + step / 2)


def round_to(x: Tensor, kind: NarrowFloat) -> Tensor:
    """x rounded to nearest even among the numbers of a small float type, saturating; f32 carrier."""
    wide = x.to(torch.float32)
    bounded = wide.clamp(-kind.largest, kind.largest)
    # The exponent of each value, but not below that of the smallest normal number.
    exponent = (torch.frexp(bounded)[1] - 1).clamp(min=1 - kind.bias)
    step = torch.pow(2.0, (exponent - kind.mantissa_bits).to(torch.float32))
    rounded = torch.round(bounded / step) * step
    # There is no NaN to round to: it becomes -0.
    return torch.where(torch.isnan(wide), torch.full_like(wide, -0.0), rounded)


def _to_e8m0(call: Call, x: Tensor) -> Tensor:
    """Powers of two, 2^-127 to 2^127, of the magnitude of x."""
    wide = x.to(torch.float32).abs()
    bits = wide.view(torch.int32)
    exponent = torch.bitwise_right_shift(bits, 23)  # biased by 127, as e8m0 is
    mantissa = torch.bitwise_and(bits, 0x7FFFFF)
    mode = call.attribute("round_mode", "up")
    saturate = call.flag("saturate", True)
    if mode == "up":
        round_up = mantissa > 0
    elif mode == "nearest":
        round_up = mantissa >= 0x400000
    else:
        round_up = torch.zeros_like(mantissa, dtype=torch.bool)
    # Below 2^-126 the number is subnormal: its exponent field is 0, which stands for 2^-127 here.
    subnormal_down = (exponent == 0) & (mantissa <= 0x400000)
    if mode == "up":
        round_up = round_up & ~subnormal_down
    elif mode == "nearest":
        round_up = torch.where(exponent == 0, mantissa > 0x600000, round_up)
    code = exponent + round_up.to(torch.int32)
    code = torch.where(torch.isnan(wide), 255, code.clamp(max=254) if saturate else code)
    if saturate:
        code = torch.where(torch.isinf(wide), 254, code)
    return code.to(torch.uint8).view(torch.float8_e8m0fnu)


@onnx_op("BitCast", since=26)
def bit_cast(call: Call, x: Tensor) -> Tensor:
    code = call.required("to")
    if code in NARROW_INTS or code in NARROW_FLOATS or 0 in call.node.narrow_inputs:
        raise UnsupportedOnnxTypeError(
            call.node.label, "BitCast of a type below a byte", "cast to a wider type"
        )
    dtype = torch_dtype(code, call.node.label)
    if x.dtype == torch.bool or dtype == torch.bool:
        return x.view(torch.uint8).view(dtype)
    return x.view(dtype)
