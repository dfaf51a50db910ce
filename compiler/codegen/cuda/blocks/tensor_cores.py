"""Products on tensor cores, `cuda/gemm.cu.j2`: what 4-bit and float linears have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from svdqc.compiler.codegen.columns import WIDEST, column_places
from svdqc.compiler.codegen.cuda.blocks.parts import bias_text, headers
from svdqc.compiler.codegen.cuda.tiles import (
    Floats,
    Product,
    SharedProduct,
    Tile,
    band_height,
    rank_tiles,
    resident_ctas,
)
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.targets.cuda import CudaTarget

ALIGNMENT = 128
"""Of a product's shared memory: swizzled rows and bulk copies."""
STORED = {"f32": "F32", "bf16": "BF16", "f16": "F16"}


def math_of(target: CudaTarget) -> str:
    """Which 16-bit products stand in for those of floats (gemm_float_math.h)."""
    return "Bf16Math" if "bf16" in target.tensor_ops else "F16Math"


def floats_of(target: CudaTarget, stored: str) -> Floats:
    """Products of f32 activations with weights stored so: hi and lo of x; of w too where one 16-bit float of this
    target does not hold it."""
    turing = math_of(target) == "F16Math"
    exact = stored == ("f16" if turing else "bf16")
    two = exact or (turing and stored == "bf16")
    return Floats(4 if stored == "f32" else 2, 2 if two else 3)


def tile_blocks(
    target: CudaTarget, program: RowProgram, product: Product, n: int, k: int
) -> Sequence[Block]:
    """A block for every tile that fits and that the epilogue fits beside, the analytic model's choice first."""
    room = epilogue_room(target, program)
    rows = program.region.layout.num_rows.upper()

    def suits(tile: Tile) -> bool:
        return room(tile, product.gemm_bytes(tile), tile.slab_rows)

    return [tile_block(tile) for tile in rank_tiles(target, product, rows, n, k, suits)]


def epilogue_room(target: CudaTarget, program: RowProgram) -> Callable[[Tile, int, int], bool]:
    """Whether a tile holds whole blocks of the columns that the epilogue mixes, and shared memory has room beside so
    many bytes of the product for what it keeps of so many rows at a time."""
    places = column_places(program, WIDEST)
    assert places is not None, f"{program.region.anchor}: cut along its columns"
    mixed = max((place.together for place in places.values()), default=1)
    kept = [places[node] for node in program.resident]

    def room(tile: Tile, gemm_bytes: int, slab_rows: int) -> bool:
        if tile.columns % mixed:
            return False
        row = sum(8 * tile.columns // place.block * place.elements + 8 for place in kept)
        return gemm_bytes + slab_rows * row <= target.shared_bytes_per_cta

    return room


def tile_block(tile: Tile) -> Block:
    return Block(tile.rows, tile.columns, tile.threads, slab=tile.slab_rows, tile=tile)


def chosen_tile(block: Block) -> Tile:
    """The tile that the block was made of."""
    assert isinstance(block.tile, Tile), block
    return block.tile


def product_code(
    target: CudaTarget,
    template: str,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    tile: Tile,
    product: SharedProduct,
    out_features: int,
    bias: Any,
    context: dict[str, Any],
) -> AnchorCode:
    """The anchor's code; `context` has what `template` needs beside what is common."""
    gemm_bytes = product.gemm_bytes(tile)
    offset = printer.scratch.take(IntExpr.of(gemm_bytes), ALIGNMENT)
    printer.tile = ("tile", str(tile.ld), "col_begin")
    column_tiles = -(-out_features // tile.columns)
    resident = context.get("min_ctas") or resident_ctas(tile, product, target)
    whole = {
        "tile": tile.cpp,
        "gemm_bytes": gemm_bytes,
        "out_features": out_features,
        "band": band_height(
            target.num_sms * resident,
            tile.rows * product.x_bits,
            tile.columns * product.w_bits,
            column_tiles,
        ),
        "bias": "" if bias is None else bias_text(printer, bias),
        "rank": 0,
        **context,
    }
    files = ["gemm_low_rank.h"] if whole["rank"] else []
    return AnchorCode(
        template,
        whole,
        program.region.layout.num_rows.ceildiv(tile.rows) * column_tiles,
        headers(program, product.header, "tile_order.h", *files),
        [],
        [f"char* const gemm_memory = scratch + {params.scalar(offset)};"],
    )
