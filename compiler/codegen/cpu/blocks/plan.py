"""How many rows (and columns) one task of a region computes on a CPU."""

from __future__ import annotations

from svdqc.compiler.codegen.columns import keeps_own_columns
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.backend import Block
from svdqc.compiler.codegen.region import tiles_columns
from svdqc.compiler.codegen.rowprogram import RowProgram

TILE_BYTES = 512 << 10
"""A block's result should stay in a core's second-level cache."""
ROWS_IN_TILE = 12
"""The matrix kernels compute 12 rows at a time."""
QUERY_BLOCK = 192
"""attention.h packs keys and values once per so many queries."""
COLUMN_BLOCK = 256


def plan_block(program: RowProgram) -> Block:
    """The block of a region: as many rows as keep its values in cache and leave tasks for every core."""
    region = program.region
    anchor, rows = region.anchor, region.layout.num_rows
    if anchor is None:
        widest = max(
            (
                region.layout.inner_elements(n).upper()
                for n in region.nodes
                if n in region.layout.axes
            ),
            default=1,
        )
        block = max(1, min(64, 16384 // max(widest, 1)))
        return Block(max(1, min(block, -(-rows.upper() // 4))))
    target = str(anchor.target)
    if target == anchors.ATTENTION:
        return Block(QUERY_BLOCK)
    width = max(
        region.layout.inner_elements(n).upper() for n in region.nodes if n in region.layout.axes
    )
    if target in anchors.LINEARS:
        few = rows.upper() <= 4 * ROWS_IN_TILE
        tiles = tiles_columns(region.nodes, region.stored, anchor, region.layout)
        if few and tiles and keeps_own_columns(program):
            return Block(min(rows.upper(), 4 * ROWS_IN_TILE), COLUMN_BLOCK)
    for count in (48, 36, 24, 12):
        if count * width * 4 <= TILE_BYTES and rows.upper() >= 4 * count:
            return Block(count)
    return Block(ROWS_IN_TILE if width * 4 * ROWS_IN_TILE <= 2 * TILE_BYTES else ROWS_IN_TILE // 3)
