"""A linear whose weight alone is coded, in 4 bits: `cpu/gemm_w4.cpp.j2`."""

from __future__ import annotations

from svdqc.compiler.codegen.cpu.blocks.parts import (
    bias_context,
    column_context,
    headers,
    input_rows,
    result_tile,
    uses_quantize,
)
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import operands

FORMATS = {"s4": ("s4_n16k4", "S4Values"), "nf4": ("nf4_n16k4", "Nf4Values")}
"""By weight format: the layout of the codes, and what they stand for (gemm_w4.h)."""


def linear_w(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    x, w_codes, w_scale, bias, weight_format = operands(anchor)
    layout, values = FORMATS[str(weight_format)]
    out_features, in_features = (int(s) for s in w_codes.meta["val"].shape)
    declaration, ldo = result_tile(printer, block, out_features)
    pointer, ldx, declarations, before = input_rows(program, printer, block, x, in_features)
    columns, num_tasks = column_context(program, block, out_features)
    w_pointer = printer.pointer(printer.storages.packed(w_codes, layout))
    context = {
        "out_features": out_features,
        "in_features": in_features,
        "group": in_features // int(w_scale.meta["val"].shape[1]),
        "values": values,
        "ldo": ldo,
        "x": pointer,
        "ldx": ldx,
        "w": f"reinterpret_cast<const uint8_t*>({w_pointer})",
        "w_scale": printer.pointer(printer.storages.packed(w_scale, "bf16_scale_n16")),
        **bias_context(printer, bias),
        **columns,
    }
    return AnchorCode(
        "cpu/gemm_w4.cpp.j2",
        context,
        num_tasks,
        headers("gemm_w4.h", *uses_quantize(program)),
        before,
        [declaration, *declarations],
    )
