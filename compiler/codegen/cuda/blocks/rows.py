"""A region without an anchor: statements over rows, `cuda/rows.cu.j2`."""

from __future__ import annotations

from svdqc.compiler.codegen.cuda.blocks.parts import headers
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.targets.cuda import CudaTarget


def rows(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    num_tasks = program.region.layout.num_rows.ceildiv(block.rows)
    return AnchorCode("cuda/rows.cu.j2", {}, num_tasks, headers(program))
