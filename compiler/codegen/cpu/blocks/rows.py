"""A region without an anchor: statements over rows, `cpu/rows.cpp.j2`."""

from __future__ import annotations

from svdqc.compiler.codegen.cpu.blocks.parts import headers, uses_quantize
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram


def rows(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    quantizers = uses_quantize(program)
    return AnchorCode(
        "cpu/rows.cpp.j2",
        {},
        program.region.layout.num_rows.ceildiv(block.rows),
        headers(*quantizers, *(["gemm_f32.h"] if quantizers else [])),
    )
