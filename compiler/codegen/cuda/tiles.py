"""Which tile a CTA computes of a product on tensor cores: an analytic model, where no GPU is at hand to measure.

A CTA's time for 64 k is the longest of what it takes of tensor cores, of float lanes (scaling groups), of issue slots,
and of the second-level cache; an SM computes its share of the CTAs one after the other, and what precedes and follows
the main loop is hidden only where several CTAs share the SM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Protocol

from svdqc.compiler.targets.cuda import REGISTERS_PER_THREAD, CudaTarget

ISSUE = 4
"""Instructions a clock and SM."""
MOST_SUMS = 64
"""Of a thread: with 128 the main loops fit in its registers, with the epilogues of real layers they spill."""
WARPS = 8
"""That keep an SM's tensor cores busy: two for each."""
START_CLOCKS = 3000
"""From a CTA's start to its first product: two round trips to memory, and the branch."""
STORE_CLOCKS = 0.15
"""Clocks per element of a tile that leaves through shared memory."""


@dataclass(frozen=True)
class Rates:
    """A clock and SM, by mma.sync: multiply-adds of s4 codes, s8 codes and 16-bit floats with f32 sums; f32 lanes;
    bytes from the second-level cache with every SM reading; multiply-adds of block-scaled E2M1, by any instruction
    (published microbenchmarks and data sheets, rounded)."""

    s4: int
    s8: int
    half: int
    lanes: int
    cache_bytes: int
    fp4: int = 0


RATES = {
    "sm_75": Rates(2048, 1024, 512, 64, 24),
    "sm_80": Rates(4096, 2048, 1024, 64, 40),
    "sm_86": Rates(2048, 1024, 512, 128, 20),
    "sm_89": Rates(2048, 1024, 512, 128, 20),
    "sm_90a": Rates(0, 2560, 1280, 128, 32),
    "sm_100a": Rates(0, 2048, 1024, 128, 40, fp4=16384),
    "sm_120a": Rates(0, 1024, 512, 128, 16, fp4=2048),
}


@dataclass(frozen=True)
class Tile:
    """svdq::GemmTile: rows, columns, warps along both, stages in flight, 16-row tiles of a warp per slab."""

    rows: int
    columns: int
    warps_m: int
    warps_n: int
    stages: int
    slab_tiles: int

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    @property
    def sums(self) -> int:
        """f32 sums that a thread holds."""
        return self.rows * self.columns // self.threads

    @property
    def registers(self) -> int:
        """At most about what ptxas gives a thread: measured 64 with 16 sums, 100-150 with 32, 130-230 with 64."""
        return min(REGISTERS_PER_THREAD, 40 + 3 * self.sums)

    @property
    def slab_rows(self) -> int:
        return 16 * self.warps_m * self.slab_tiles

    @property
    def ld(self) -> int:
        return self.columns + 8

    @property
    def cpp(self) -> str:
        sizes = (self.rows, self.columns, self.warps_m, self.warps_n, self.stages, self.slab_tiles)
        return f"svdq::GemmTile<{', '.join(map(str, sizes))}>"

    def shared_bytes(self, stage_bytes: int) -> int:
        """A stage's bytes for every stage, or what a slab takes."""
        return max(self.stages * stage_bytes, self.slab_rows * self.ld * 4)


TILES = (
    Tile(128, 128, 2, 4, 3, 2),
    Tile(128, 64, 2, 2, 3, 2),
    Tile(64, 128, 2, 4, 3, 1),
    Tile(64, 64, 2, 2, 3, 1),
    Tile(32, 128, 2, 4, 4, 1),
    Tile(32, 64, 2, 2, 4, 1),
    Tile(16, 128, 1, 4, 4, 1),
)
"""Largest first: of equals the first is chosen."""
STAGES = (2, 3, 4, 5)
"""What tuning tries beside a tile's own number."""
UNUSUAL_STAGES = 0.15


class SharedProduct(Protocol):
    """A product whose operands pass through shared memory: the header it is in, bits of an element of either side, and
    how much memory it needs."""

    @property
    def header(self) -> str: ...

    @property
    def x_bits(self) -> int: ...

    @property
    def w_bits(self) -> int: ...

    def gemm_bytes(self, tile: Tile) -> int: ...


@dataclass(frozen=True)
class Coded:
    """Products of codes by svdq::IntGemm: bits of both sides, k that share a scale (0: all), and whether 4-bit tensor
    cores multiply them."""

    x_bits: int
    w_bits: int
    group: int
    native_s4: bool

    header = "gemm_int.h"

    @property
    def bk(self) -> int:
        """k of a stage: rows of 128 bytes."""
        return 256 if self.x_bits == 4 else 128

    def gemm_bytes(self, tile: Tile) -> int:
        """Shared memory of the whole product."""
        return tile.shared_bytes(self.stage_bytes(tile))

    def stage_bytes(self, tile: Tile) -> int:
        groups = self.bk // self.group if self.group else 0
        return tile.rows * (self.bk * self.x_bits // 8 + 4 * groups) + groups * tile.columns * 2

    def fits(self, tile: Tile, target: CudaTarget) -> bool:
        """Threads share the copies evenly, and have registers for the sums (compiled, they spill or do not)."""
        return (
            tile.sums <= MOST_SUMS and tile.rows * self.bk * self.x_bits // 128 % tile.threads == 0
        )

    def clocks(self, tile: Tile, target: CudaTarget) -> float:
        """For 64 k."""
        rates = RATES[target.arch]
        results = tile.rows * tile.columns
        products = results / (16 * 8) * (1 if self.native_s4 else 2)
        scaled = results * 64 / self.group if self.group else 0.0
        issued = products + 2.5 * scaled / 32 + 2 * products
        return max(
            results * 64 / (rates.s4 if self.native_s4 else rates.s8),
            2.5 * scaled / rates.lanes,
            issued / ISSUE,
            8 * (tile.rows * self.x_bits + tile.columns * self.w_bits) / rates.cache_bytes,
        )


@dataclass(frozen=True)
class Nvfp4:
    """Products of E2M1 codes under E4M3 scales by svdq::Nvfp4Gemm."""

    bk = 128
    header = "gemm_nvfp4.h"
    x_bits = w_bits = 4

    def gemm_bytes(self, tile: Tile) -> int:
        """Shared memory of the whole product."""
        return tile.shared_bytes(self.stage_bytes(tile))

    def stage_bytes(self, tile: Tile) -> int:
        return tile.rows * (self.bk // 2 + self.bk // 16)

    def fits(self, tile: Tile, target: CudaTarget) -> bool:
        """As Coded's."""
        return tile.sums <= MOST_SUMS

    def clocks(self, tile: Tile, target: CudaTarget) -> float:
        """For 64 k."""
        rates = RATES[target.arch]
        results = tile.rows * tile.columns
        products = results / (16 * 8)
        loads = tile.warps_n * tile.rows / 16 + 3 * tile.warps_m * tile.columns / 32
        return max(
            results * 64 / rates.fp4,
            (products + 3 * loads) / ISSUE,
            36 * (tile.rows + tile.columns) / rates.cache_bytes,
        )


@dataclass(frozen=True)
class Numbers(Coded):
    """Products of E4M3 numbers by svdq::IntGemm; halves: on 16-bit tensor cores, where others know no E4M3."""

    x_bits: int = 8
    w_bits: int = 8
    group: int = 0
    native_s4: bool = False
    halves: bool = False

    def fits(self, tile: Tile, target: CudaTarget) -> bool:
        """Widened to halves, the left operand takes the registers of twice as many sums."""
        return super().fits(tile, target) and tile.sums <= MOST_SUMS // (2 if self.halves else 1)

    def clocks(self, tile: Tile, target: CudaTarget) -> float:
        """For 64 k. Multiply-adds of E4M3 come at the rate of s8."""
        rates = RATES[target.arch]
        results = tile.rows * tile.columns
        products = results / (16 * 8) * (4 if self.halves else 2)
        words = 2 * (tile.rows * tile.warps_n + tile.columns * tile.warps_m) / 4
        promoted = results / 32 / 2  # every 128 k
        issued = 1.5 * products + promoted + (7 * words if self.halves else words)
        return max(
            results * 64 / (rates.half if self.halves else rates.s8),
            issued / ISSUE,
            64 * (tile.rows + tile.columns) / rates.cache_bytes,
        )


@dataclass(frozen=True)
class Floats:
    """Products of f32 activations with float weights by svdq::FloatGemm. products: 16-bit ones for each."""

    w_bytes: int
    products: int

    bk = 32
    header = "gemm_float.h"
    x_bits = 32

    @property
    def w_bits(self) -> int:
        return 8 * self.w_bytes

    def gemm_bytes(self, tile: Tile) -> int:
        """Shared memory of the whole product."""
        return tile.shared_bytes(self.stage_bytes(tile))

    def stage_bytes(self, tile: Tile) -> int:
        return tile.rows * (self.bk + 8) * 4

    def fits(self, tile: Tile, target: CudaTarget) -> bool:
        return tile.sums <= MOST_SUMS and tile.rows % (tile.threads // 8) == 0

    def clocks(self, tile: Tile, target: CudaTarget) -> float:
        """For 64 k."""
        rates = RATES[target.arch]
        results = tile.rows * tile.columns
        # Instructions that split x, in every column of warps.
        splits = 4 * 3 * tile.rows * 16 * tile.warps_n / 32
        issued = results / (16 * 8) * 4 * self.products * 1.5 + splits
        return max(
            results * 64 * self.products / rates.half,
            issued / ISSUE,
            64 * (tile.rows * 4 + tile.columns * self.w_bytes) / rates.cache_bytes,
        )


Product = Coded | Nvfp4 | Floats
Suits = Callable[[Tile], bool]


def clocks(tile: Tile, product: Product, target: CudaTarget, m: int, n: int, k: int) -> float:
    """What the model expects of a whole product of m x n over k."""
    resident = resident_ctas(tile, product, target)
    ctas = -(-m // tile.rows) * -(-n // tile.columns)
    per_sm = -(-ctas // target.num_sms)
    together = min(resident, per_sm)
    busy = min(1.0, together * tile.threads / 32 / WARPS)
    loop = product.clocks(tile, target) * -(-k // 64) / busy
    around = START_CLOCKS + STORE_CLOCKS * tile.rows * tile.columns
    return per_sm * (loop + around / together)


def resident_ctas(tile: Tile, product: SharedProduct, target: CudaTarget) -> int:
    """CTAs that an SM holds at a time."""
    return target.max_ctas(tile.threads, product.gemm_bytes(tile), tile.registers)


def band_height(ctas: int, rows: int, columns: int, column_tiles: int) -> int:
    """Row tiles of a band (tile_order.h), of which the GPU computes `ctas` tiles at a time: those of h rows of tiles,
    ctas / h columns of them. The best h reads least, about as much of rows as of columns. But a band shall hold two
    such waves, for a wave that lies in two bands reads the rows of both; else tiles are computed row by row.

    rows, columns  what a row and a column of tiles read, in any unit
    column_tiles   how many columns of tiles the result has
    """
    # h * rows = ctas / h * columns
    low = max(1, isqrt(ctas * columns // rows))
    best = min(low, low + 1, key=lambda h: h * rows + ctas / h * columns)
    return best if best * column_tiles >= 2 * ctas else 1


def choose_tile(
    target: CudaTarget, product: Product, m: int, n: int, k: int, suits: Suits | None = None
) -> Tile:
    """The tile that the model likes best for m rows (at most), n columns and k, of those that the GPU can hold.

    suits  what else is asked of it: whole blocks of columns, room for what an epilogue keeps
    """
    return min(
        _fitting(TILES, product, target, suits),
        key=lambda tile: clocks(tile, product, target, m, n, k),
    )


def rank_tiles(
    target: CudaTarget, product: Product, m: int, n: int, k: int, suits: Suits | None = None
) -> Sequence[Tile]:
    """Every tile that the GPU can hold, with more or fewer stages too: the chosen one, then what the model likes."""
    first = choose_tile(target, product, m, n, k, suits)
    varied = [replace(tile, stages=stages) for tile in TILES for stages in STAGES]
    others = [tile for tile in _fitting(varied, product, target, suits) if tile != first]
    own = {(t.rows, t.columns, t.warps_m, t.warps_n): t.stages for t in TILES}

    def cost(tile: Tile) -> float:
        """The model does not see how far ahead copies begin: what is farther from the usual number comes later, so
        that few candidates are not all of one tile."""
        unusual = abs(tile.stages - own[tile.rows, tile.columns, tile.warps_m, tile.warps_n])
        return clocks(tile, product, target, m, n, k) * (1 + UNUSUAL_STAGES * unusual)

    return [first, *sorted(others, key=cost)]


def _fitting(
    tiles: Sequence[Tile], product: Product, target: CudaTarget, suits: Suits | None
) -> Sequence[Tile]:
    limit = target.shared_bytes_per_cta
    return [
        tile
        for tile in tiles
        if product.fits(tile, target)
        and product.gemm_bytes(tile) <= limit
        and (suits is None or suits(tile))
    ]
