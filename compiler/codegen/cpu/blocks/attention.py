"""Attention, a block of queries at a time: `cpu/attention.cpp.j2`."""

from __future__ import annotations

from typing import Any

from svdqc.compiler.codegen.cpu.blocks.parts import headers, result_tile
from svdqc.compiler.codegen.printing.attention_operands import attention_context, stored_result
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import IntExpr, prod
from svdqc.compiler.targets.cpu_scratch import attention_scratch_bytes


def attention(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    declarations: list[str] = []

    def place_result(names: list[str]) -> dict[str, Any]:
        if anchor in program.region.stored:
            return stored_result(program, printer, params, names)
        # An epilogue reads the block from scratch.
        width = program.table.shape(anchor)[-1].const
        declaration, ldo = result_tile(printer, block, width)
        declarations.append(declaration)
        return {"out": f"tile - query_begin * {ldo}", "out_row": str(ldo)}

    context = attention_context(program, printer, params, place_result)
    offset = printer.scratch.num_bytes
    declarations.append(f"void* const attention_scratch = scratch + {params.scalar(offset)};")
    context["scratch_bytes"] = attention_scratch_bytes(context["head_dim"], context["v_dim"])
    printer.scratch.take(IntExpr.of(context["scratch_bytes"]))
    shape = program.table.shape(anchor)
    return AnchorCode(
        "cpu/attention.cpp.j2",
        context,
        prod(shape[:-2]) * shape[-2].ceildiv(block.rows),
        headers("attention.h"),
        [],
        declarations,
    )
