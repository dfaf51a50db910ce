"""A 4-bit linear with its low-rank branch: `cpu/gemm_s4.cpp.j2`."""

from __future__ import annotations

from svdqc.compiler.codegen.cpu.blocks.parts import (
    bias_context,
    column_context,
    headers,
    result_tile,
    uses_quantize,
)
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import RANGES, StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.ir.rewrite import operands


def linear_s4(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    codes, scale, low, w_codes, w_scale, lora_up, bias = operands(anchor)
    out_features, in_features = (int(s) for s in w_codes.meta["val"].shape)
    groups, rank = int(scale.meta["val"].shape[-1]), int(lora_up.meta["val"].shape[1])
    group = in_features // groups
    declaration, ldo = result_tile(printer, block, out_features)
    packed = printer.scratch.take(IntExpr.of(block.rows * (in_features + 8 * groups)))
    quantize = codes.args[0]
    columns, num_tasks = column_context(program, block, out_features)
    storages = printer.storages
    context = {
        "out_features": out_features,
        "in_features": in_features,
        "group": group,
        "rank": rank,
        "ldo": ldo,
        "range": RANGES[str(quantize.args[4])],
        "codes": printer.pointer(storages[codes]),
        "scale": printer.pointer(storages[scale]),
        "low": printer.pointer(storages[low]) if rank else "",
        "w": f"reinterpret_cast<const uint8_t*>({printer.pointer(storages.packed(w_codes, 's4_n16k4'))})",
        "w_scale": printer.pointer(storages.packed(w_scale, "bf16_scale_n16")),
        "lora_up": printer.pointer(storages.packed(lora_up, "gemm_n16")) if rank else "",
        **bias_context(printer, bias),
        **columns,
    }
    declarations = [declaration, f"void* const packed = scratch + {params.scalar(packed)};"]
    return AnchorCode(
        "cpu/gemm_s4.cpp.j2",
        context,
        num_tasks,
        headers("gemm_f32.h", "gemm_s4.h", *uses_quantize(program)),
        [],
        declarations,
    )
