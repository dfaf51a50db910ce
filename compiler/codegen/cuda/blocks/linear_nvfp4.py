"""An NVFP4 linear on block-scaled tensor cores: `cuda/gemm_int.cu.j2` with gemm_nvfp4.h, by
warps (sm_120a), or gemm_tcgen05.h (sm_100a).
"""

from __future__ import annotations

from dataclasses import dataclass

from svdqc.compiler.codegen.cuda.blocks.linear_s4 import low_rank_context
from svdqc.compiler.codegen.cuda.blocks.tensor_cores import product_code, tile_block, tile_of
from svdqc.compiler.codegen.cuda.quantizers import exponent
from svdqc.compiler.codegen.cuda.tiles import Nvfp4, Tile
from svdqc.compiler.codegen.packed_rows import e2m1_code_bytes, e2m1_scale_bytes
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget

TILE = Tile(128, 128, 4, 2, 3, 2)
"""svdq::Tcgen05Gemm's: eight warps of 32 rows by 64 columns, three stages of 256 k."""
STAGE_BYTES = 2 * 128 * (128 + 16)
"""Codes and scales of both sides."""
BARRIER_BYTES = 128
CTAS = 2
"""Of an SM: one multiplies while the other makes its first sums or stores its last. A branch in f32 has not the
registers for it."""


@dataclass(frozen=True)
class Tcgen05(Nvfp4):
    """Products of E2M1 codes by svdq::Tcgen05Gemm."""

    header = "gemm_tcgen05.h"

    def gemm_bytes(self, tile: Tile) -> int:
        return tile.stages * STAGE_BYTES + BARRIER_BYTES


def is_nvfp4(program: RowProgram) -> bool:
    """Whether the region's linear is one of E2M1 codes."""
    anchor = program.region.anchor
    assert anchor is not None
    return str(operands(anchor)[7]) == "nvfp4"


def _runs_on_tcgen05(target: CudaTarget) -> bool:
    return "tcgen05_nvfp4" in target.tensor_ops


def linear_nvfp4_block(program: RowProgram, target: CudaTarget) -> Block:
    if _runs_on_tcgen05(target):
        return tile_block(TILE)
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
    on_tcgen05 = _runs_on_tcgen05(target)
    product = Tcgen05() if on_tcgen05 else Nvfp4()
    tile = TILE if on_tcgen05 else tile_of(target, program, product, out_features, in_features)
    layout = "tcgen05" if on_tcgen05 else "mma"
    storages = printer.storages
    branch = low_rank_context(target, printer, low, lora_up)
    # E2M1 numbers are multiplied; scales of weights are for doubled ones, those of activations for single ones.
    unit = float(operands(codes.args[0])[8]) * 2.0 * float(w_unit)
    context = {
        "gemm": f"svdq::{'Tcgen05Gemm' if on_tcgen05 else 'Nvfp4Gemm'}<Tile>",
        "in_features": in_features,
        "x_groups": e2m1_scale_bytes(in_features),
        "row_bytes": e2m1_code_bytes(in_features),
        "x_codes": printer.pointer(storages[codes]),
        "x_scale": printer.pointer(storages[scale]),
        "w": printer.pointer(storages.packed(w_codes, f"e2m1_{layout}")),
        "w_scale": printer.pointer(storages.packed(w_scale, f"e4m3_scale_{layout}")),
        "unit_exponent": exponent(unit, params),
        "min_ctas": CTAS if on_tcgen05 and branch.get("lora_stored") != "F32" else 0,
        **branch,
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
