"""Scalar expressions: what one element of a fused region computes.

Expressions are immutable and shared: equal subexpressions are equal objects, so a printer that remembers what
it printed emits each once. Types are the plan's dtype names; floating arithmetic is done in f32 or f64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from svdqc.compiler.ir.intexpr import IntExpr

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "bool",
}
ITEM_BYTES = {
    "f32": 4,
    "f64": 8,
    "f16": 2,
    "bf16": 2,
    "i8": 1,
    "u8": 1,
    "i16": 2,
    "i32": 4,
    "i64": 8,
    "bool": 1,
}
FLOATS = ("f32", "f64", "f16", "bf16")


class Scalar:
    """Base of scalar expressions; `dtype` is the type of the computed value."""

    __slots__ = ()
    dtype: str


@dataclass(frozen=True)
class Const(Scalar):
    value: float | int | bool
    dtype: str

    def __hash__(self) -> int:
        return hash((repr(self.value), self.dtype))

    def __eq__(self, other: object) -> bool:  # repr tells -0.0 from 0.0 and equates NaNs
        return (
            isinstance(other, Const)
            and repr(self.value) == repr(other.value)
            and self.dtype == other.dtype
        )


@dataclass(frozen=True)
class IndexValue(Scalar):
    """An integer expression over loop indices and dims, as a value."""

    expr: IntExpr
    dtype: str = "i64"


@dataclass(frozen=True)
class Indirect(Scalar):
    """An index that was itself loaded: usable in a Load through its symbol."""

    name: str
    value: Scalar
    extent: IntExpr
    dtype: str = "i64"


class Load(Scalar):
    """Element `idx` of the value of a graph node (global memory or scratch: the printer knows)."""

    __slots__ = ("_hash", "dtype", "idx", "indirect", "source")

    def __init__(
        self, source: Any, idx: tuple[IntExpr, ...], dtype: str, indirect: tuple[Indirect, ...] = ()
    ) -> None:
        self.source, self.idx, self.dtype, self.indirect = source, idx, dtype, indirect
        self._hash = hash((id(source), idx, dtype, indirect))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Load)
            and self.source is other.source
            and self.idx == other.idx
            and self.dtype == other.dtype
            and self.indirect == other.indirect
        )


class Op(Scalar):
    """A named operation: arithmetic, comparison, `cast`, `where` or a function of the math library."""

    __slots__ = ("_hash", "args", "dtype", "name")

    def __init__(self, name: str, args: tuple[Scalar, ...], dtype: str) -> None:
        self.name, self.args, self.dtype = name, args, dtype
        self._hash = hash((name, args, dtype))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Op)
            and self._hash == other._hash
            and self.name == other.name
            and self.dtype == other.dtype
            and self.args == other.args
        )


def cast(value: Scalar, dtype: str) -> Scalar:
    """`value` as `dtype`; constants and identities fold."""
    if value.dtype == dtype:
        return value
    if isinstance(value, Const):
        if dtype in FLOATS:
            return Const(float(value.value), dtype)
        if dtype == "bool":
            return Const(bool(value.value), dtype)
        if value.value == value.value and abs(value.value) != float("inf"):
            return Const(int(value.value), dtype)
    if isinstance(value, IndexValue) and dtype in ("i64", "i32"):
        return IndexValue(value.expr, dtype)
    return Op("cast", (value,), dtype)


def where(condition: Scalar, if_true: Scalar, if_false: Scalar) -> Scalar:
    """Choose by value; both sides are evaluated."""
    if isinstance(condition, Const):
        return if_true if condition.value else if_false
    return Op("where", (condition, if_true, if_false), if_true.dtype)


def guarded(condition: Scalar, if_true: Scalar, if_false: Scalar) -> Scalar:
    """As `where`, but only the chosen side is evaluated: the other may read outside its tensor."""
    if isinstance(condition, Const):
        return if_true if condition.value else if_false
    return Op("guarded", (condition, if_true, if_false), if_true.dtype)


def compare_index(lhs: IntExpr, op: str, rhs: IntExpr | int) -> Scalar:
    """`lhs < rhs` or `lhs >= rhs`, folded where the ranges decide."""
    assert op in ("lt", "ge")
    rhs = IntExpr.of(rhs)
    difference = lhs - rhs
    if difference.upper() < 0 or lhs.known_less(rhs):
        return Const(op == "lt", "bool")
    if difference.lower() >= 0:
        return Const(op == "ge", "bool")
    return Op(op, (IndexValue(lhs), IndexValue(rhs)), "bool")


def both(lhs: Scalar, rhs: Scalar) -> Scalar:
    if isinstance(lhs, Const):
        return rhs if lhs.value else lhs
    if isinstance(rhs, Const):
        return lhs if rhs.value else rhs
    return Op("logical_and", (lhs, rhs), "bool")
