"""An NVFP4 linear on block-scaled tensor cores: by warps on sm_120a, `cuda/gemm_int.cu.j2` with gemm_nvfp4.h."""

from __future__ import annotations

from svdqc.compiler.codegen.cuda.blocks.linear_s4 import low_rank_context
from svdqc.compiler.codegen.cuda.blocks.tensor_cores import product_code, tile_block, tile_of
from svdqc.compiler.codegen.cuda.quantizers import exponent
from svdqc.compiler.codegen.cuda.tiles import Nvfp4
from svdqc.compiler.codegen.packed_rows import e2m1_code_bytes, e2m1_scale_bytes
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget


def is_nvfp4(program: RowProgram) -> bool:
    """Whether the region's linear is one of E2M1 codes."""
    anchor = program.region.anchor
    assert anchor is not None
    return str(operands(anchor)[7]) == "nvfp4"


def linear_nvfp4_block(program: RowProgram, target: CudaTarget) -> Block:
    out_features, in_features = _sizes(program)
    return tile_block(tile_of(target, program, Nvfp4(), out_features, in_features))


def _sizes(program: RowProgram) -> tuple[int, int]:
    """[out_features, in_features] of the weight."""
    anchor = program.region.anchor
    assert anchor is not None
    out_features, in_features = (int(s) for s in operands(anchor)[3].meta["val"].shape)
    return out_features, in_features


def linear_nvfp4(
    target: CudaTarget, program: RowProgram, printer: StatementPrinter, params: Params
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    codes, scale, low, w_codes, w_scale, lora_up, bias, _, w_unit = operands(anchor)
    out_features, in_features = _sizes(program)
    product = Nvfp4()
    tile = tile_of(target, program, product, out_features, in_features)
    storages = printer.storages
    # E2M1 numbers are multiplied; scales of weights are for doubled ones, those of activations for single ones.
    unit = float(operands(codes.args[0])[8]) * 2.0 * float(w_unit)
    context = {
        "gemm": "svdq::Nvfp4Gemm<Tile>",
        "in_features": in_features,
        "x_groups": e2m1_scale_bytes(in_features),
        "row_bytes": e2m1_code_bytes(in_features),
        "x_codes": printer.pointer(storages[codes]),
        "x_scale": printer.pointer(storages[scale]),
        "w": printer.pointer(storages.packed(w_codes, "e2m1_mma")),
        "w_scale": printer.pointer(storages.packed(w_scale, "e4m3_scale_mma")),
        "unit_exponent": exponent(unit, params),
        **low_rank_context(target, printer, low, lora_up),
    }
    return product_code(
        "cuda/gemm_int.cu.j2",
        program,
        printer,
        params,
        tile,
        product,
        out_features,
        bias,
        context,
    )
