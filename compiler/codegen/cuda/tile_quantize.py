"""The quantization of a tile for the next linear: its columns become x̂ where they lie, codes and scales go to memory,
and what these columns add to the down-projection is one part of it (quantize_s4_parts in quantize/ops.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svdqc.compiler.codegen.columns import Place
from svdqc.compiler.codegen.cuda.blocks.tensor_cores import STORED
from svdqc.compiler.codegen.cuda.quantizers import quantizer
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.expressions import BodyPrinter
from svdqc.compiler.codegen.rowprogram import Quantize
from svdqc.compiler.codegen.scalar import cast
from svdqc.compiler.ir.rewrite import operands

if TYPE_CHECKING:
    from svdqc.compiler.codegen.cuda.statements import CudaStatements


def quantize_tile(printer: CudaStatements, statement: Quantize, place: Place) -> list[str]:
    """Lines for the rows of a slab and the columns [col_begin, col_end)."""
    node, program, threads = statement.node, printer.program, printer.block.threads
    _, inv_smooth, lora_down, _, _, _, shift = operands(node)[:7]
    in_features = program.table.shape(statement.source)[-1].const
    assert printer.tile is not None
    tile, stride, _ = printer.tile
    coder = quantizer(node, in_features, threads, printer.params)
    codes = printer.item_pointer(node, 0, coder.code_bytes)
    scale = printer.item_pointer(node, 1, coder.scales)
    lines = [
        *_gather(printer, statement, place),
        printer.sync,
        f"svdq::{coder.function}(rows, col_end - col_begin, {tile}, {stride}, "
        f"{printer.pointer(printer.storages[inv_smooth])} + col_begin, {float(shift)!r}f, "
        f"{codes} + row_begin * {coder.code_bytes} + col_begin / {coder.k_per_byte}, "
        f"{scale} + row_begin * {coder.scales} + col_begin / {coder.k_per_scale}{coder.more});",
    ]
    if str(node.target) != anchors.QUANTIZE_S4_PARTS:
        return lines
    rank, part = int(lora_down.meta["val"].shape[0]), int(operands(node)[7])
    stored = printer.storages[lora_down].dtype
    down = printer.pointer(printer.storages.packed(lora_down, f"{stored}_mma"))
    row = in_features // part * rank
    kind = f"svdq::Stored::{STORED[stored]}"
    return [
        *lines,
        printer.sync,
        f"svdq::project_tile<svdq::{printer.math}<{kind}>, {kind}, {threads}>(rows, col_end - col_begin, {tile}, "
        f"{stride}, {down}, col_begin, {in_features}, {rank}, "
        f"{printer.item_pointer(node, 2)} + row_begin * {row} + col_begin / {part} * {rank}, {row});",
    ]


def _gather(printer: CudaStatements, statement: Quantize, place: Place) -> list[str]:
    """What is to be coded, each column in the place of the anchor's (columns.py asks that it is computed from that)."""
    program, source = printer.program, statement.source
    idx = program.output_index(source)
    body = BodyPrinter(printer.params, printer.load, program.indirects, "")
    text = body.value(cast(program.read(source, idx), "f32"))
    lines = [*body.lines, f"{printer.tile_cell(place, idx[-1])} = {text};"]
    loops = printer.loops(program.region.layout.inner(source))
    return printer.elements(loops, lines)
