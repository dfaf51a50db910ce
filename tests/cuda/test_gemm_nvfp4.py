"""gemm_nvfp4.h and gemm_tcgen05.h on the host back end against the exact product: tiles, tails, ranks, orders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.cuda.host_kernels import SCHEDULES, HostKernels, has
from tests.cuda.nvfp4_products import Product

from svdqc.compiler.codegen.cuda.blocks.linear_nvfp4 import TCGEN05_TILES, rank_tcgen05_tiles
from svdqc.compiler.codegen.cuda.tiles import TILES, Nvfp4, Tile
from svdqc.compiler.targets.cuda import SM_100A, SM_120A
from svdqc.compiler.targets.cuda_layouts import UnpackableCudaWeight
from svdqc.compiler.targets.layouts import pack, packed_bytes, unpack

SOURCE = Path(__file__).resolve().parent / "cu" / "gemm_nvfp4.cu"
BY_WARPS = {f"t{t.rows}x{t.columns}": t for t in TILES if Nvfp4().fits(t, SM_120A)}
BY_TCGEN05 = {f"tcgen05_{t.rows}x{t.columns}": t for t in TCGEN05_TILES}
KERNELS: dict[str, Tile] = {**BY_WARPS, **BY_TCGEN05}
SOME = ("t64x64", "tcgen05_128x64", "tcgen05_128x32")


@dataclass(frozen=True)
class Way:
    """gemm, header: of the product; layouts: of codes and scales; tensor_op: that the GPU must have."""

    gemm: str
    header: str
    layouts: tuple[str, str]
    tensor_op: str


WARPS = Way("Nvfp4Gemm", "gemm_nvfp4.h", ("e2m1_mma", "e4m3_scale_mma"), "nvfp4")
TCGEN05 = Way(
    "Tcgen05Gemm", "gemm_tcgen05.h", ("e2m1_tcgen05", "e4m3_scale_tcgen05"), "tcgen05_nvfp4"
)


def way_of(name: str) -> Way:
    return TCGEN05 if name in BY_TCGEN05 else WARPS


@cache
def kernels_of(way: Way) -> HostKernels:
    if not has(way.tensor_op):
        pytest.skip("a GPU without these tensor cores")
    listed = [
        f"X({name}, {way.gemm}, {tile.cpp.removeprefix('svdq::GemmTile<').removesuffix('>')})"
        for name, tile in KERNELS.items()
        if way_of(name) is way
    ]
    defines = f'#include "svdq_cuda/{way.header}"\n#define KERNELS(X) '
    return HostKernels({"gemm_nvfp4": defines + " \\\n".join(listed) + "\n" + SOURCE.read_text()})


def run(product: Product, name: str, schedule: int = 0) -> torch.Tensor:
    tile, way = KERNELS[name], way_of(name)
    size = (tile.rows, tile.columns)
    return product.run(kernels_of(way), name, size, way.layouts, schedule)


@pytest.mark.parametrize("name", KERNELS)
def test_gemm_nvfp4__tiles(name: str) -> None:
    """One row and column less than a tile has, as many, and more."""
    tile = KERNELS[name]
    for more in (-1, 0, 1):
        product = Product(tile.rows + more, tile.columns + more, 320)
        product.check(run(product, name))


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("n", [1, 31, 33, 65, 129])
def test_gemm_nvfp4__n_tails(n: int, name: str) -> None:
    product = Product(20, n, 192)
    product.check(run(product, name))


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("k", [16, 64, 80, 240, 256, 272, 1040])
def test_gemm_nvfp4__k_tails(k: int, name: str) -> None:
    product = Product(17, 40, k)
    product.check(run(product, name))


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("rank", [0, 1, 15, 16, 32])
def test_gemm_nvfp4__ranks(rank: int, name: str) -> None:
    product = Product(33, 65, 128, rank)
    product.check(run(product, name))


@pytest.mark.parametrize("name", SOME)
def test_gemm_nvfp4__largest_codes(name: str) -> None:
    """6 times 6 everywhere, with scales of 1: an exact integer."""
    product = Product(16, 32, 2048, 0, extreme=True)
    assert (run(product, name) == 36.0 * 2048).all()


@pytest.mark.parametrize("name", ["t128x128", "tcgen05_128x128", "tcgen05_128x32"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gemm_nvfp4__any_order_of_threads(schedule: int, name: str) -> None:
    product = Product(130, 130, 1088)
    first = run(product, name)
    product.check(first)
    assert torch.equal(run(product, name, schedule), first)


def test_rank_tcgen05_tiles__narrow_where_wide_ones_leave_processors_idle() -> None:
    assert rank_tcgen05_tiles(SM_100A, 4608, 9216, 3072)[0].columns == 128
    assert rank_tcgen05_tiles(SM_100A, 1024, 1152, 1152)[0].columns == 64
    assert rank_tcgen05_tiles(SM_100A, 16, 9216, 3072)[0].columns == 64
    assert all(rank_tcgen05_tiles(SM_100A, m, 3072, 12288)[0].columns == 32 for m in (1, 77, 128))


@pytest.mark.parametrize("shape", [(1, 16), (32, 64), (33, 80), (130, 256)])
def test_e2m1_layouts__are_inverted(shape: tuple[int, int]) -> None:
    product = Product(1, *shape)
    matrices = (product.w_codes, product.w_scale)
    pairs = [pair for way in (WARPS, TCGEN05) for pair in zip(way.layouts, matrices, strict=True)]
    for layout, matrix in pairs:
        size = tuple(matrix.shape)
        packed = pack(layout, matrix)
        assert packed.nbytes == packed_bytes(layout, size, matrix.dtype)
        assert torch.equal(unpack(layout, packed, size, matrix.dtype), matrix)


def test_e2m1_layouts__refuse_what_they_cannot_hold() -> None:
    for layout, matrix in (
        ("e2m1_mma", torch.full((32, 64), 5, dtype=torch.int8)),
        ("e2m1_tcgen05", torch.zeros(32, 64)),
        ("e4m3_scale_mma", torch.ones(32, 4)),
    ):
        with pytest.raises(UnpackableCudaWeight, match="pack"):
            pack(layout, matrix)
