"""Real numbers computed from sizes (sympy inside SymFloat), such as `height / 8`, as scalar expressions in f64."""

from __future__ import annotations

from functools import reduce
from typing import Any

from svdqc.compiler.codegen.scalar import Const, IndexValue, Op, Scalar, cast
from svdqc.compiler.ir.symbols import SymbolTable

_FUNCTIONS = {
    "OpaqueUnaryFn_sqrt": "sqrt",
    "OpaqueUnaryFn_exp": "exp",
    "OpaqueUnaryFn_log": "log",
    "OpaqueUnaryFn_log2": "log2",
    "OpaqueUnaryFn_sin": "sin",
    "OpaqueUnaryFn_cos": "cos",
}
_BINARY = {
    "IntTrueDiv": "div",
    "FloatTrueDiv": "div",
    "FloatPow": "pow",
    "PowByNatural": "pow",
    "Max": "maximum",
    "Min": "minimum",
    "Add": "add",
    "Mul": "mul",
}


def real_value(expr: Any, table: SymbolTable) -> Scalar:
    """The value of a sympy expression over the program's sizes."""
    if expr.is_Number:
        return Const(float(expr), "f64")
    if expr.is_Symbol or (expr.is_integer and type(expr).__name__ not in _BINARY):
        return cast(IndexValue(table.size(expr)), "f64")
    name = type(expr).__name__
    args = [real_value(arg, table) for arg in expr.args]
    if name == "ToFloat":
        return args[0]
    if name in _FUNCTIONS:
        return Op(_FUNCTIONS[name], (args[0],), "f64")
    if name == "Pow":
        return _power(args[0], expr.exp)
    if name in _BINARY:
        return reduce(lambda a, b: Op(_BINARY[name], (a, b), "f64"), args)
    raise KeyError(f"the number {expr}, computed from sizes, uses {name}")


def _power(base: Scalar, exponent: Any) -> Scalar:
    if exponent == -1:
        return Op("reciprocal", (base,), "f64")
    return Op("pow", (base, Const(float(exponent), "f64")), "f64")
