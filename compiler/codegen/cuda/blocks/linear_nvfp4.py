"""An NVFP4 linear on block-scaled tensor cores: `cuda/gemm_int.cu.j2` with gemm_nvfp4.h, by
warps (sm_120a), or gemm_tcgen05.h (sm_100a).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from svdqc.compiler.codegen.cuda.blocks.linear_s4 import low_rank_context
from svdqc.compiler.codegen.cuda.blocks.tensor_cores import (
    chosen_tile,
    epilogue_room,
    product_code,
    tile_block,
    tile_blocks,
)
from svdqc.compiler.codegen.cuda.quantizers import exponent
from svdqc.compiler.codegen.cuda.tiles import RATES, START_CLOCKS, STORE_CLOCKS, Nvfp4, Tile
from svdqc.compiler.codegen.packed_rows import e2m1_code_bytes, e2m1_scale_bytes
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget

TCGEN05_TILES = (Tile(128, 128, 4, 2, 3, 2), Tile(128, 64, 4, 2, 3, 2), Tile(128, 32, 4, 1, 6, 2))
"""svdq::Tcgen05Gemm's: eight warps of 32 rows, three stages of 256 k; for few rows four, and six stages."""
BARRIER_BYTES = 128
CTAS = 2
"""Of an SM, where they fit: one multiplies while the other makes its first sums or stores its last. A branch in f32 has
not the registers for it."""
BOUND_REGISTERS = 128
"""Of a thread, where CTAS fit."""


@dataclass(frozen=True)
class Tcgen05(Nvfp4):
    """Products of E2M1 codes by svdq::Tcgen05Gemm."""

    header = "gemm_tcgen05.h"

    def gemm_bytes(self, tile: Tile) -> int:
        """Codes of both sides, and scales of 128 rows and columns."""
        return tile.stages * (128 * (tile.rows + tile.columns) + 2 * 128 * 16) + BARRIER_BYTES


def is_nvfp4(program: RowProgram) -> bool:
    """Whether the region's linear is one of E2M1 codes."""
    anchor = program.region.anchor
    assert anchor is not None
    return str(operands(anchor)[7]) == "nvfp4"


def _product(target: CudaTarget) -> Nvfp4:
    return Tcgen05() if "tcgen05_nvfp4" in target.tensor_ops else Nvfp4()


def linear_nvfp4_blocks(program: RowProgram, target: CudaTarget) -> Sequence[Block]:
    out_features, in_features = _sizes(program)
    product = _product(target)
    if not isinstance(product, Tcgen05):
        return tile_blocks(target, program, product, out_features, in_features)
    rows = program.region.layout.num_rows.upper()
    room = epilogue_room(target, program)
    tiles = [t for t in TCGEN05_TILES if room(t, product.gemm_bytes(t), t.slab_rows)]
    ranked = rank_tcgen05_tiles(target, rows, out_features, in_features, tiles)
    return [tile_block(tile) for tile in ranked]


def rank_tcgen05_tiles(
    target: CudaTarget, m: int, n: int, k: int, tiles: Sequence[Tile] = TCGEN05_TILES
) -> Sequence[Tile]:
    """`tiles` by the time that they take, as far as tensor cores, shared memory, the second-level cache and full waves
    decide.

    64 k of a tile are `columns / 2` clocks of tensor cores, which read both sides' codes at 128 bytes a clock. Codes
    and scales of rows that exist come from the cache.
    """

    def clocks(tile: Tile) -> float:
        products = max(
            tile.columns / 2,
            32 * (tile.rows + tile.columns) / 128,
            36 * (min(m, tile.rows) + tile.columns) / RATES[target.arch].cache_bytes,
        )
        around = START_CLOCKS + STORE_CLOCKS * tile.rows * tile.columns
        per_sm = -(-(-(-m // tile.rows) * -(-n // tile.columns)) // target.num_sms)
        return per_sm * (-(-k // 64) * products + around / min(_ctas(tile, target), per_sm))

    return sorted(tiles, key=clocks)


def _ctas(tile: Tile, target: CudaTarget) -> int:
    """That an SM has room for, CTAS at most."""
    return min(CTAS, target.max_ctas(tile.threads, Tcgen05().gemm_bytes(tile), BOUND_REGISTERS))


def _sizes(program: RowProgram) -> tuple[int, int]:
    """[out_features, in_features] of the weight."""
    anchor = program.region.anchor
    assert anchor is not None
    out_features, in_features = (int(s) for s in operands(anchor)[3].meta["val"].shape)
    return out_features, in_features


def linear_nvfp4(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    codes, scale, low, w_codes, w_scale, lora_up, bias, _, w_unit = operands(anchor)
    out_features, in_features = _sizes(program)
    product, tile = _product(target), chosen_tile(block)
    on_tcgen05 = isinstance(product, Tcgen05)
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
        "w_more": exponent(unit, params),
        "min_ctas": _ctas(tile, target) if on_tcgen05 and branch.get("lora_stored") != "F32" else 0,
        **branch,
    }
    return product_code(
        target,
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
