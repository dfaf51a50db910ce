"""Which tile the analytic model chooses, and the layouts that products on tensor cores read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svdqc.compiler.codegen.cuda.tiles import (
    RATES,
    TILES,
    Coded,
    Floats,
    Nvfp4,
    Product,
    choose_tile,
    clocks,
    rank_tiles,
)
from svdqc.compiler.targets.cuda import CUDA_TARGETS, SM_75, SM_80, SM_86, SM_89, CudaTarget
from svdqc.compiler.targets.cuda_layouts import LAYOUTS, UnpackableCudaWeight
from svdqc.compiler.targets.layout import MULTIPLIERS
from svdqc.compiler.targets.layouts import pack, packed_bytes, unpack

FLUX = (4608, 9216, 3072)
PRODUCTS = [
    Coded(4, 4, 64, True),
    Coded(4, 4, 32, False),
    Coded(8, 8, 0, False),
    Coded(8, 4, 0, False),
    Floats(2, 2),
    Floats(4, 3),
    Nvfp4(),
]


HELD = [
    (target, product)
    for target in CUDA_TARGETS
    for product in PRODUCTS
    if RATES[target.arch].fp4 or not isinstance(product, Nvfp4)
]


@pytest.mark.parametrize(("target", "product"), HELD, ids=lambda x: getattr(x, "arch", str(x)))
def test_choose_tile__the_gpu_can_hold_it(target: CudaTarget, product: Product) -> None:
    if getattr(product, "native_s4", False) and not RATES[target.arch].s4:
        product = Coded(4, 4, 64, False)
    for m, n, k in (FLUX, (1, 64, 64), (17, 1152, 4608), (512, 3072, 12288), (40000, 64, 3072)):
        tile = choose_tile(target, product, m, n, k)
        shared = tile.shared_bytes(product.stage_bytes(tile))
        assert product.fits(tile, target)
        assert target.max_ctas(tile.threads, shared, tile.registers) >= 1
        best = clocks(tile, product, target, m, n, k)
        assert all(
            best <= clocks(other, product, target, m, n, k)
            for other in TILES
            if product.fits(other, target)
            and other.shared_bytes(product.stage_bytes(other)) <= target.shared_bytes_per_cta
        )


@pytest.mark.parametrize("target", [SM_75, SM_80, SM_86, SM_89], ids=lambda target: target.arch)
def test_choose_tile__large_for_many_rows_low_for_few(target: CudaTarget) -> None:
    product = PRODUCTS[0]
    many, few = (choose_tile(target, product, m, *FLUX[1:]) for m in (FLUX[0], 8))
    assert many.rows == 128
    assert many.columns >= 64
    assert few.rows <= 32


def test_choose_tile__waves() -> None:
    """One CTA more than the multiprocessors hold costs a second round, which smaller tiles avoid."""
    product, target = PRODUCTS[0], SM_86
    full = target.num_sms * 128 * 128 // 128
    whole = clocks(TILES[0], product, target, 128, full, 3072)
    assert clocks(TILES[0], product, target, 128, full + 1, 3072) > 1.5 * whole


def _codes(lo: int, hi: int, n: int, k: int) -> Tensor:
    return torch.randint(
        lo, hi + 1, (n, k), generator=torch.Generator().manual_seed(n), dtype=torch.int8
    )


@pytest.mark.parametrize(("n", "k"), [(1, 32), (16, 64), (31, 96), (32, 64), (33, 192), (64, 128)])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_layouts__are_inverted(layout: str, n: int, k: int) -> None:
    if layout.startswith("s8"):
        matrix = _codes(-127, 127, n, k)
    elif layout.startswith("e4m3"):
        matrix = _codes(-128, 127, n, k).view(torch.uint8)
    elif layout.startswith("nf4"):
        matrix = _codes(0, 15, n, k)
    elif layout.startswith(("s4", "u4")):
        matrix = _codes(-8, 7, n, k)
    elif layout.startswith("multiplier"):
        matrix = _codes(*MULTIPLIERS, n, k)
    else:
        kinds = {"f32": torch.float32, "f16": torch.float16}
        matrix = torch.randn(n, k).to(kinds.get(layout.partition("_")[0], torch.bfloat16))
    packed = pack(layout, matrix)
    assert packed.nbytes == packed_bytes(layout, (n, k), matrix.dtype)
    assert torch.equal(unpack(layout, packed, (n, k), matrix.dtype), matrix)


def test_layouts__refuse_what_they_cannot_hold() -> None:
    for layout, matrix in (
        ("s4_mma", _codes(-9, 7, 32, 64)),
        ("s4_rows", torch.zeros(32, 64)),
        ("u4s8_mma", _codes(-8, 8, 32, 64)),
        ("multiplier_mma", _codes(0, 16, 32, 64)),
        ("e4m3_mma", _codes(0, 7, 32, 64)),
        ("nf4_rows", _codes(-1, 15, 16, 64)),
        ("scale_mma", torch.full((32, 2), 1.0 + 2.0**-12)),
        ("bf16_mma", torch.zeros(2, 2, 2)),
    ):
        with pytest.raises(UnpackableCudaWeight, match="pack"):
            pack(layout, matrix)


@pytest.mark.parametrize("target", CUDA_TARGETS, ids=lambda target: target.arch)
def test_rank_tiles__the_chosen_one_first_then_all_that_fit(target: CudaTarget) -> None:
    product = Floats(2, 2)
    for m in (8, FLUX[0]):
        ranked = rank_tiles(target, product, m, *FLUX[1:])
        assert ranked[0] == choose_tile(target, product, m, *FLUX[1:])
        assert len(set(ranked)) == len(ranked) > len(TILES)
        limit = target.shared_bytes_per_cta
        assert all(product.gemm_bytes(t) <= limit and t.stages >= 2 for t in ranked)
        assert len({(t.rows, t.columns) for t in ranked[:8]}) > 2, (
            "few candidates are of many sizes"
        )
