"""A linear with float weights: `cpu/gemm.cpp.j2`."""

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
from svdqc.compiler.codegen.printing.operands import weight_source
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import argument


def linear(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    x, weight, bias = anchor.args[0], anchor.args[1], argument(anchor, 2, "bias")
    out_features, in_features = (int(s) for s in weight.meta["val"].shape)  # type: ignore[union-attr]
    storage = printer.storages.packed(weight_source(weight), "gemm_n16")  # type: ignore[arg-type]
    declaration, ldo = result_tile(printer, block, out_features)
    pointer, ldx, declarations, before = input_rows(program, printer, block, x, in_features)  # type: ignore[arg-type]
    columns, num_tasks = column_context(program, block, out_features)
    context = {
        "out_features": out_features,
        "in_features": in_features,
        "ldo": ldo,
        "x": pointer,
        "ldx": ldx,
        "gemm": {"f32": "gemm_f32", "bf16": "gemm_wbf16", "f16": "gemm_wf16"}[storage.dtype],
        "w": printer.pointer(storage),
        **bias_context(printer, bias),
        **columns,
    }
    return AnchorCode(
        "cpu/gemm.cpp.j2",
        context,
        num_tasks,
        headers("gemm_f32.h", *uses_quantize(program)),
        before,
        [declaration, *declarations],
    )
