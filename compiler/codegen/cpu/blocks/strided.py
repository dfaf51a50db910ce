"""Operands that a block reads in memory through any views, by pointer and strides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from svdqc.compiler.codegen.cpu.params import Params
from svdqc.compiler.codegen.cpu.statements import StatementPrinter
from svdqc.compiler.codegen.ops.registry import Index
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
