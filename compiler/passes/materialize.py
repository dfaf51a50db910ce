"""Decide what must lie in memory: concatenations of large parts, outputs, and operands that kernels walk by stride.

cat([a, b])          → svdq.concat([svdq.copy(a), svdq.copy(b)])     the copies are written in place
output(x)            → output(svdq.copy(x))
attention(q, …)      → attention(svdq.copy(q), …)                    where q is not plainly strided
"""

from __future__ import annotations

from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.ops.registry import ElementContext, Index, rule_of
from svdqc.compiler.codegen.scalar import DTYPE_NAMES, Load, Scalar
from svdqc.compiler.ir import ops
from svdqc.compiler.ir.intexpr import Sym, index
from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import Rewriter, aten, concat_parts, is_call, is_weight_cast
from svdqc.compiler.ir.symbols import SymbolTable
from svdqc.compiler.passes.base import PassReport

INLINE_PARTS = 4
"""A concatenation of so many single elements (a stack) is chosen by index instead of being stored."""


def materialize(program: Program) -> PassReport:
    report, rw = PassReport(), Rewriter(program)
    table = SymbolTable(program)
    for node in list(rw.graph.nodes):
        if is_call(node, aten.cat.default) and not _is_stack(node):
            _store_concat(rw, node)
            report.changed["concat"] += 1
    for node in list(rw.graph.nodes):
        for position in _strided_operands(node):
            operand = node.args[position]
            if isinstance(operand, Node) and not _is_strided(operand, table):
                with rw.before(node):
                    node.update_arg(position, rw.call(ops.copy, operand))
                report.changed["operand"] += 1
    _copy_outputs(rw, report)
    rw.finish()
    return report


def _is_stack(cat: Node) -> bool:
    pieces, axis = concat_parts(cat)
    sizes = [p.meta["val"].shape[axis] for p in pieces]
    return len(sizes) <= INLINE_PARTS and all(isinstance(s, int) and s == 1 for s in sizes)


def _store_concat(rw: Rewriter, node: Node) -> None:
    pieces, axis = concat_parts(node)
    dtype = node.meta["val"].dtype
    with rw.before(node):
        parts = []
        for piece in pieces:
            if piece.meta["val"].numel() == 0:
                continue
            if piece.meta["val"].dtype != dtype:
                piece = rw.call(aten._to_copy.default, piece, dtype=dtype)
            parts.append(rw.call(ops.copy, piece))
        joined = rw.call(ops.concat, parts, axis)
    rw.replace(node, joined)


def _strided_operands(node: Node) -> range | list[int]:
    """Operands that a kernel reads by pointer and strides."""
    target = str(node.target)
    if target == anchors.ATTENTION:
        return range(min(4, len(node.args)))
    if target == anchors.CONVOLUTION:
        return [0]
    return [1] if target == anchors.BMM else []


def _is_strided(node: Node, table: SymbolTable) -> bool:
    """Whether a value is a view with plain strides of something that lies in memory (assumed dense)."""
    idx = tuple(index(f"i{a}", size) for a, size in enumerate(table.shape(node)))

    def read(operand: Node, own: Index) -> Scalar:
        rule = rule_of(operand)
        folded = rule is not None and (rule.kind in ("view", "creation") or is_weight_cast(operand))
        if folded and rule is not None and rule.element is not None:
            return rule.element(ElementContext(table, read), operand, own)
        return Load(operand, own, DTYPE_NAMES[operand.meta["val"].dtype])

    value = read(node, idx)
    if not isinstance(value, Load) or value.dtype not in ("f32", "bool"):
        return False
    symbols = {s for i in idx for s in i.symbols()}
    return all(
        expr.coefficient_of(s) is not None
        for expr in value.idx
        for s in symbols
        if isinstance(s, Sym)
    )


def _copy_outputs(rw: Rewriter, report: PassReport) -> None:
    outputs = next(n for n in rw.graph.nodes if n.op == "output")
    with rw.before(outputs):
        copies = tuple(rw.call(ops.copy, value) for value in outputs.args[0])
    for copied, value in zip(copies, outputs.args[0], strict=True):
        copied.meta["source"] = value.meta.get("source") or copied.meta["source"]
    outputs.args = (copies,)
    report.changed["output"] += len(copies)
