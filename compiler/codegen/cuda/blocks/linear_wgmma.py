"""An int8 linear on Hopper's warpgroups: `cuda/gemm_wgmma.cu.j2`."""

from __future__ import annotations

from dataclasses import dataclass

from svdqc.compiler.codegen.cuda.blocks.linear_s4 import low_rank_context
from svdqc.compiler.codegen.cuda.blocks.tensor_cores import product_code
from svdqc.compiler.codegen.cuda.tiles import Coded, Tile
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget

FEWEST_ROWS = 64
"""Of one warpgroup; with fewer, mma.sync's smaller tiles waste less."""
CORE_BYTES = 16
THREADS = 288
TILE = Tile(128, 128, 8, 1, 5, 1)
"""svdq::WgmmaGemm's: eight warps of 16 rows, five stages in flight."""
BARRIER_BYTES = 128


@dataclass(frozen=True)
class WarpgroupCodes(Coded):
    """Products of 8-bit codes by svdq::WgmmaGemm."""

    header = "gemm_wgmma.h"

    def gemm_bytes(self, tile: Tile) -> int:
        return tile.stages * self.bk * (tile.rows + tile.columns) + BARRIER_BYTES


def runs_on_warpgroups(program: RowProgram, target: CudaTarget) -> bool:
    """Whether the region's linear is one for warpgroups: int8 on both sides, rows enough to fill them."""
    anchor = program.region.anchor
    assert anchor is not None
    w_codes, precision = operands(anchor)[3], str(operands(anchor)[7])
    return (
        "wgmma_s8" in target.tensor_ops
        and precision == "int8"
        and int(w_codes.meta["val"].shape[1]) % CORE_BYTES == 0
        and program.region.layout.num_rows.upper() >= FEWEST_ROWS
    )


def linear_wgmma_block() -> Block:
    return Block(TILE.rows, TILE.columns, THREADS)


def linear_wgmma(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    codes, scale, low, w_codes, w_scale, lora_up, bias, _, _ = operands(anchor)
    out_features, in_features = (int(s) for s in w_codes.meta["val"].shape)
    storages = printer.storages
    context = {
        "gemm": "svdq::WgmmaGemm<Tile>",
        "in_features": in_features,
        "x_codes": printer.pointer(storages[codes]),
        "x_scale": printer.pointer(storages[scale]),
        "w": printer.pointer(storages.packed(w_codes, "s8_wgmma")),
        "w_scale": printer.pointer(storages[w_scale]),
        **low_rank_context(target, printer, low, lora_up),
    }
    product = WarpgroupCodes(8, 8, 0, False)
    return product_code(
        "cuda/gemm_wgmma.cu.j2",
        program,
        printer,
        params,
        TILE,
        product,
        out_features,
        bias,
        context,
    )
