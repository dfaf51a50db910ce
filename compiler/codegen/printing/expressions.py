"""Scalar expressions as C++: one local constant per distinct subexpression, guarded branches as real branches.

The functions of namespace svdq that it calls have the same names and meaning for every target (svdq_cpu/vec_math.h).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from svdqc.compiler.codegen.indirect import Indirects
from svdqc.compiler.codegen.printing.params import C_TYPES, Params
from svdqc.compiler.codegen.scalar import FLOATS, Const, IndexValue, Load, Op, Scalar
from svdqc.compiler.ir.intexpr import IntExpr

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
    "logical_and": "&&",
    "logical_or": "||",
    "bitwise_and": "&",
    "bitwise_or": "|",
    "bitwise_xor": "^",
    "logical_xor": "!=",
}
_PREFIX = {"neg": "-", "logical_not": "!", "bitwise_not": "~"}
_RENAMED = {"minimum": "min", "maximum": "max", "round": "round_even"}

LoadPrinter = Callable[[Load], str]


class BodyPrinter:
    """Prints values into a list of C++ lines. `load` gives the C text of a loaded value (`value_type`)."""

    def __init__(
        self, params: Params, load: LoadPrinter, indirects: Indirects, indent: str
    ) -> None:
        self.params, self.load, self.indirects, self.indent = params, load, indirects, indent
        self.lines: list[str] = []
        self._names: dict[Scalar, str] = {}
        self._indices: set[str] = set()
        self._counter = [0]

    def value(self, scalar: Scalar) -> str:
        """The C text of a value: a literal or the name of a local constant."""
        if isinstance(scalar, Const):
            return literal(scalar)
        if isinstance(scalar, IndexValue):
            self.define_indirects(scalar.expr)
            return f"static_cast<{value_type(scalar.dtype)}>({self.params.integer(scalar.expr)})"
        if scalar not in self._names:
            if isinstance(scalar, Op) and scalar.name == "guarded":
                self._names[scalar] = self._branch(scalar)
            else:
                text = self._text(scalar)
                self._names[scalar] = self._local(value_type(scalar.dtype), text)
        return self._names[scalar]

    def define_indirects(self, expr: IntExpr) -> None:
        """Declare the loaded indices that an index expression uses."""
        for symbol in sorted(expr.symbols(), key=lambda s: s.name):
            definition = self.indirects.definition(symbol.name)
            if definition is not None and symbol.name not in self._indices:
                text = self.value(definition)
                self.lines.append(f"{self.indent}const int64_t {symbol.name} = {text};")
                self._indices.add(symbol.name)

    def _text(self, scalar: Scalar) -> str:
        if isinstance(scalar, Load):
            for i in scalar.idx:
                self.define_indirects(i)
            return self.load(scalar)
        assert isinstance(scalar, Op), scalar
        if scalar.name == "cast":
            return _cast(self.value(scalar.args[0]), scalar.args[0].dtype, scalar.dtype)
        args = [self.value(a) for a in scalar.args]
        if scalar.name == "where":
            return f"{args[0]} ? {args[1]} : {args[2]}"
        if scalar.name == "div" and scalar.dtype in FLOATS:
            return f"{args[0]} / {args[1]}"
        if scalar.name == "div":
            return f"{args[0]} / {args[1]}"
        if scalar.name in _INFIX:
            return f"{args[0]} {_INFIX[scalar.name]} {args[1]}"
        if scalar.name in _PREFIX:
            return f"{_PREFIX[scalar.name]}{args[0]}"
        return f"svdq::{_RENAMED.get(scalar.name, scalar.name)}({', '.join(args)})"

    def _branch(self, op: Op) -> str:
        """Only the taken side is evaluated, since the other may address memory that is not there."""
        condition = self.value(op.args[0])
        name = self._fresh()
        self.lines.append(f"{self.indent}{value_type(op.dtype)} {name};")
        for keyword, side in ((f"if ({condition}) {{", op.args[1]), ("} else {", op.args[2])):
            self.lines.append(f"{self.indent}{keyword}")
            inner = BodyPrinter(self.params, self.load, self.indirects, self.indent + "  ")
            inner._names, inner._indices, inner._counter = (
                dict(self._names),
                set(self._indices),
                self._counter,
            )
            text = inner.value(side)
            self.lines.extend(inner.lines)
            self.lines.append(f"{self.indent}  {name} = {text};")
        self.lines.append(f"{self.indent}}}")
        return name

    def _local(self, c_type: str, text: str) -> str:
        name = self._fresh()
        self.lines.append(f"{self.indent}const {c_type} {name} = {text};")
        return name

    def _fresh(self) -> str:
        self._counter[0] += 1
        return f"v{self._counter[0]}"


def value_type(dtype: str) -> str:
    """The C type in which a value of this dtype is computed with; 16-bit floats are widened."""
    return "float" if dtype in ("f16", "bf16") else C_TYPES[dtype]


def literal(const: Const) -> str:
    value = const.value
    if const.dtype == "bool":
        return "true" if value else "false"
    if const.dtype in FLOATS:
        c_type = value_type(const.dtype)
        number = float(value)
        if math.isnan(number):
            return f"std::numeric_limits<{c_type}>::quiet_NaN()"
        if math.isinf(number) or (c_type == "float" and abs(number) > 3.4028235677973366e38):
            return ("-" if number < 0 else "") + f"std::numeric_limits<{c_type}>::infinity()"
        text = f"{number:.17g}"
        text = text if any(c in text for c in ".en") else text + ".0"
        return f"static_cast<{c_type}>({text})"
    return f"static_cast<{C_TYPES[const.dtype]}>({int(value)}LL)"


def widened(text: str, dtype: str) -> str:
    """The C text of a value computed with, from one that lies in memory as this dtype."""
    if dtype == "bf16":
        return f"svdq::bf16_to_f32({text})"
    if dtype == "f16":
        return f"svdq::f16_to_f32({text})"
    return text


def narrowed(text: str, dtype: str) -> str:
    """The C text that stores a computed value of this dtype."""
    if dtype == "bf16":
        return f"svdq::f32_to_bf16({text})"
    if dtype == "f16":
        return f"svdq::f32_to_f16({text})"
    return text


def _cast(text: str, source: str, target: str) -> str:
    if target == "bf16":
        return f"svdq::bf16_to_f32(svdq::f32_to_bf16(static_cast<float>({text})))"
    if target == "f16":
        return f"svdq::f16_to_f32(svdq::f32_to_f16(static_cast<float>({text})))"
    if target == "bool":
        return f"{text} != 0"
    return f"static_cast<{value_type(target)}>({text})"
