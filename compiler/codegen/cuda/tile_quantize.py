"""The quantization of a tile for the next linear: its columns become x̂ where they lie, codes and scales go to memory,
and what these columns add to the down-projection is one part of it (quantize_s4_parts in quantize/ops.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svdqc.compiler.codegen.columns import Place
from svdqc.compiler.codegen.cuda.blocks.tensor_cores import STORED
from svdqc.compiler.codegen.cuda.elements import presence
from svdqc.compiler.codegen.cuda.quantizers import quantizer
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.expressions import BodyPrinter
from svdqc.compiler.codegen.rowprogram import Quantize
from svdqc.compiler.codegen.scalar import cast
from svdqc.compiler.ir.rewrite import operands

if TYPE_CHECKING:
    from svdqc.compiler.codegen.cuda.statements import CudaStatements


def quantize_tile(printer: CudaStatements, statement: Quantize, place: Place) -> list[str]:
    """Lines for the rows of a slab and the values that the columns [col_begin, col_end) hold."""
    node, program, threads = statement.node, printer.program, printer.block.threads
    _, inv_smooth, lora_down, _, _, _, shift = operands(node)[:7]
    in_features = program.table.shape(statement.source)[-1].const
    assert printer.tile is not None
    tile, stride, _ = printer.tile
    runs = f"svdq::Runs<{place.elements}, {place.block}>"
    coder = quantizer(node, in_features, threads, printer.params, runs)
    codes = printer.item_pointer(node, 0, coder.code_bytes)
    scale = printer.item_pointer(node, 1, coder.scales)
    smooth = printer.pointer(printer.storages[inv_smooth])
    present = presence(printer.params, place, program.region)
    lines = [
        *_span(place, sliced=bool(present)),
        f"float* const x_hat = {tile} + (first - col_begin);",
        f"svdq::{coder.function}(rows, width, x_hat, {stride}, {smooth} + k_begin, {float(shift)!r}f, "
        f"{codes} + row_begin * {coder.code_bytes} + k_begin / {coder.k_per_byte}, "
        f"{scale} + row_begin * {coder.scales} + k_begin / {coder.k_per_scale}{coder.more});",
    ]
    if str(node.target) == anchors.QUANTIZE_S4_PARTS:
        rank, part = int(lora_down.meta["val"].shape[0]), int(operands(node)[7])
        stored = printer.storages[lora_down].dtype
        down = printer.pointer(printer.storages.packed(lora_down, f"{stored}_mma"))
        row = in_features // part * rank
        kind = f"svdq::Stored::{STORED[stored]}"
        lines += [
            printer.sync,
            f"svdq::project_tile<svdq::{printer.math}<{kind}>, {kind}, {threads}, {runs}>(rows, width, x_hat, "
            f"{stride}, {down}, k_begin, {in_features}, {rank}, "
            f"{printer.item_pointer(node, 2)} + row_begin * {row} + k_begin / {part} * {rank}, {row});",
        ]
    gathered = _gather(printer, statement, place)
    head = f"if ({present}) {{" if present else "{"
    return [*gathered, printer.sync, head, *(f"  {line}" for line in lines), "}"]


def _span(place: Place, sliced: bool) -> list[str]:
    """Lines that find the first column of the tile that holds a value, the value's number, and how many there are.
    sliced: whether a tile may have other columns."""
    begin, end = place.columns
    first, behind = "col_begin", "col_end"
    if sliced:
        first, behind = f"svdq::max_i64({first}, {begin})", f"svdq::min_i64({behind}, {end.const})"
    columns = place.block // place.elements  # for each value
    each = f" / {columns}" if columns > 1 else ""
    return [
        f"const int64_t first = {first};",
        f"const int64_t k_begin = (first - {begin}){each}, width = ({behind} - first){each};",
    ]


def _gather(printer: CudaStatements, statement: Quantize, place: Place) -> list[str]:
    """What is to be coded, each value in the place of a column that it alone is computed from (columns.py)."""
    program, source = printer.program, statement.source
    idx = program.output_index(source)
    body = BodyPrinter(printer.params, printer.load, program.indirects, "")
    text = body.value(cast(program.read(source, idx), "f32"))
    own = place.number * place.block + place.position
    lines = [*body.lines, f"{printer.tile_cell(place, own)} = {text};"]
    loops = printer.loops(program.region.layout.inner(source))
    return printer.elements(loops, lines)
