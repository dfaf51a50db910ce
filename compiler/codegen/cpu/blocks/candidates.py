"""Every block that a region can have on a CPU: what tuning measures, the analytic choice first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from svdqc.compiler.codegen.columns import keeps_own_columns
from svdqc.compiler.codegen.cpu.blocks.plan import QUERY_BLOCK, plan_block
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.backend import Block
from svdqc.compiler.codegen.region import tiles_columns
from svdqc.compiler.codegen.rowprogram import RowProgram

ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 36, 48, 64, 72, 96, 128, 144, 192, 256)
THREADS = (2, 4, 8)
COLUMNS = (64, 128, 256, 512, 1024)
QUERIES = (QUERY_BLOCK, 96, 48, 24)
SCRATCH_BYTES = 4 << 20
"""Of a block's result; more than a core's caches hold is of no use."""
FEWEST_RESULTS = 1024
"""Of a task: with fewer, sharing them out takes longer than computing them."""


def blocks(program: RowProgram) -> Iterator[Block]:
    """The analytic choice, then the others, those whose work is most like the analytic choice's first."""
    first = plan_block(program)
    yield first
    others = [block for block in _others(program) if block != first]
    yield from sorted(others, key=lambda block: (_distance(block, first), block.rows))


def _others(program: RowProgram) -> list[Block]:
    region = program.region
    anchor, layout, num_rows = region.anchor, region.layout, region.layout.num_rows.upper()
    if anchor is not None and str(anchor.target) == anchors.ATTENTION:
        return [Block(rows) for rows in QUERIES]
    width = max(
        (layout.inner_elements(n).upper() for n in region.nodes if n in layout.axes), default=1
    )
    columns: tuple[int, ...] = (0,)
    if anchor is not None and _splits_columns(program):
        out_features = layout.inner_elements(anchor).upper()
        columns = (0, *(c for c in COLUMNS if c < out_features))
    rows = _row_counts(num_rows)
    return [
        Block(r, c)
        for r, c in product(rows, columns)
        if r * (c or width) * 4 <= SCRATCH_BYTES
        and (r * (c or width) >= FEWEST_RESULTS or r == num_rows)
    ]


def _row_counts(num_rows: int) -> list[int]:
    """The usual numbers of rows, and near each what makes tasks of about equal size, also for 2, 4 and 8 threads."""
    found = {num_rows}
    for rows in (r for r in ROWS if r < num_rows):
        tasks = -(-num_rows // rows)
        shared = [-(-tasks // threads) * threads for threads in THREADS]
        found.update((rows, *(-(-num_rows // t) for t in (tasks, *shared))))
    return sorted(found)


def _splits_columns(program: RowProgram) -> bool:
    """Whether tasks may take ranges of the anchor's columns: every value is computed from its own column."""
    region = program.region
    assert region.anchor is not None
    tiles = tiles_columns(region.nodes, region.stored, region.anchor, region.layout)
    return tiles and keeps_own_columns(program)


def _distance(block: Block, first: Block) -> float:
    """How many times as large, or as small; a block of the other kind (with columns, or without) is farther."""
    ratio = block.rows / first.rows
    other = bool(block.columns) != bool(first.columns)
    columns = (block.columns or 1) / (first.columns or 1) if not other else 2.0
    return max(ratio, 1 / ratio) * max(columns, 1 / columns)
