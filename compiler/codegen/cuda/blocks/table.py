"""The anchors that have a block on GPUs, and the file each is described in."""

from __future__ import annotations

from collections.abc import Callable

from svdqc.compiler.codegen.cuda.blocks.rows import rows
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.targets.cuda import CudaTarget

Describe = Callable[[CudaTarget, RowProgram, StatementPrinter, Params, Block], AnchorCode]

BLOCKS: dict[str | None, Describe] = {
    None: rows,  # no anchor
}


def describe(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    """The anchor's part of the kernel."""
    anchor = program.region.anchor
    key = None if anchor is None else str(anchor.target)
    return BLOCKS[key](target, program, printer, params, block)
