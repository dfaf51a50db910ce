"""In which order tiles are computed: each of them once, and what a GPU computes at a time reads least."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from tests.cuda.host_kernels import HostKernels

from svdqc.compiler.codegen.cuda.tiles import (
    RATES,
    Coded,
    Floats,
    Nvfp4,
    Product,
    Tile,
    band_height,
    choose_tile,
    resident_ctas,
)
from svdqc.compiler.targets.cuda import CUDA_TARGETS, CudaTarget

BM, BN = 128, 64
BANDS = (1, 2, 7, 12)
SOURCE = """
#include "svdq_cuda/kernel.h"
#include "svdq_cuda/tile_order.h"
SVDQ_CUDA_KERNEL(tile_order_{band}, 32, 0, 0, 1, 2) {{
  const svdq::TileOrder<{bm}, {bn}, {band}> order(args.scalars[0], args.scalars[1]);
  for (uint32_t i = svdq::lane_id(); i < order.tiles; i += 32) {{
    static_cast<svdq::TilePlace*>(args.buffers[0])[i] = order.place(i);
  }}
}}
"""
SIZES = [1, 2, 6, 7, 8, 11, 12, 13, 14, 24, 25, 36, 63]
FLUX = (4608, 9216, 3072)

PRODUCTS: list[Product] = [Coded(4, 4, 64, True), Coded(8, 4, 64, False), Floats(2, 2), Nvfp4()]
HELD = [
    (target, kind)
    for target in CUDA_TARGETS
    for kind in PRODUCTS
    if (RATES[target.arch].fp4 or not isinstance(kind, Nvfp4))
    and (RATES[target.arch].s4 or not getattr(kind, "native_s4", False))
]

Place = tuple[int, int]


def wave(target: CudaTarget, kind: Product) -> tuple[Tile, int, int, int]:
    """For q, k and v of FLUX.1-dev: the tile, how many a GPU computes at a time, bits that a row and a column of them read
    for each k."""
    tile = choose_tile(target, kind, *FLUX)
    ctas = target.num_sms * resident_ctas(tile, kind, target)
    return tile, ctas, tile.rows * kind.x_bits, tile.columns * kind.w_bits


@pytest.fixture(scope="module")
def orders() -> HostKernels:
    heights = {*BANDS, *(band_height(*wave(target, kind)[1:]) for target, kind in HELD)}
    return HostKernels(
        {f"tile_order_{band}": SOURCE.format(bm=BM, bn=BN, band=band) for band in heights}
    )


def places(orders: HostKernels, band: int, rows: int, columns: int) -> list[Place]:
    """(row, column) of each tile of so many rows and columns, in order."""
    count = -(-rows // BM) * -(-columns // BN)
    found = np.full((count + 1, 2), -1, np.int64)
    orders.launch(f"tile_order_{band}", [found], [rows, columns], grid_x=1)
    assert (found[count] == -1).all(), "one tile more than there are"
    return [(int(row), int(column)) for row, column in found[:count]]


@pytest.mark.parametrize("band", BANDS)
def test_tile_order__every_tile_once(orders: HostKernels, band: int) -> None:
    for row_tiles, column_tiles in product(SIZES, SIZES):
        # A row more than whole tiles have, and a column less.
        rows, columns = (row_tiles - 1) * BM + 1, column_tiles * BN - 1
        found = places(orders, band, rows, columns)
        assert sorted(found) == list(product(range(0, rows, BM), range(0, columns, BN)))


@pytest.mark.parametrize("band", BANDS)
def test_tile_order__bands_are_even_and_no_higher_than_asked(
    orders: HostKernels, band: int
) -> None:
    """Column by column: the first tiles of every band's columns show how high it is."""
    for row_tiles in SIZES:
        columns = 3
        found = places(orders, band, row_tiles * BM, columns * BN)
        heights, at = [], 0
        while at < len(found):
            column = [place for place in found[at:] if place[1] == 0]
            height = next((i for i, p in enumerate(found[at:]) if p[1] != 0), len(column))
            assert [p[1] // BN for p in found[at : at + height * columns]] == [
                c for c in range(columns) for _ in range(height)
            ]
            heights.append(height)
            at += height * columns
        assert sum(heights) == row_tiles
        assert len(heights) == -(-row_tiles // band), "as few bands as there can be"
        assert len(set(heights[:-1])) <= 1
        assert max(heights) == heights[0] <= band
        assert heights[0] - heights[-1] < len(heights), "even"


def test_band_height__reads_least() -> None:
    for ctas, rows, columns in product((1, 2, 68, 132, 264, 592), (1, 3, 8, 64), (1, 2, 8, 48)):
        best = band_height(ctas, rows, columns)
        read = {h: h * rows + ctas / h * columns for h in range(1, 20 * ctas + 2)}
        assert read[best] == min(read.values())


@pytest.mark.parametrize(("target", "kind"), HELD, ids=lambda x: getattr(x, "arch", str(x)))
def test_tile_order__a_wave_reads_less_than_row_by_row(
    orders: HostKernels, target: CudaTarget, kind: Product
) -> None:
    """What the tiles of a wave read together, each row and column once."""
    tile, ctas, row_bits, column_bits = wave(target, kind)
    row_tiles, column_tiles = -(-FLUX[0] // tile.rows), -(-FLUX[1] // tile.columns)

    def read(order: list[Place]) -> int:
        waves = [order[first : first + ctas] for first in range(0, len(order), ctas)]
        rows = sum(len({row for row, _ in tiles}) for tiles in waves)
        columns = sum(len({column for _, column in tiles}) for tiles in waves)
        return rows * row_bits + columns * column_bits

    band = band_height(ctas, row_bits, column_bits)
    banded = read(places(orders, band, row_tiles * BM, column_tiles * BN))
    by_rows = read(list(product(range(row_tiles), range(column_tiles))))
    print(
        f"{target.arch} {kind}: {tile.cpp}, {ctas} at a time, bands of {band}: {banded / by_rows:.2f}"
    )
    assert banded < by_rows
