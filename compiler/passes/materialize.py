"""Decide what must lie in memory: concatenations of large parts, outputs, and operands that kernels walk by stride.

cat([a, b])          → svdq.concat([svdq.copy(a), svdq.copy(b)])     the copies are written in place
cat([-x[n:], x[:n]]) → flatten(stack([-x[n:], x[:n]]))               halves of one value changed round: chosen by index
output(x)            → output(svdq.copy(x))
attention(q, …)      → attention(svdq.copy(q), …)                    where q is not plainly strided, or is a part of a
                                                                     product that nothing else needs whole
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

READ_WHERE_THEY_LIE = (anchors.ATTENTION, anchors.BMM)
"""Readers that take views of a product as they are."""


def materialize(program: Program) -> PassReport:
    report, rw = PassReport(), Rewriter(program)
    table = SymbolTable(program)
    for node in list(rw.graph.nodes):
        if is_call(node, aten.cat.default) and _changes_parts_round(node):
            _stack_parts(rw, node)
            report.changed["stack"] += 1
        elif is_call(node, aten.cat.default) and not _is_stack(node):
            _store_concat(rw, node)
            report.changed["concat"] += 1
    for node in list(rw.graph.nodes):
        for position in _strided_operands(node):
            operand = node.args[position]
            if isinstance(operand, Node) and (
                not _is_strided(operand, table) or _is_part_of_a_worked_product(operand)
            ):
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


def _changes_parts_round(cat: Node) -> bool:
    """Whether a concatenation along the last axis has few equal parts, all of one value, moved or negated: a rotation
    of halves."""
    pieces, axis = concat_parts(cat)
    sizes = [p.meta["val"].shape[-1] for p in pieces]
    if axis != cat.meta["val"].dim() - 1 or not 1 < len(pieces) <= INLINE_PARTS:
        return False
    if any(not isinstance(s, int) or s != sizes[0] for s in sizes):
        return False
    return len({_moved(piece) for piece in pieces}) == 1


def _moved(node: Node) -> Node:
    """The value whose elements these are, or the opposites of these."""
    while is_call(node, aten.neg.default) or _is_view(node):
        node = node.all_input_nodes[0]
    return node


def _is_view(node: Node) -> bool:
    """A view of one value."""
    rule = rule_of(node)
    return rule is not None and rule.kind == "view" and len(node.all_input_nodes) == 1


def _stack_parts(rw: Rewriter, cat: Node) -> None:
    pieces, axis = concat_parts(cat)
    with rw.before(cat):
        parts = [rw.call(aten.unsqueeze.default, p, axis) for p in pieces]
        stacked = rw.call(aten.cat.default, parts, axis)
        rw.replace(cat, rw.call(aten.flatten.using_ints, stacked, axis, axis + 1))


def _is_part_of_a_worked_product(operand: Node) -> bool:
    """Whether this is a slice of a linear's columns while others of them are worked on: those join the linear's kernel,
    and its whole result need not be stored for this one."""
    part, node = False, operand
    while _is_view(node):
        part = part or is_call(node, aten.slice.Tensor)
        node = node.all_input_nodes[0]
    if not part or str(node.target) not in anchors.LINEARS:
        return False
    return any(str(reader.target) not in READ_WHERE_THEY_LIE for reader in _readers(node))


def _readers(node: Node) -> list[Node]:
    """What reads a value, through views."""
    found: list[Node] = []
    for user in node.users:
        found.extend(_readers(user) if _is_view(user) else [user])
    return found


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
