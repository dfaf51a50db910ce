"""Attention, a block of queries at a time, on tensor cores; heads that do not fit there go to `attention_simt.py`.

A CTA holds the queries, one block of keys and one of values as two f16 halves each, and the sums in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from svdqc.compiler.codegen.cuda.blocks.attention_simt import attention_simt, attention_simt_block
from svdqc.compiler.codegen.cuda.blocks.parts import headers
from svdqc.compiler.codegen.cuda.blocks.plan import ATTENTION_ROW_BYTES
from svdqc.compiler.codegen.printing.attention_operands import attention_context, stored_result
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import IntExpr, prod
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget

WIDEST_HEAD = 256
PARTS = 2
"""f16 numbers that hold one operand: products are then as exact as the f32 graph's."""
REGISTERS = 200
"""Of a thread for sums, scores and a block on its way to shared memory; the rest addresses them."""
SHARED_MARGIN = 2048


@dataclass(frozen=True)
class AttentionTile:
    """What svdq::MmaAttention is instantiated with; head dims are rounded up to 16."""

    queries: int
    keys: int
    head_dim: int
    v_dim: int

    @property
    def threads(self) -> int:
        return 2 * self.queries

    @property
    def registers(self) -> int:
        widest = max(self.head_dim, self.v_dim)
        on_its_way = self.keys * 16 // self.queries * -(-widest // 64) * 2
        return self.v_dim // 2 + self.keys // 2 + on_its_way

    @property
    def ldo(self) -> int:
        return self.v_dim + 4

    @property
    def attention_bytes(self) -> int:
        q_and_k = (self.queries + self.keys) * (self.head_dim + 8)
        return 2 * PARTS * (q_and_k + self.keys * (self.v_dim + 8)) + 64

    @property
    def shared_bytes(self) -> int:
        """Of attention, and of its result afterwards in the same place."""
        return max(self.attention_bytes, 4 * self.queries * self.ldo)


_SIZES = ((64, 64), (64, 32), (32, 32), (64, 16), (32, 16), (16, 16))
"""Queries and keys of a CTA, the best first."""


def attention_tile(target: CudaTarget, head_dim: int, v_dim: int) -> AttentionTile | None:
    """The first size that the GPU can hold; None for heads too wide for registers."""
    return next(iter(attention_tiles(target, head_dim, v_dim)), None)


def attention_tiles(target: CudaTarget, head_dim: int, v_dim: int) -> Sequence[AttentionTile]:
    """The sizes that the GPU can hold, the best first; none for heads too wide for registers."""
    if max(head_dim, v_dim) > WIDEST_HEAD:
        return []
    fitting = []
    for queries, keys in _SIZES:
        tile = AttentionTile(queries, keys, _padded(head_dim), _padded(v_dim))
        room = target.shared_bytes_per_cta - SHARED_MARGIN - queries * ATTENTION_ROW_BYTES
        if tile.registers <= REGISTERS and tile.shared_bytes <= room:
            fitting.append(tile)
    return fitting


def _padded(head_dim: int) -> int:
    return -(-head_dim // 16) * 16


def attention_blocks(program: RowProgram, target: CudaTarget) -> Sequence[Block]:
    anchor = program.region.anchor
    assert anchor is not None
    q, _, v = operands(anchor)[:3]
    widths = int(q.meta["val"].shape[-1]), int(v.meta["val"].shape[-1])
    tiles = attention_tiles(target, *widths)
    if not tiles:
        return [attention_simt_block(program, target)]
    return [Block(tile.queries, 0, tile.threads, tile=tile) for tile in tiles]


def attention(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    if block.tile is None:
        return attention_simt(target, program, printer, params, block)
    tile: AttentionTile = block.tile
    anchor = program.region.anchor
    assert anchor is not None

    def place_result(names: list[str]) -> dict[str, Any]:
        if anchor in program.region.stored:
            return stored_result(program, printer, params, names)
        return {"out": "", "out_row": ""}

    context = attention_context(program, printer, params, place_result)
    context.update(keys=tile.keys, parts=PARTS, ldo=tile.ldo, attention_bytes=tile.attention_bytes)
    at = params.scalar(printer.scratch.take(IntExpr.of(tile.shared_bytes)))
    printer.tile = ("tile", str(tile.ldo), "0")
    shape = program.table.shape(anchor)
    return AnchorCode(
        "cuda/attention_mma.cu.j2",
        context,
        prod(shape[:-2]) * shape[-2].ceildiv(block.rows),
        headers(program, "attention_mma.h"),
        [],
        [
            f"char* const attention_shared = scratch + {at};",
            "float* const tile = reinterpret_cast<float*>(attention_shared);",
            "(void)tile;",
        ],
    )
