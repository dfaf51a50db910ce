"""The anchors that have a block on CPUs, and the file each is described in."""

from __future__ import annotations

from collections.abc import Callable

from svdqc.compiler.codegen.cpu.blocks.attention import attention
from svdqc.compiler.codegen.cpu.blocks.bmm import bmm
from svdqc.compiler.codegen.cpu.blocks.coded import linear_coded
from svdqc.compiler.codegen.cpu.blocks.convolution import convolution
from svdqc.compiler.codegen.cpu.blocks.linear import linear
from svdqc.compiler.codegen.cpu.blocks.linear_s4 import linear_s4
from svdqc.compiler.codegen.cpu.blocks.rows import rows
from svdqc.compiler.codegen.cpu.blocks.weight_only import linear_w
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram

BLOCKS: dict[str | None, Callable[[RowProgram, StatementPrinter, Params, Block], AnchorCode]] = {
    None: rows,  # no anchor
    anchors.LINEAR: linear,
    anchors.LINEAR_S4: linear_s4,
    anchors.LINEAR_CODED: linear_coded,
    anchors.LINEAR_W: linear_w,
    anchors.ATTENTION: attention,
    anchors.CONVOLUTION: convolution,
    anchors.BMM: bmm,
}


def describe(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    """The anchor's part of the kernel."""
    anchor = program.region.anchor
    return BLOCKS[None if anchor is None else str(anchor.target)](program, printer, params, block)
