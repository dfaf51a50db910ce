"""Loaded indices: an address that depends on data is an index symbol with a defining value."""

from __future__ import annotations

from svdqc.compiler.codegen.scalar import Const, IndexValue, Indirect, Op, Scalar, cast, where
from svdqc.compiler.ir.intexpr import IntExpr, Sym


class Indirects:
    """The loaded indices of one region, named in order of appearance, so that equal regions print equal text."""

    def __init__(self) -> None:
        self._by_value: dict[Scalar, Indirect] = {}
        self._by_name: dict[str, Indirect] = {}

    def index(self, value: Scalar, extent: IntExpr) -> IntExpr:
        """An index expression for a loaded integer into an axis of `extent`; negative values count from the end."""
        value = cast(value, "i64")
        if isinstance(value, IndexValue):
            return value.expr
        if isinstance(value, Const):
            position = int(value.value)
            return IntExpr.of(position) + (extent if position < 0 else 0)
        size, zero = IndexValue(extent), Const(0, "i64")
        negative = Op("lt", (value, zero), "bool")
        wrapped = where(negative, Op("add", (value, size), "i64"), value)
        # An index outside the tensor must not read outside memory: clamp, as a wrong index has no right answer.
        last = Op("sub", (size, Const(1, "i64")), "i64")
        safe = Op("minimum", (Op("maximum", (wrapped, zero), "i64"), last), "i64")
        if safe not in self._by_value:
            indirect = Indirect(f"ind{len(self._by_value)}", safe, extent)
            self._by_value[safe] = self._by_name[indirect.name] = indirect
        name = self._by_value[safe].name
        return IntExpr({(Sym(name, 0, max(extent.upper() - 1, 0), extent),): 1})

    def definition(self, name: str) -> Scalar | None:
        """The value behind a symbol, or None if the symbol is no loaded index."""
        found = self._by_name.get(name)
        return found.value if found is not None else None
