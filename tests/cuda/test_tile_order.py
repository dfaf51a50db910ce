"""In which order tiles are computed: each of them once, and what a GPU computes at a time reads least."""

from __future__ import annotations

from dataclasses import dataclass
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
WIDE = (4608, 9216, 3072)
SHAPES = (WIDE, (4608, 3072, 12288), (4096, 3840, 3840), (1024, 1152, 1152), (512, 9216, 3072))
"""Rows, columns and k of linears: of FLUX.1-dev, Z-Image and PixArt, and of few rows."""
PRODUCTS: list[Product] = [Coded(4, 4, 64, True), Coded(8, 4, 64, False), Floats(2, 2), Nvfp4()]
HELD = [
    (target, kind)
    for target in CUDA_TARGETS
    for kind in PRODUCTS
    if (RATES[target.arch].fp4 or not isinstance(kind, Nvfp4))
    and (RATES[target.arch].s4 or not getattr(kind, "native_s4", False))
]

Place = tuple[int, int]


@dataclass(frozen=True)
class Wave:
    """Of a result of so many tiles the GPU computes `ctas` at a time; bits that a row and a column of them read for
    each k."""

    ctas: int
    row_bits: int
    column_bits: int
    row_tiles: int
    column_tiles: int

    @property
    def band(self) -> int:
        return band_height(self.ctas, self.row_bits, self.column_bits, self.column_tiles)

    def bits(self, order: list[Place]) -> int:
        """What all waves read, the tiles of one each row and column once."""
        waves = [order[first : first + self.ctas] for first in range(0, len(order), self.ctas)]
        rows = sum(len({row for row, _ in tiles}) for tiles in waves)
        columns = sum(len({column for _, column in tiles}) for tiles in waves)
        return rows * self.row_bits + columns * self.column_bits


def wave(target: CudaTarget, kind: Product, shape: tuple[int, int, int]) -> Wave:
    m, n, k = shape
    tile = choose_tile(target, kind, m, n, k)
    return Wave(
        target.num_sms * resident_ctas(tile, kind, target),
        tile.rows * kind.x_bits,
        tile.columns * kind.w_bits,
        -(-m // tile.rows),
        -(-n // tile.columns),
    )


@pytest.fixture(scope="module")
def orders() -> HostKernels:
    used = {wave(target, kind, shape).band for target, kind in HELD for shape in SHAPES}
    return HostKernels(
        {
            f"tile_order_{band}": SOURCE.format(bm=BM, bn=BN, band=band)
            for band in sorted({*BANDS, *used})
        }
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
def test_tile_order__down_bands_column_by_column(orders: HostKernels, band: int) -> None:
    for row_tiles, column_tiles in product(SIZES, SIZES):
        wanted = [
            (row * BM, column * BN)
            for first in range(0, row_tiles, band)
            for column in range(column_tiles)
            for row in range(first, min(first + band, row_tiles))
        ]
        assert places(orders, band, row_tiles * BM, column_tiles * BN) == wanted


def test_band_height__reads_least() -> None:
    for ctas, rows, columns in product((1, 2, 68, 132, 264, 592), (1, 3, 8, 64), (1, 2, 8, 48)):
        best = band_height(ctas, rows, columns, 2 * ctas)
        read = {h: h * rows + ctas / h * columns for h in range(1, 20 * ctas + 2)}
        assert read[best] == min(read.values())


@pytest.mark.parametrize(("target", "kind"), HELD, ids=lambda x: getattr(x, "arch", str(x)))
def test_band_height__waves_read_no_more_than_row_by_row(
    orders: HostKernels, target: CudaTarget, kind: Product
) -> None:
    for shape in SHAPES:
        of = wave(target, kind, shape)
        banded = of.bits(places(orders, of.band, of.row_tiles * BM, of.column_tiles * BN))
        by_rows = of.bits(list(product(range(of.row_tiles), range(of.column_tiles))))
        print(f"{target.arch} {kind} {shape}: bands of {of.band}, {banded / by_rows:.2f}")
        assert banded <= by_rows
        assert banded < 0.6 * by_rows or shape != WIDE
