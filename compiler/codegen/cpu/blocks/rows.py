"""A region without an anchor: statements over rows, `cpu/rows.cpp.j2`."""

from __future__ import annotations

from svdqc.compiler.codegen.cpu.blocks.parts import (
    headers,
)
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram


def rows(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    return AnchorCode(
        "cpu/rows.cpp.j2",
        {},
        program.region.layout.num_rows.ceildiv(block.rows),
        headers("quantize_s4.h", "gemm_f32.h")
        if any(str(n.target) == anchors.QUANTIZE_S4 for n in program.region.nodes)
        else headers(),
    )
