"""The table of ops the code generator knows, and the context their rules are written against.

A rule of kind `view` or `pointwise` is a function from an output index to a scalar expression; `view` ops compute
nothing and are always folded into whoever reads them. `reduce` ops are loops inside a row program, `anchor` ops have
kernels of their own around which regions grow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.fx import Node

from svdqc.compiler.codegen.indirect import Indirects
from svdqc.compiler.codegen.scalar import (
    DTYPE_NAMES,
    FLOATS,
    Const,
    IndexValue,
    Scalar,
    cast,
)
from svdqc.compiler.codegen.symfloat import real_value
from svdqc.compiler.ir.intexpr import ZERO, IntExpr
from svdqc.compiler.ir.symbols import Shape, SymbolTable

Index = tuple[IntExpr, ...]


class Reader(Protocol):
    """Gives the value of a tensor node at an index: a load, or the node's own expression."""

    def __call__(self, node: Node, idx: Index, /) -> Scalar: ...


@dataclass
class ElementContext:
    """What an element rule may ask: shapes, operands, dtypes."""

    table: SymbolTable
    read: Reader
    indirects: Indirects = field(default_factory=Indirects)

    def shape(self, node: Node) -> Shape:
        return self.table.shape(node)

    def size(self, value: Any) -> IntExpr:
        return self.table.expr(value)

    def operand(self, value: Any, idx: Index, dtype: str) -> Scalar:
        """A tensor, SymInt node or Python number at output index `idx` (broadcast), as `dtype`."""
        if isinstance(value, Node) and isinstance(value.meta["val"], torch.Tensor):
            shape = self.shape(value)
            aligned = idx[len(idx) - len(shape) :]
            own = tuple(ZERO if size == 1 else i for size, i in zip(shape, aligned, strict=True))
            return cast(self.read(value, own), dtype)
        size = value.meta["val"] if isinstance(value, Node) else value
        if isinstance(size, torch.SymFloat):
            return cast(real_value(size.node.expr, self.table), dtype)
        if isinstance(value, (Node, torch.SymInt)):
            return cast(IndexValue(self.table.expr(value)), dtype)
        if isinstance(value, bool):
            return cast(Const(value, "bool"), dtype)
        if isinstance(value, int):
            return cast(Const(value, "i64"), dtype)
        return cast(Const(float(value), "f64"), dtype)


ElementRule = Callable[[ElementContext, Node, Index], Scalar]


@dataclass(frozen=True)
class OpRule:
    """kind: "view", "pointwise", "creation", "reduce" or "anchor"; `element` for the first three."""

    kind: str
    element: ElementRule | None = None


OPS: dict[str, OpRule] = {}


def element_rule(*targets: str, kind: str = "pointwise") -> Callable[[ElementRule], ElementRule]:
    """Register the element rule of ops such as `aten.add.Tensor`."""

    def register(rule: ElementRule) -> ElementRule:
        for target in targets:
            assert target not in OPS, f"op {target} has two rules"
            OPS[target] = OpRule(kind, rule)
        return rule

    return register


def declare(kind: str, *targets: str) -> None:
    for target in targets:
        assert target not in OPS, f"op {target} has two rules"
        OPS[target] = OpRule(kind)


def rule_of(node: Node) -> OpRule | None:
    return OPS.get(str(node.target)) if node.op == "call_function" else None


def dtype_of(node: Node) -> str:
    return DTYPE_NAMES[node.meta["val"].dtype]


def compute_dtype(dtype: str) -> str:
    """Arithmetic on 16-bit floats is done in f32."""
    return "f32" if dtype in FLOATS and dtype != "f64" else dtype


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """A positional or keyword argument of an ATen call."""
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name, default)


def promoted(node: Node, *values: Any) -> str:
    """The dtype in which operands of a comparison meet (torch.result_type)."""
    tensors = [v.meta["val"] if isinstance(v, Node) else v for v in values]
    concrete: list[Any] = []
    for value in tensors:
        if isinstance(value, torch.Tensor):
            shape = () if value.dim() == 0 else (1,)
            concrete.append(torch.empty(shape, dtype=value.dtype))
        elif isinstance(value, torch.SymInt):
            concrete.append(1)
        else:
            concrete.append(value)
    if len(concrete) == 1:
        concrete.append(concrete[0])
    return compute_dtype(DTYPE_NAMES[torch.result_type(concrete[0], concrete[1])])
