"""From PyTorch's symbolic sizes (sympy inside SymInt) to IntExpr."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import sympy
import torch
from torch.fx import Node

from svdqc.compiler.ir.intexpr import IntExpr, maximum, minimum, symbol
from svdqc.compiler.ir.program import Program

Shape = tuple[IntExpr, ...]
_CEILING = ("CeilToInt", "ceiling")
_ROUNDING = ("FloorToInt", "TruncToInt", "floor", *_CEILING)
"""Sizes are not negative, so truncation is the floor."""


class SymbolTable:
    """Translates the sizes of one program; its dims give each symbol its name and range."""

    def __init__(self, program: Program) -> None:
        self.symbols = {
            name: symbol(dim.name, dim.lo, dim.hi) // dim.multiple
            for name, dim in program.dims.items()
        }
        self._cache: dict[Any, IntExpr] = {}

    def expr(self, size: int | torch.SymInt | Node) -> IntExpr:
        """The expression of a size; a graph node stands for the SymInt it computes."""
        if isinstance(size, Node):
            return self.expr(size.meta["val"])
        if isinstance(size, torch.SymInt):
            return self.size(size.node.expr)
        assert not isinstance(size, torch.SymFloat), f"{size} is no integer"
        return IntExpr.of(int(size))

    def shape(self, node: Node | torch.Tensor) -> Shape:
        """The shape of a tensor-valued node, or of a fake tensor."""
        value = node.meta["val"] if isinstance(node, Node) else node
        return tuple(self.expr(size) for size in value.shape)

    def exprs(self, sizes: Sequence[int | torch.SymInt | Node]) -> Shape:
        return tuple(self.expr(size) for size in sizes)

    def size(self, expr: Any) -> IntExpr:
        """The expression of a sympy size."""
        if expr not in self._cache:
            self._cache[expr] = self._translate(expr)
        return self._cache[expr]

    def _translate(self, expr: Any) -> IntExpr:
        if expr.is_Integer:
            return IntExpr.of(int(expr))
        if expr.is_Symbol:
            if expr.name not in self.symbols:
                raise KeyError(f"size symbol {expr.name!r} belongs to no dim of the program")
            return self.symbols[expr.name]
        if type(expr).__name__ in _ROUNDING and type(expr.args[0]).__name__ == "IntTrueDiv":
            lhs, rhs = (self.size(arg) for arg in expr.args[0].args)
            return lhs.ceildiv(rhs) if type(expr).__name__ in _CEILING else lhs // rhs
        args = [self.size(arg) for arg in expr.args if not _is_rational(arg)]
        if expr.is_Add:
            return reduce(lambda a, b: a + b, args)
        if expr.is_Mul:
            divisor = reduce(lambda a, b: a * b, [a.q for a in expr.args if _is_rational(a)], 1)
            factor = reduce(lambda a, b: a * b, [a.p for a in expr.args if _is_rational(a)], 1)
            product = reduce(lambda a, b: a * b, args) * factor
            return product // divisor
        if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
            return reduce(lambda a, b: a * b, [args[0]] * int(expr.exp))
        name = type(expr).__name__
        if name in ("FloorDiv", "CleanDiv"):
            return args[0] // args[1]
        if name == "CeilDiv":
            return args[0].ceildiv(args[1])
        if name in ("Mod", "PythonMod"):
            return args[0] % args[1]
        if name in ("Max", "Maximum"):
            return reduce(maximum, args)
        if name in ("Min", "Minimum"):
            return reduce(minimum, args)
        if name in (*_ROUNDING, "Identity", "ToFloat"):
            return args[0]
        raise KeyError(f"size expression {expr} uses {name}, which is not an integer operation")


def _is_rational(expr: Any) -> bool:
    return isinstance(expr, sympy.Rational) and not expr.is_Integer
