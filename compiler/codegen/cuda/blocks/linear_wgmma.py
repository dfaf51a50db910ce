"""A linear with 8-bit activations on Hopper's warpgroups: `cuda/gemm_wgmma.cu.j2`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from svdqc.compiler.codegen.cuda.blocks.linear_s4 import low_rank_context
from svdqc.compiler.codegen.cuda.blocks.tensor_cores import (
    chosen_tile,
    epilogue_room,
    product_code,
    tile_block,
)
from svdqc.compiler.codegen.cuda.tiles import STORE_CLOCKS, Tile
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.quantize.ops_formats import CodedLinear
from svdqc.compiler.targets.cuda import CudaTarget

FEWEST_ROWS = 64
"""Of one warpgroup; with fewer, mma.sync's smaller tiles waste less."""
CORE_BYTES = 16
HELPERS = 128
"""The third warpgroup."""
BARRIER_BYTES = 128
SLAB_ROWS = 64


@dataclass(frozen=True)
class WarpgroupTile(Tile):
    """svdq::WgmmaTile: a warp has 16 columns and every row."""

    @property
    def ld(self) -> int:
        return self.columns + 4

    @property
    def cpp(self) -> str:
        return f"svdq::WgmmaTile<{self.rows}, {self.stages}>"


@dataclass(frozen=True)
class WarpgroupFormat:
    """codes      svdq's kind of codes (gemm_wgmma_codes.h); "<group>" follows where they are multiplied
    operation  the tensor-core operation it needs
    w          layout of the weight's codes, w_bits each
    gemm       svdq's product of them, the header it is in, and the tiles it has
    """

    codes: str
    operation: str
    w: str
    w_bits: int = 8
    gemm: str = "WgmmaGemm"
    header: str = "gemm_wgmma.h"
    tiles: tuple[Tile, ...] = (Tile(128, 192, 8, 1, 4, 1), Tile(128, 128, 8, 1, 5, 1))


FORMATS = {
    "int8": WarpgroupFormat("WgmmaS8", "wgmma_s8", "s8_wgmma"),
    "fp8": WarpgroupFormat("WgmmaE4m3", "wgmma_e4m3", "e4m3_wgmma"),
    "w4a8": WarpgroupFormat(
        "WgmmaS8S4",
        "wgmma_s8",
        "u4s8_mma",
        4,
        "WgmmaGemmS4",
        "gemm_wgmma_s4.h",
        (WarpgroupTile(192, 128, 1, 8, 5, 4), WarpgroupTile(128, 128, 1, 8, 6, 4)),
    ),
}
"""By precision."""


@dataclass(frozen=True)
class WarpgroupCodes:
    """Products by svdq::WgmmaGemm or WgmmaGemmS4; multipliers: bytes for a column's 128 k."""

    header: str
    w_bits: int
    multipliers: int

    bk = 128
    x_bits = 8

    def gemm_bytes(self, tile: Tile) -> int:
        of_column = self.bk * self.w_bits // 8 + self.multipliers
        stage = self.bk * tile.rows + of_column * tile.columns
        return tile.stages * stage + BARRIER_BYTES + SLAB_ROWS * tile.ld * 4

    def clocks(self, tile: Tile) -> float:
        """Of 128 k: an operation of 64 by N and 32 k takes N / 2 clocks, and shared memory, which moves 128 bytes a
        clock, gives it the right operand and of 8-bit weights the left one. Meanwhile the next ones come."""
        products = tile.rows * tile.columns / 32
        if self.w_bits == 8:
            read = tile.rows // 64 * self.bk * (64 + tile.columns)
        else:
            read = tile.columns // 64 * self.bk * tile.rows + self.bk * tile.columns // 2
        come = self.bk * (tile.rows + tile.columns * self.w_bits // 8)
        return max(products, (read + come) / 128)


def runs_on_warpgroups(program: RowProgram, target: CudaTarget) -> bool:
    """Whether the region's linear is one for warpgroups: of a precision they have, rows enough to fill them, and an
    epilogue that fits beside a tile."""
    given = _given(program)
    form = FORMATS.get(given.precision)
    return (
        form is not None
        and form.operation in target.tensor_ops
        and int(given.w_codes.meta["val"].shape[1]) % CORE_BYTES == 0
        and program.region.layout.num_rows.upper() >= FEWEST_ROWS
        and bool(_fitting(program, target))
    )


def _given(program: RowProgram) -> CodedLinear:
    assert program.region.anchor is not None
    return CodedLinear(*operands(program.region.anchor))


def _fitting(program: RowProgram, target: CudaTarget) -> list[Tile]:
    """The format's tiles that the epilogue fits beside."""
    given = _given(program)
    room, product = epilogue_room(target, program), _product(given)
    tiles = FORMATS[given.precision].tiles
    return [tile for tile in tiles if room(tile, product.gemm_bytes(tile), SLAB_ROWS)]


def _product(given: CodedLinear) -> WarpgroupCodes:
    form, group = FORMATS[given.precision], multiplier_group(given)
    return WarpgroupCodes(form.header, form.w_bits, WarpgroupCodes.bk // group if group else 0)


def multiplier_group(given: CodedLinear) -> int:
    """k that share an integer which multiplies their codes; 0 where none does."""
    if given.w_multiplier is None:
        return 0
    in_features = int(given.w_codes.meta["val"].shape[1])
    return in_features // int(given.w_multiplier.meta["val"].shape[1])


def multiplier_text(printer: StatementPrinter, given: CodedLinear) -> str:
    """The pointer to those integers, "" where there are none."""
    if given.w_multiplier is None:
        return ""
    return printer.pointer(printer.storages.packed(given.w_multiplier, "multiplier_mma"))


def linear_wgmma_blocks(program: RowProgram, target: CudaTarget) -> Sequence[Block]:
    """By the time that the fitting tiles take, as far as tensor cores, shared memory and full waves decide."""
    given = _given(program)
    product = _product(given)
    n, k = (int(s) for s in given.w_codes.meta["val"].shape)
    m = program.region.layout.num_rows.upper()

    def clocks(tile: Tile) -> float:
        waves = -(-(-(-m // tile.rows) * -(-n // tile.columns)) // target.num_sms)
        stored = STORE_CLOCKS * tile.rows * tile.columns
        return waves * (-(-k // product.bk) * product.clocks(tile) + stored)

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
    given = _given(program)
    form, group = FORMATS[given.precision], multiplier_group(given)
    out_features, in_features = (int(s) for s in given.w_codes.meta["val"].shape)
    assert int(given.w_scale.meta["val"].shape[-1]) == 1, "a scale a channel"
    kind = f"{form.codes}<{group}>" if group else form.codes
    storages = printer.storages
    context = {
        "gemm": f"svdq::{form.gemm}<Tile, svdq::{kind}>",
        "in_features": in_features,
        "x_codes": printer.pointer(storages[given.codes]),
        "x_scale": printer.pointer(storages[given.scale]),
        "w": printer.pointer(storages.packed(given.w_codes, form.w)),
        "w_scale": printer.pointer(storages[given.w_scale]),
        "multipliers": multiplier_text(printer, given) or "nullptr",
        **low_rank_context(target, printer, given.low, given.lora_up),
    }
    code = product_code(
        target,
        "cuda/gemm_wgmma.cu.j2",
        program,
        printer,
        params,
        chosen_tile(block),
        _product(given),
        out_features,
        given.bias,
        context,
    )
    # One for each multiprocessor.
    return replace(code, most_ctas=target.num_sms)
