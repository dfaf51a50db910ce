"""Where a node reads its operands: the index maps that its element rule implies."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.fx import Node

from svdqc.compiler.codegen.ops.registry import ElementContext, Index, rule_of
from svdqc.compiler.codegen.scalar import DTYPE_NAMES, Load, Scalar
from svdqc.compiler.ir.intexpr import IntExpr, index
from svdqc.compiler.ir.symbols import Shape, SymbolTable


@dataclass(frozen=True)
class Access:
    """Element `idx` of `operand` is read for output element (i0, i1, …)."""

    operand: Node
    idx: Index


@dataclass
class AccessMaps:
    """Index maps of nodes, computed once per node. `virtual` nodes fold into their readers as views do."""

    table: SymbolTable
    virtual: frozenset[Node] = frozenset()
    _cache: dict[Node, tuple[Access, ...]] = field(default_factory=dict)

    def of(self, node: Node) -> tuple[Access, ...]:
        if node not in self._cache:
            self._cache[node] = self._compute(node)
        return self._cache[node]

    def kind(self, node: Node) -> str:
        """ "view", "creation", "pointwise", "reduce", "rows", "anchor", or "" for anything else."""
        if node in self.virtual:
            return "view"
        rule = rule_of(node)
        return rule.kind if rule is not None else ""

    def _compute(self, node: Node) -> tuple[Access, ...]:
        rule = rule_of(node)
        assert rule is not None, f"{node} has no rule"
        assert rule.element is not None, f"{node} has no element rule"
        found: list[Access] = []

        def read(operand: Node, idx: Index) -> Scalar:
            found.append(Access(operand, idx))
            return Load(operand, idx, DTYPE_NAMES[operand.meta["val"].dtype])

        rule.element(ElementContext(self.table, read), node, output_index(self.table.shape(node)))
        return tuple(found)


def output_index(shape: Shape) -> Index:
    """Loop indices i0, i1, … over a shape."""
    return tuple(index(f"i{axis}", size) for axis, size in enumerate(shape))


def plain_axis(expr: IntExpr, idx: Index) -> int | None:
    """The output axis j with expr == i_j, if it is that simple."""
    for axis, i in enumerate(idx):
        if not i.is_const and expr == i:
            return axis
    return None


def mentioned_axes(expr: IntExpr, idx: Index) -> list[int]:
    names = {s.name for s in expr.symbols()}
    return [axis for axis, i in enumerate(idx) if any(s.name in names for s in i.symbols())]


def is_tensor_node(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
