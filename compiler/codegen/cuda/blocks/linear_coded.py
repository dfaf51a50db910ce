"""A linear with 8-bit activations, one scale a row, and 8- or 4-bit weights: `cuda/gemm_int.cu.j2`, or
`cuda/gemm_e4m3.cu.j2` where both are E4M3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from svdqc.compiler.codegen.cuda.blocks.linear_nvfp4 import (
    is_nvfp4,
    linear_nvfp4,
    linear_nvfp4_blocks,
)
from svdqc.compiler.codegen.cuda.blocks.linear_s4 import low_rank_context
from svdqc.compiler.codegen.cuda.blocks.linear_wgmma import (
    linear_wgmma,
    linear_wgmma_blocks,
    multiplier_group,
    multiplier_text,
    runs_on_warpgroups,
)
from svdqc.compiler.codegen.cuda.blocks.tensor_cores import (
    chosen_tile,
    product_code,
    tile_blocks,
)
from svdqc.compiler.codegen.cuda.tiles import Coded, Numbers
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.quantize.ops_formats import CodedLinear
from svdqc.compiler.targets.cuda import CudaTarget


@dataclass(frozen=True)
class CodedFormat:
    """codes: svdq's kind of codes (gemm_codes.h), "<group>" follows where they are multiplied; layout and bits of the
    weight's."""

    codes: str
    layout: str
    w_bits: int
    template: str = "cuda/gemm_int.cu.j2"


FORMATS = {
    "int8": CodedFormat("S8", "s8_mma", 8),
    "fp8": CodedFormat("E4m3", "e4m3_mma", 8, "cuda/gemm_e4m3.cu.j2"),
    "w4a8": CodedFormat("S8S4", "u4s8_mma", 4),
}
"""By precision; nvfp4 has blocks of its own (linear_nvfp4.py)."""


def linear_coded_blocks(program: RowProgram, target: CudaTarget) -> Sequence[Block]:
    if runs_on_warpgroups(program, target):
        return linear_wgmma_blocks(program, target)
    if is_nvfp4(program):
        return linear_nvfp4_blocks(program, target)
    _, product, (out_features, in_features) = _product(program, target)
    return tile_blocks(target, program, product, out_features, in_features)


def _product(program: RowProgram, target: CudaTarget) -> tuple[CodedFormat, Coded, tuple[int, int]]:
    """The format, the product, [out_features, in_features] of the weight."""
    anchor = program.region.anchor
    assert anchor is not None
    given = CodedLinear(*operands(anchor))
    form = FORMATS[given.precision]
    out_features, in_features = (int(s) for s in given.w_codes.meta["val"].shape)
    for scale in (given.scale, given.w_scale):
        assert int(scale.meta["val"].shape[-1]) == 1, "a scale a row of either side"
    if group := multiplier_group(given):
        form = replace(form, codes=f"{form.codes}<{group}>")
    if form.codes == "E4m3" and "e4m3" in target.tensor_ops:
        return form, Numbers(), (out_features, in_features)
    if form.codes == "E4m3":
        return replace(form, codes="E4m3Halves"), Numbers(halves=True), (out_features, in_features)
    return form, Coded(8, form.w_bits, 0, False), (out_features, in_features)


def linear_coded(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    if block.helpers:
        return linear_wgmma(target, program, printer, params, block)
    if is_nvfp4(program):
        return linear_nvfp4(target, program, printer, params, block)
    given = CodedLinear(*operands(anchor))
    form, product, (out_features, in_features) = _product(program, target)
    tile = chosen_tile(block)
    storages = printer.storages
    of_w = printer.pointer(storages.packed(given.w_scale, "scale_mma"))
    context = {
        "gemm": f"svdq::IntGemm<Tile, svdq::{form.codes}, 0, {product.bk}>",
        "in_features": in_features,
        "x_groups": 1,
        "row_bytes": in_features,
        "x_codes": printer.pointer(storages[given.codes]),
        "x_scale": printer.pointer(storages[given.scale]),
        "w": printer.pointer(storages.packed(given.w_codes, form.layout)),
        "w_scale": f"reinterpret_cast<const uint16_t*>({of_w})",
        "w_more": multiplier_text(printer, given),
        **low_rank_context(target, printer, given.low, given.lora_up),
    }
    return product_code(
        target,
        form.template,
        program,
        printer,
        params,
        tile,
        product,
        out_features,
        given.bias,
        context,
    )
