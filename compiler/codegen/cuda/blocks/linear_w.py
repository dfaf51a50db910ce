"""A linear whose weight alone is coded, in 4 bits, such as a modulation layer's: `cuda/gemm_w4.cu.j2`."""

from __future__ import annotations

from typing import Any

from svdqc.compiler.codegen.cuda.blocks.linear import copies_16_bytes
from svdqc.compiler.codegen.cuda.blocks.parts import bias_text, headers
from svdqc.compiler.codegen.cuda.blocks.tensor_cores import math_of
from svdqc.compiler.codegen.cuda.tiles import band_height
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.operands import direct_rows
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget

FORMATS = {"s4": ("s4_rows", "S4"), "nf4": ("nf4_rows", "NF4")}
"""By weight format: the layout of the codes, and svdq::Codes4."""
COLUMNS, WARPS = 32, 8
LD = COLUMNS + 4
MOST_ROW_TILES = 4
TABLE_BYTES = 64
REGISTERS = 168
"""Of a thread, at most (tests/cuda/test_gemm_w4.py)."""
X_BITS, W_BITS = 32, 4


def linear_w_block(program: RowProgram, target: CudaTarget) -> Block:
    """8, 16 or 32 rows, however many there are."""
    tiles = -(-program.region.layout.num_rows.upper() // 8)
    tiles = 1 if tiles <= 1 else 2 if tiles == 2 else MOST_ROW_TILES
    return Block(8 * tiles, COLUMNS, 32 * WARPS)


def linear_w(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    x, w_codes, w_scale, bias, weight_format = operands(anchor)
    layout, codes = FORMATS[str(weight_format)]
    out_features, in_features = (int(s) for s in w_codes.meta["val"].shape)
    group = in_features // int(w_scale.meta["val"].shape[1])
    gemm_bytes = WARPS * block.rows * LD * 4 + (TABLE_BYTES if codes == "NF4" else 0)
    offset = printer.scratch.take(IntExpr.of(gemm_bytes))
    printer.tile = ("tile", str(LD), "col_begin")
    column_tiles = -(-out_features // COLUMNS)
    ctas = target.num_sms * target.max_ctas(block.threads, gemm_bytes, REGISTERS)
    types = f"svdq::{math_of(target)}, svdq::Codes4::{codes}, {group}, {block.rows // 8}"
    context: dict[str, Any] = {
        "gemm": f"svdq::W4Gemm<{types}>",
        "gemm_bytes": gemm_bytes,
        "out_features": out_features,
        "in_features": in_features,
        "band": band_height(ctas, block.rows * X_BITS, COLUMNS * W_BITS, column_tiles),
        "codes": printer.pointer(printer.storages.packed(w_codes, layout)),
        "w_scale": printer.pointer(printer.storages.packed(w_scale, "scale_rows")),
        "bias": bias_text(printer, bias),
        "x_rows": None,
        "x": [],
    }
    rows = direct_rows(program, printer, x)
    if rows is not None and copies_16_bytes(*rows, in_features):
        context["x_rows"] = {"x": rows[0], "ldx": rows[1]}
    else:
        body, text, _ = printer.gathered_value(x, None, "")
        context["x"] = [*printer.decode_row([*body, text]), *body, f"return {text};"]
    return AnchorCode(
        "cuda/gemm_w4.cu.j2",
        context,
        program.region.layout.num_rows.ceildiv(block.rows) * column_tiles,
        headers(program, "gemm_w4.h", "tile_order.h"),
        [],
        [f"char* const gemm_memory = scratch + {params.scalar(offset)};"],
    )
