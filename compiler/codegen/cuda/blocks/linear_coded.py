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
from svdqc.compiler.targets.cuda import CudaTarget


@dataclass(frozen=True)
class CodedFormat:
    """codes: svdq's kind of codes (gemm_codes.h); layout and bits of the weight's; grouped: scaled every group of k."""

    codes: str
    layout: str
    w_bits: int
    grouped: bool
    template: str = "cuda/gemm_int.cu.j2"


FORMATS = {
    "int8": CodedFormat("S8", "s8_mma", 8, False),
    "fp8": CodedFormat("E4m3", "e4m3_mma", 8, False, "cuda/gemm_e4m3.cu.j2"),
    "w4a8": CodedFormat("S8S4", "s4s8_mma", 4, True),
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
    _, scale, _, w_codes, w_scale, _, _, precision, _ = operands(anchor)
    form = FORMATS[str(precision)]
    out_features, in_features = (int(s) for s in w_codes.meta["val"].shape)
    groups = int(w_scale.meta["val"].shape[-1])
    assert int(scale.meta["val"].shape[-1]) == 1, "activations of 8 bits have a scale a row"
    assert form.grouped or groups == 1, "8-bit weights have a scale a channel"
    if form.codes == "E4m3" and "e4m3" in target.tensor_ops:
        return form, Numbers(), (out_features, in_features)
    if form.codes == "E4m3":
        return replace(form, codes="E4m3Halves"), Numbers(halves=True), (out_features, in_features)
    group = in_features // groups if form.grouped else 0
    return form, Coded(8, form.w_bits, group, False), (out_features, in_features)


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
    codes, scale, low, w_codes, w_scale, lora_up, bias, _, _ = operands(anchor)
    form, product, (out_features, in_features) = _product(program, target)
    tile = chosen_tile(block)
    storages = printer.storages
    of_w = printer.pointer(storages.packed(w_scale, "scale_mma"))
    context = {
        "gemm": f"svdq::IntGemm<Tile, svdq::{form.codes}, {product.group}, {product.bk}, true>",
        "in_features": in_features,
        "x_groups": 1,
        "row_bytes": in_features,
        "x_codes": printer.pointer(storages[codes]),
        "x_scale": printer.pointer(storages[scale]),
        "w": printer.pointer(storages.packed(w_codes, form.layout)),
        "w_scale": f"reinterpret_cast<const uint16_t*>({of_w})",
        "unit_exponent": "",
        **low_rank_context(target, printer, low, lora_up),
    }
    return product_code(
        form.template,
        program,
        printer,
        params,
        tile,
        product,
        out_features,
        bias,
        context,
    )
