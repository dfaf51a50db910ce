"""A linear with coded weights and inputs in a format beside int4, with its low-rank branch: `cpu/gemm_coded.cpp.j2`."""

from __future__ import annotations

from dataclasses import dataclass

from svdqc.compiler.codegen.cpu.blocks.parts import (
    bias_context,
    column_context,
    headers,
    result_tile,
    uses_quantize,
)
from svdqc.compiler.codegen.cpu.quantizers import power_of_two
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.quantize.ops_formats import CodedLinear


@dataclass(frozen=True)
class CodedFormat:
    """product   which product of the template: "nibbles" (gemm_s4.h), "s8" or "e4m3"
    header    where it is
    codes, scales  the weight's layouts; of multiplied codes `scales` is that of a channel's scale
    weights, largest  of nibbles: what they stand for, and the largest input code
    """

    product: str
    header: str
    codes: str
    scales: str = "bf16_scale_n16"
    weights: str = ""
    largest: int = 0

    def scratch_bytes(self, rows: int, in_features: int, groups: int) -> int:
        """For the rearranged or decoded inputs of `rows` tokens."""
        per_row = {
            "nibbles": in_features + 8 * groups,
            "s8": 2 * in_features + 8,
            "e4m3": 4 * (in_features + 16),
        }
        return rows * per_row[self.product]


FORMATS = {
    "int8": CodedFormat("s8", "gemm_s8.h", "s8_n16k4"),
    "fp8": CodedFormat("e4m3", "gemm_e4m3.h", "e4m3_n16"),
    "w4a8": CodedFormat("nibbles", "gemm_s4.h", "s4_n16k4", weights="S4Multiplied", largest=127),
    "nvfp4": CodedFormat(
        "nibbles", "gemm_s4.h", "e2m1_n16k4", "e4m3_scale_n16", weights="E2m1Weights", largest=12
    ),
}
"""By precision."""


def linear_coded(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    given = CodedLinear(*operands(anchor))
    form, storages = FORMATS[given.precision], printer.storages
    out_features, in_features = (int(s) for s in given.w_codes.meta["val"].shape)
    of_group = given.w_scale if given.w_multiplier is None else given.w_multiplier
    groups, rank = int(of_group.meta["val"].shape[-1]), int(given.lora_up.meta["val"].shape[1])
    scale_groups = int(given.scale.meta["val"].shape[-1])
    declaration, ldo = result_tile(printer, block, out_features)
    packed = printer.scratch.take(IntExpr.of(form.scratch_bytes(block.rows, in_features, groups)))
    columns, num_tasks = column_context(program, block, out_features)
    w_pointer = printer.pointer(storages.packed(given.w_codes, form.codes))
    multiplier = ""
    if given.w_multiplier is not None:
        multiplier = printer.pointer(storages.packed(given.w_multiplier, "multiplier_n16"))
    context = {
        "out_features": out_features,
        "in_features": in_features,
        "product": form.product,
        "weights": form.weights,
        "largest": form.largest,
        "group": in_features // groups,
        "scale_groups": scale_groups,
        "by_row": scale_groups == 1 and groups > 1,
        "unit": power_of_two(given.w_unit, params) if given.precision == "nvfp4" else "1.0f",
        "rank": rank,
        "ldo": ldo,
        "codes": printer.pointer(storages[given.codes]),
        "scale": printer.pointer(storages[given.scale]),
        "low": printer.pointer(storages[given.low]) if rank else "",
        "w": f"reinterpret_cast<const uint8_t*>({w_pointer})",
        "w_scale": printer.pointer(storages.packed(given.w_scale, form.scales)),
        "multiplier": multiplier,
        "lora_up": printer.pointer(storages.packed(given.lora_up, "gemm_n16")) if rank else "",
        **bias_context(printer, given.bias),
        **columns,
    }
    declarations = [declaration, f"void* const packed = scratch + {params.scalar(packed)};"]
    return AnchorCode(
        "cpu/gemm_coded.cpp.j2",
        context,
        num_tasks,
        headers("gemm_f32.h", form.header, *uses_quantize(program)),
        [],
        declarations,
    )
