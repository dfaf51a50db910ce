"""The anchors that have a block on GPUs, and the file each is described in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from svdqc.compiler.codegen.cuda.blocks.attention import attention, attention_blocks
from svdqc.compiler.codegen.cuda.blocks.bmm import bmm
from svdqc.compiler.codegen.cuda.blocks.convolution import convolution, convolution_blocks
from svdqc.compiler.codegen.cuda.blocks.linear import linear, linear_blocks
from svdqc.compiler.codegen.cuda.blocks.linear_coded import linear_coded, linear_coded_blocks
from svdqc.compiler.codegen.cuda.blocks.linear_s4 import linear_s4, linear_s4_blocks
from svdqc.compiler.codegen.cuda.blocks.linear_w import linear_w, linear_w_block
from svdqc.compiler.codegen.cuda.blocks.plan import rows_blocks
from svdqc.compiler.codegen.cuda.blocks.product import product_block
from svdqc.compiler.codegen.cuda.blocks.rows import rows
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.targets.cuda import CudaTarget

Describe = Callable[[CudaTarget, RowProgram, StatementPrinter, Params, Block], AnchorCode]

PlanBlocks = Callable[[RowProgram, CudaTarget], Sequence[Block] | Block]
"""The blocks that a region can have, the best by the analytic model first; or the only one."""

BLOCKS: dict[str | None, tuple[PlanBlocks, Describe]] = {
    None: (rows_blocks, rows),  # no anchor
    anchors.LINEAR: (linear_blocks, linear),
    anchors.LINEAR_S4: (linear_s4_blocks, linear_s4),
    anchors.LINEAR_CODED: (linear_coded_blocks, linear_coded),
    anchors.LINEAR_W: (linear_w_block, linear_w),
    anchors.ATTENTION: (attention_blocks, attention),
    anchors.CONVOLUTION: (convolution_blocks, convolution),
    anchors.BMM: (product_block, bmm),
}


def blocks(program: RowProgram, target: CudaTarget) -> Sequence[Block]:
    """How many rows, columns and threads one CTA of the region can have, the best first."""
    found = BLOCKS[_key(program)][0](program, target)
    return [found] if isinstance(found, Block) else found


def describe(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    """The anchor's part of the kernel."""
    return BLOCKS[_key(program)][1](target, program, printer, params, block)


def _key(program: RowProgram) -> str | None:
    anchor = program.region.anchor
    return None if anchor is None else str(anchor.target)
