"""What the blocks of several anchors have in common: their result in scratch, columns, bias, headers."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.backend import Block
from svdqc.compiler.codegen.printing.operands import direct_rows, stored_kind, weight_source
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import IntExpr


def headers(*extra: str) -> list[str]:
    return ["rows.h", *extra]


def result_tile(printer: StatementPrinter, block: Block, out_features: int) -> tuple[str, int]:
    """Scratch for the anchor's result; returns its declaration and row stride."""
    width = block.columns or out_features
    ldo = -(-width // 16) * 16
    if ldo % 256 == 0:
        ldo += 16  # rows a power of two apart would share cache sets
    offset = printer.scratch.take(IntExpr.of(ldo * block.rows * 4))
    printer.tile = ("tile", str(ldo), "col_begin" if block.columns else "0")
    return (
        f"float* const tile = reinterpret_cast<float*>(scratch + {printer.params.scalar(offset)});",
        ldo,
    )


def column_context(
    program: RowProgram, block: Block, out_features: int
) -> tuple[dict[str, Any], IntExpr]:
    tasks = program.region.layout.num_rows.ceildiv(block.rows)
    column_tasks = -(-out_features // block.columns) if block.columns else 1
    return {"columns": block.columns, "column_tasks": column_tasks}, tasks * column_tasks


def uses_quantize(program: RowProgram) -> list[str]:
    """Headers of the quantizations at the end of a region."""
    targets = {str(n.target) for n in program.region.nodes}
    found = ["quantize_s4.h"] if anchors.QUANTIZE_S4 in targets else []
    return [*found, *(["quantize_formats.h"] if anchors.QUANTIZE in targets else [])]


def input_rows(
    program: RowProgram, printer: StatementPrinter, block: Block, x: Node, in_features: int
) -> tuple[str, str, list[str], list[str]]:
    """Where a float linear's input rows lie: pointer, row stride; declarations and statements that put them there."""
    rows = direct_rows(program, printer, x)
    if rows is not None:
        return *rows, [], []
    stride = in_features + 16
    offset = printer.scratch.take(IntExpr.of(stride * block.rows * 4))
    place = f"scratch + {printer.params.scalar(offset)}"
    declaration = f"float* const x_rows = reinterpret_cast<float*>({place});"
    return "x_rows", str(stride), [declaration], printer.gather(x, "x_rows", str(stride))


def bias_context(printer: StatementPrinter, bias: Any) -> dict[str, str]:
    """The bias vector as it is stored; "" for none."""
    if bias is None:
        return {"bias": "", "bias_stored": ""}
    storage = printer.storages[weight_source(bias)]
    return {"bias": printer.pointer(storage), "bias_stored": stored_kind(storage)}
