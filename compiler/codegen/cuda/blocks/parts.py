"""What the blocks of several anchors have in common: headers, the result's tile, bias."""

from __future__ import annotations

from typing import Any

from svdqc.compiler.codegen.cuda.quantizers import headers_of
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.backend import Block
from svdqc.compiler.codegen.printing.operands import stored_kind, weight_source
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import IntExpr


def headers(program: RowProgram, *extra: str) -> list[str]:
    """rows.h, what the region's statements call, and `extra`."""
    quantized = (n for n in program.region.nodes if str(n.target) in anchors.QUANTIZERS)
    found = {header for node in quantized for header in headers_of(node)}
    return ["rows.h", *sorted(found), *extra]


def result_tile(printer: StatementPrinter, block: Block, width: int, first: str) -> tuple[str, int]:
    """Shared memory for the anchor's result, its first column being `first`; returns declaration and row stride."""
    ldo = width + 4  # rows begin on different banks
    offset = printer.scratch.take(IntExpr.of(ldo * block.rows * 4))
    printer.tile = ("tile", str(ldo), first)
    return (
        f"float* const tile = reinterpret_cast<float*>(scratch + {printer.params.scalar(offset)});",
        ldo,
    )


def shared(printer: StatementPrinter, name: str, num_bytes: int) -> str:
    """The declaration of `num_bytes` of shared memory."""
    offset = printer.scratch.take(IntExpr.of(num_bytes))
    return f"char* const {name} = scratch + {printer.params.scalar(offset)};"


def bias_text(printer: StatementPrinter, bias: Any) -> str:
    """The bias as an expression of the column `column`."""
    if bias is None:
        return "0.0f"
    storage = printer.storages[weight_source(bias)]
    return f"svdq::{stored_kind(storage)}::load({printer.pointer(storage)}[column])"
