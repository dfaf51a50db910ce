"""Operands that a kernel reads in memory through any views: by pointer and strides, or as rows at equal distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from svdqc.compiler.codegen.ops.registry import Index
from svdqc.compiler.codegen.ops.views import delinearize, linearize
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.codegen.scalar import Load
from svdqc.compiler.codegen.storage import Storage
from svdqc.compiler.ir.intexpr import ZERO, IntExpr, index


@dataclass(frozen=True)
class Strided:
    """A tensor in memory: pointer text at index 0, and the C text of each axis' stride."""

    pointer: str
    strides: tuple[IntExpr, ...]
    storage: Storage


def strided(program: RowProgram, printer: StatementPrinter, node: Node) -> Strided:
    """The strides with which a value (through any views) lies in memory."""
    found = strides_of(program, printer.storages, node)
    assert found is not None, (
        f"{node} has no plain strides; the materialize pass should have copied it"
    )
    storage, strides, rest = found
    pointer = printer.pointer(storage)
    text = f"{pointer} + {printer.params.scalar(rest)}" if rest != 0 else pointer
    return Strided(text, strides, storage)


def strides_of(
    program: RowProgram, storages: Any, node: Node
) -> tuple[Storage, tuple[IntExpr, ...], IntExpr] | None:
    shape = program.table.shape(node)
    idx = tuple(index(f"i{a}", size) for a, size in enumerate(shape))
    value = program.read(node, idx)
    if not isinstance(value, Load):
        return None
    storage = storages[value.source]
    address = storage.address(value.idx) - storage.offset
    strides = []
    for i in idx:
        if i.is_const:
            strides.append(ZERO)
            continue
        (monomial,) = i.terms
        stride = address.coefficient_of(monomial[0])
        if stride is None:
            return None
        strides.append(stride)
        address = address - i * stride
    if any(s.extent is not None for s in address.symbols()):
        return None
    return storage, tuple(strides), address


def lead_decode(params: Params, sizes: Index, divisor: str) -> tuple[list[str], list[str]]:
    """C statements that split task / blocks into leading indices l0, l1, …; and their names."""
    lines = [f"int64_t lead = task / {divisor};"]
    names: list[str] = []
    for axis in reversed(range(len(sizes))):
        names.insert(0, f"l{axis}")
        size = params.scalar(sizes[axis], force=True)
        lines.append(f"const int64_t l{axis} = lead % {size};")
        lines.append(f"lead /= {size};")
    lines.append("".join(f"(void){n}; " for n in names).strip())
    return lines, names


def pointer_at(params: Params, operand: Strided, lead: list[str]) -> str:
    """The pointer at leading indices; a broadcast axis has stride 0."""
    terms = [
        f"{name} * {params.scalar(stride, force=True)}"
        for name, stride in zip(lead, operand.strides, strict=False)
        if stride != 0
    ]
    return " + ".join([operand.pointer, *terms])


def stored_kind(storage: Storage) -> str:
    """How svdq_cpu/element.h calls what widens this storage's values to f32."""
    return {"f32": "StoredF32", "bf16": "StoredBf16", "f16": "StoredF16"}[storage.dtype]


def weight_source(node: Node) -> Node:
    """The stored weight behind an operand: itself, or what a cast to float32 reads."""
    return node.args[0] if str(node.target) == "aten._to_copy.default" else node  # type: ignore[return-value]


def direct_rows(program: RowProgram, printer: StatementPrinter, x: Node) -> tuple[str, str] | None:
    """(pointer at row_begin, row stride) if the rows of x lie in memory at equal distances, as f32; else None."""
    layout = program.region.layout
    shape = program.table.shape(x)
    sizes = tuple(layout.atoms.size(a) for a in layout.outer)
    outer = tuple(program.loop_index(a) for a in layout.outer)
    k = index("ik", shape[-1])
    row = linearize(outer, sizes)
    if x in layout.axes or x in program.region.nodes:
        return None
    value = program.read(x, (*delinearize(row, shape[:-1]), k))
    if not isinstance(value, Load) or value.dtype != "f32" or value.source in program.region.nodes:
        return None
    storage = printer.storages[value.source]
    address = storage.address(value.idx) - storage.offset
    if not k.is_const:
        (monomial,) = k.terms
        step = address.coefficient_of(monomial[0])  # type: ignore[arg-type]
        if step != 1:
            return None
        address = address - k
    stride = _row_stride(address, outer)
    rest = address - row * stride
    if any(s.extent is not None for s in rest.symbols()):
        return None
    pointer = printer.pointer(storage)
    text = printer.params.scalar(stride, force=True)
    return f"{pointer} + {printer.params.scalar(rest)} + row_begin * {text}", text


def _row_stride(address: IntExpr, outer: Index) -> IntExpr:
    for i in reversed(outer):
        if not i.is_const:
            (monomial,) = i.terms
            return address.coefficient_of(monomial[0]) or ZERO  # type: ignore[arg-type]
    return ZERO
