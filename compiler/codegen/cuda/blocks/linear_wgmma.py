"""A linear with 8-bit activations on Hopper's warpgroups: `cuda/gemm_wgmma.cu.j2`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from svdqc.compiler.codegen.cuda.blocks.linear_s4 import low_rank_context
from svdqc.compiler.codegen.cuda.blocks.tensor_cores import (
    chosen_tile,
    epilogue_room,
    product_code,
    tile_block,
)
from svdqc.compiler.codegen.cuda.tiles import STORE_CLOCKS, Coded, Tile
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget

FEWEST_ROWS = 64
"""Of one warpgroup; with fewer, mma.sync's smaller tiles waste less."""
CORE_BYTES = 16
HELPERS = 128
"""The third warpgroup."""
BARRIER_BYTES = 128
SLAB_ROWS = 64


@dataclass(frozen=True)
class WarpgroupFormat:
    """codes      svdq's kind of codes (gemm_wgmma_codes.h); "<group>" follows where weights are scaled by group
    operation  the tensor-core operation it needs
    w, w_scale layouts of the weight
    tiles      svdq::WgmmaGemm's: eight warps of 16 rows
    """

    codes: str
    operation: str
    w: str
    w_scale: str = "row_major"
    tiles: tuple[Tile, ...] = (Tile(128, 192, 8, 1, 4, 1), Tile(128, 128, 8, 1, 5, 1))


FORMATS = {
    "int8": WarpgroupFormat("WgmmaS8", "wgmma_s8", "s8_wgmma"),
    "fp8": WarpgroupFormat("WgmmaE4m3", "wgmma_e4m3", "e4m3_wgmma"),
    "w4a8": WarpgroupFormat(
        "WgmmaS8S4", "wgmma_s8", "s4_wgmma", "scale_wgmma", (Tile(128, 128, 8, 1, 4, 1),)
    ),
}
"""By precision."""


@dataclass(frozen=True)
class WarpgroupCodes(Coded):
    """Products by svdq::WgmmaGemm."""

    header = "gemm_wgmma.h"

    def gemm_bytes(self, tile: Tile) -> int:
        stage = self.bk * (tile.rows + tile.columns)
        if self.group:  # weights and scales as stored beside those as multiplied
            stage += tile.columns * (self.bk // 2 + self.bk // self.group * 6)
        return tile.stages * stage + BARRIER_BYTES + SLAB_ROWS * tile.ld * 4


def runs_on_warpgroups(program: RowProgram, target: CudaTarget) -> bool:
    """Whether the region's linear is one for warpgroups: of a precision they have, rows enough to fill them, and an
    epilogue that fits beside a tile."""
    anchor = program.region.anchor
    assert anchor is not None
    w_codes, precision = operands(anchor)[3], str(operands(anchor)[7])
    return (
        precision in FORMATS
        and FORMATS[precision].operation in target.tensor_ops
        and int(w_codes.meta["val"].shape[1]) % CORE_BYTES == 0
        and program.region.layout.num_rows.upper() >= FEWEST_ROWS
        and bool(_fitting(program, target))
    )


def _fitting(program: RowProgram, target: CudaTarget) -> list[Tile]:
    """The format's tiles that the epilogue fits beside."""
    anchor = program.region.anchor
    assert anchor is not None
    room, product = epilogue_room(target, program), _product(anchor)
    tiles = FORMATS[str(operands(anchor)[7])].tiles
    return [tile for tile in tiles if room(tile, product.gemm_bytes(tile), SLAB_ROWS)]


def _product(anchor: Node) -> WarpgroupCodes:
    w_codes, w_scale, precision = (operands(anchor)[i] for i in (3, 4, 7))
    if FORMATS[str(precision)].w_scale == "row_major":
        return WarpgroupCodes(8, 8, 0, False)
    group = int(w_codes.meta["val"].shape[1]) // int(w_scale.meta["val"].shape[-1])
    return WarpgroupCodes(8, 4, group, False)


def linear_wgmma_blocks(program: RowProgram, target: CudaTarget) -> Sequence[Block]:
    """By the time that the fitting tiles take, as far as tensor cores, shared memory and full waves decide."""
    anchor = program.region.anchor
    assert anchor is not None
    n, k = (int(s) for s in operands(anchor)[3].meta["val"].shape)
    m = program.region.layout.num_rows.upper()

    def clocks(tile: Tile) -> float:
        # Of 128 k: an operation of 64 rows and 32 k takes columns / 2, and reads both operands from shared memory,
        # which moves 128 bytes a clock and is written meanwhile.
        products = 8 * tile.columns / 2
        moved = 8 * 32 * (64 + tile.columns) + 128 * (tile.rows + tile.columns)
        waves = -(-(-(-m // tile.rows) * -(-n // tile.columns)) // target.num_sms)
        stored = STORE_CLOCKS * tile.rows * tile.columns
        return waves * (-(-k // 128) * max(products, moved / 128) + stored)

    # Of equals the widest first: it reads least.
    return [
        replace(tile_block(tile), helpers=HELPERS, slab=SLAB_ROWS)
        for tile in sorted(_fitting(program, target), key=clocks)
    ]


def linear_wgmma(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    codes, scale, low, w_codes, w_scale, lora_up, bias, precision, _ = operands(anchor)
    form = FORMATS[str(precision)]
    out_features, in_features = (int(s) for s in w_codes.meta["val"].shape)
    groups = int(w_scale.meta["val"].shape[-1])
    by_group = form.w_scale != "row_major"
    assert by_group or groups == 1, "8-bit weights have a scale a channel"
    product = _product(anchor)
    kind = f"{form.codes}<{product.group}>" if by_group else form.codes
    storages = printer.storages
    of_w = printer.pointer(
        storages.packed(w_scale, form.w_scale) if by_group else storages[w_scale]
    )
    context = {
        "gemm": f"svdq::WgmmaGemm<Tile, svdq::{kind}>",
        "in_features": in_features,
        "groups": groups,
        "x_codes": printer.pointer(storages[codes]),
        "x_scale": printer.pointer(storages[scale]),
        "w": printer.pointer(storages.packed(w_codes, form.w)),
        "w_scale": f"reinterpret_cast<const uint16_t*>({of_w})" if by_group else of_w,
        **low_rank_context(target, printer, low, lora_up),
    }
    code = product_code(
        "cuda/gemm_wgmma.cu.j2",
        program,
        printer,
        params,
        chosen_tile(block),
        product,
        out_features,
        bias,
        context,
    )
    # One for each multiprocessor.
    return replace(code, most_ctas=target.num_sms)
