"""ONNX element types and the torch types that carry them.

Types narrower than a byte, and float6, have no torch type of their own: integers are carried in int8 or
uint8, floats in float32, one value per element and always exactly representable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from onnx import TensorProto as T

from svdqc.frontends.onnx.errors import UnsupportedOnnxTypeError


@dataclass(frozen=True)
class NarrowInt:
    """An integer type of `bits` bits, carried in a byte, packed on disk with the low bits first."""

    bits: int
    signed: bool

    @property
    def lo(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def hi(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


@dataclass(frozen=True)
class NarrowFloat:
    """A float type without infinity and NaN, carried in float32."""

    exponent_bits: int
    mantissa_bits: int

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def largest(self) -> float:
        exponent = (1 << self.exponent_bits) - 1 - self.bias
        return float(2.0**exponent * (2.0 - 2.0**-self.mantissa_bits))


NARROW_INTS: dict[int, NarrowInt] = {
    T.INT4: NarrowInt(4, signed=True),
    T.UINT4: NarrowInt(4, signed=False),
    T.INT2: NarrowInt(2, signed=True),
    T.UINT2: NarrowInt(2, signed=False),
}
# float6 came with onnx 1.23: enumerated by number, so that older packages can be used as well.
NARROW_FLOATS: dict[int, NarrowFloat] = {
    T.FLOAT4E2M1: NarrowFloat(2, 1),
    27: NarrowFloat(2, 3),
    28: NarrowFloat(3, 2),
}

TORCH_DTYPES: dict[int, torch.dtype] = {
    T.FLOAT: torch.float32,
    T.UINT8: torch.uint8,
    T.INT8: torch.int8,
    T.UINT16: torch.uint16,
    T.INT16: torch.int16,
    T.INT32: torch.int32,
    T.INT64: torch.int64,
    T.BOOL: torch.bool,
    T.FLOAT16: torch.float16,
    T.DOUBLE: torch.float64,
    T.UINT32: torch.uint32,
    T.UINT64: torch.uint64,
    T.COMPLEX64: torch.complex64,
    T.COMPLEX128: torch.complex128,
    T.BFLOAT16: torch.bfloat16,
    T.FLOAT8E4M3FN: torch.float8_e4m3fn,
    T.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    T.FLOAT8E5M2: torch.float8_e5m2,
    T.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    T.FLOAT8E8M0: torch.float8_e8m0fnu,
    **{code: torch.int8 if narrow.signed else torch.uint8 for code, narrow in NARROW_INTS.items()},
    **dict.fromkeys(NARROW_FLOATS, torch.float32),
}

FLOAT8_DTYPES = frozenset(
    {torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz}
)

_CODES = {
    dtype: code
    for code, dtype in TORCH_DTYPES.items()
    if code not in NARROW_INTS and code not in NARROW_FLOATS
}


def torch_dtype(code: int, subject: str) -> torch.dtype:
    """The torch type that carries ONNX element type `code`; `subject` names the tensor in the error."""
    dtype = TORCH_DTYPES.get(code)
    if dtype is None:
        known = code in T.DataType.values()
        raise UnsupportedOnnxTypeError(
            subject,
            f"element type {T.DataType.Name(code) if known else code}",  # type: ignore[arg-type]
            "only numbers and booleans can be compiled; move text processing out of the model",
        )
    return dtype


def onnx_code(dtype: torch.dtype) -> int:
    """The ONNX element type of a torch type that is not a carrier for a narrower one."""
    return _CODES[dtype]


def is_narrow(code: int) -> bool:
    return code in NARROW_INTS or code in NARROW_FLOATS
