"""gemm_int.h on the host back end against the quantized reference: integer sums exact, floats within their bound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cuda import host_kernels
from tests.cuda.host_kernels import (
    SCHEDULES,
    HostKernels,
    e4m3_rounding,
    guarded,
    has,
    margins_untouched,
)

from svdqc.compiler.targets.cuda_layouts import LAYOUTS
from svdqc.compiler.targets.layout import MULTIPLIERS

SOURCE = Path(__file__).resolve().parent / "cu" / "gemm_int.cu"
SEED = 5
EPS = 2.0**-24
SMALL = "64, 64, 2, 2, 3, 1"  # BM, BN, warps along rows and columns, stages, tiles of a slab
FULL = "128, 128, 2, 4, 3, 2"
ALIGNED = 16


E4M3 = (0x00, 0xFF)
"""Bit patterns, held as uint8."""


@dataclass(frozen=True)
class Kind:
    """How codes meet: the type in gemm_codes.h, its weight layout, the codes' ranges, and how many k share an integer
    that multiplies the weight's (0: there are none)."""

    codes: str
    layout: str
    x_bits: int
    w_bits: int
    x_codes: tuple[int, int]
    w_codes: tuple[int, int]
    multiplied: int = 0

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """What the codes stand for, in f64."""
        return (codes.view(torch.float8_e4m3fn) if self.x_codes == E4M3 else codes).double()


KINDS = {
    "s4": Kind("S4<false>", "s4_mma", 4, 4, (-8, 7), (-8, 7)),
    "u4": Kind("S4<true>", "s4_mma", 4, 4, (0, 15), (-8, 7)),
    "s4_widened": Kind("S4Widened<false>", "s4_mma", 4, 4, (-8, 7), (-8, 7)),
    "u4_widened": Kind("S4Widened<true>", "s4_mma", 4, 4, (0, 15), (-8, 7)),
    "s8s4_32": Kind("S8S4<32>", "u4s8_mma", 8, 4, (-127, 127), (-8, 7), 32),
    "s8s4_64": Kind("S8S4<64>", "u4s8_mma", 8, 4, (-127, 127), (-8, 7), 64),
    "s8s4_128": Kind("S8S4<128>", "u4s8_mma", 8, 4, (-127, 127), (-8, 7), 128),
    "s8": Kind("S8", "s8_mma", 8, 8, (-127, 127), (-127, 127)),
    "e4m3": Kind("E4m3", "e4m3_mma", 8, 8, E4M3, E4M3),
    "e4m3_halves": Kind("E4m3Halves", "e4m3_mma", 8, 8, E4M3, E4M3),
}
GROUPS = {"s4": (32, 64, 128), "s4_widened": (32, 64, 128), "s8": (0, 64, 128)}
GROUPS |= dict.fromkeys(("s8s4_32", "s8s4_64", "s8s4_128", "e4m3", "e4m3_halves"), (0,))
"""0: one scale for all of k, of a row of either side."""
NEEDED = {"s4": "s4", "u4": "s4", "e4m3": "e4m3"}
"""Tensor-core operations that not every GPU has."""
CASES = [
    (kind, group)
    for kind in KINDS
    for group in GROUPS.get(kind, (64,))
    if kind not in NEEDED or has(NEEDED[kind])
]
S4 = "s4" if has("s4") else "s4_widened"
FULL_TILES = [
    ("s4_g64", 64, 64),
    ("s4_full", 128, 128),
    ("s4_widened_full", 128, 128),
][0 if has("s4") else 2 :]
"""Kernels of faithful W4A4 with the rows and columns of their tiles."""


def kernel_text(math: str, kernels: list[str]) -> str:
    """The source with these kernels, each "name, codes, group, k of a stage, tile"."""
    lines = " \\\n".join(f"X({kernel})" for kernel in kernels)
    return f"#define MATH {math}\n#define KERNELS(X) {lines}\n" + SOURCE.read_text()


def _small(kind: str, group: int) -> str:
    bk = 256 if KINDS[kind].x_bits == 4 else 128
    return f"{kind}_g{group}, {KINDS[kind].codes}, {group}, {bk}, {SMALL}"


@pytest.fixture(scope="module")
def kernels() -> HostKernels:
    """The small tile for every case, the full one for faithful W4A4."""
    names = [n for n, *_ in FULL_TILES if n.endswith("_full")]
    codes = [KINDS[n.removesuffix("_full")].codes for n in names]
    full = [f"{n}, {c}, 64, 256, {FULL}" for n, c in zip(names, codes, strict=True)]
    return HostKernels({"gemm_int": kernel_text("Bf16Math", [_small(*c) for c in CASES] + full)})


@pytest.fixture(scope="module")
def turing() -> HostKernels:
    """The low-rank branch with f16 tensor cores."""
    return HostKernels({"gemm_int_f16": kernel_text("F16Math", [_small(S4, 64)])})


def pack_x(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int8 codes [M, K] as kernels read them: 4-bit codes two a byte, the low nibble first."""
    if bits == 8:
        return codes.contiguous()
    return ((codes[:, 0::2] & 15) | (codes[:, 1::2] << 4)).contiguous()


class Problem:
    """One linear: codes and scales of x [m, k] and w [n, k], low-rank branch and bias, random."""

    def __init__(self, kind: str, m: int, n: int, k: int, group: int, rank: int = 16) -> None:
        made = torch.Generator().manual_seed(hash((SEED, m, n, k, group, rank)) % (1 << 31))
        self.kind, self.group = KINDS[kind], group or k

        def integers(limits: tuple[int, int], *shape: int) -> torch.Tensor:
            dtype = torch.uint8 if limits == E4M3 else torch.int8
            codes = torch.randint(limits[0], limits[1] + 1, shape, generator=made, dtype=dtype)
            # A NaN becomes the largest number, +-448.
            return torch.where(codes & 0x7F == 0x7F, codes - 1, codes) if limits == E4M3 else codes

        self.x_codes = integers(self.kind.x_codes, m, k)
        self.w_codes = integers(self.kind.w_codes, n, k)
        groups, most = k // self.group, MULTIPLIERS[1]
        of_k = k // (self.kind.multiplied or k)
        multipliers = torch.randint(-most, most + 1, (n, of_k), generator=made)
        self.w_multiplier = multipliers.to(torch.int8)
        self.x_scale = torch.randn(m, groups, generator=made)
        self.w_scale = torch.randn(n, groups, generator=made).bfloat16()
        self.low = torch.randn(m, rank, generator=made)
        self.up = torch.randn(n, rank, generator=made).bfloat16()
        self.bias = torch.randn(n, generator=made)

    @property
    def w_values(self) -> torch.Tensor:
        """What the weight's codes, multiplied, stand for, in f64."""
        values = self.kind.values(self.w_codes)
        if not self.kind.multiplied:
            return values
        return values * self.w_multiplier.repeat_interleave(self.kind.multiplied, 1)

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The result [m, n] in f64, and the bound of its error."""
        (m, k), n = self.x_codes.shape, self.w_codes.shape[0]
        groups, rank = k // self.group, self.low.shape[1]
        x = self.kind.values(self.x_codes).reshape(m, groups, self.group)
        w = self.w_values.reshape(n, groups, self.group)
        total, size, inner = (torch.zeros(m, n).double() for _ in range(3))
        x_scale = self.x_scale.double().expand(m, groups)
        for g in range(groups):
            term = x[:, g] @ w[:, g].T * x_scale[:, g, None] * self.w_scale[:, g].double()
            total += term
            size += term.abs()
            if self.kind.x_codes == E4M3:  # products exact in f32, their sums rounded
                magnitudes = x[:, g].abs() @ w[:, g].abs().T
                inner += magnitudes * x_scale[:, g, None].abs() * self.w_scale[:, g].double().abs()
        low, up = self.low.double(), self.up.double().T
        branch = low.abs() @ up.abs()
        total = total + low @ up + self.bias.double()
        # Every sum rounds to f32; a product of the branch, of two 16-bit halves, is off by 2^-17.
        parts = size + branch + self.bias.double().abs()
        bound = EPS * (groups + 2 * rank + 3) * parts + 2.0**-17 * branch
        bound += e4m3_rounding(k) * inner
        return total, bound

    def run(
        self, kernels: HostKernels, name: str, bm: int, bn: int, schedule: int = 0
    ) -> torch.Tensor:
        (m, k), n = self.x_codes.shape, self.w_codes.shape[0]
        out, margins = guarded(m * (n + 3), np.float32)
        operands = [
            pack_x(self.x_codes, self.kind.x_bits),
            self.x_scale,
            LAYOUTS[self.kind.layout].pack(self.w_codes),
            LAYOUTS["scale_mma"].pack(self.w_scale).view(torch.int16),
            self.bias,
            self.low,
            LAYOUTS["bf16_mma"].pack(self.up).view(torch.int16),
        ]
        multipliers = LAYOUTS["multiplier_mma"].pack(self.w_multiplier)
        buffers = [*(operand.numpy() for operand in operands), out, multipliers.numpy()]
        scalars = [m, n, k, self.low.shape[1], n + 3]
        tasks = -(-m // bm) * -(-n // bn)
        kernels.launch(name, buffers, scalars, grid_x=tasks, schedule=schedule)
        assert margins_untouched(out, margins)
        rows = torch.from_numpy(out).reshape(m, n + 3)
        assert rows[:, n:].isnan().all()
        return rows[:, :n]

    def check(self, kernels: HostKernels, name: str, bm: int = 64, bn: int = 64) -> None:
        want, bound = self.expected()
        miss = (self.run(kernels, name, bm, bn).double() - want).abs()
        assert (miss <= bound).all(), (SEED, float(miss.max()), float((miss / bound).max()))
        coarse = self.kind.x_codes == E4M3 and host_kernels.gpu is not None
        assert bound.max() < (0.1 if coarse else 1e-3) * want.abs().max()


@pytest.mark.parametrize(("kind", "group"), CASES)
def test_gemm_int__kinds_and_groups(kernels: HostKernels, kind: str, group: int) -> None:
    Problem(kind, 65, 65, 640, group).check(kernels, f"{kind}_g{group}")


def test_gemm_int__turing_low_rank(turing: HostKernels) -> None:
    Problem(S4, 65, 65, 640, 64).check(turing, f"{S4}_g64")


@pytest.mark.parametrize("m", [1, 15, 16, 17, 63, 64, 65, 127, 128, 129])
def test_gemm_int__m_tails(kernels: HostKernels, m: int) -> None:
    for name, bm, bn in FULL_TILES:
        Problem(name.rpartition("_")[0], m, 40, 192, 64).check(kernels, name, bm, bn)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 63, 64, 65, 127, 128, 129])
def test_gemm_int__n_tails(kernels: HostKernels, n: int) -> None:
    for name, bm, bn in FULL_TILES:
        Problem(name.rpartition("_")[0], 20, n, 192, 64).check(kernels, name, bm, bn)


@pytest.mark.parametrize(("kind", "group"), CASES)
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 5, 7, 8, 9])
def test_gemm_int__k_tails(kernels: HostKernels, kind: str, group: int, groups: int) -> None:
    """Any number of groups, odd ones and the first alone: stages and steps end anywhere."""
    step = max(group or 32, KINDS[kind].multiplied)
    Problem(kind, 17, 40, groups * step, group).check(kernels, f"{kind}_g{group}")


@pytest.mark.parametrize("rank", [0, 1, 8, 15, 16, 17, 32, 128])
def test_gemm_int__ranks(kernels: HostKernels, turing: HostKernels, rank: int) -> None:
    for library in (kernels, turing):
        Problem(S4, 33, 65, 128, 64, rank).check(library, f"{S4}_g64")


@pytest.mark.parametrize(("kind", "group"), [c for c in CASES if KINDS[c[0]].x_codes != E4M3])
@pytest.mark.parametrize("sign", [-1, 1])
def test_gemm_int__extreme_codes(kernels: HostKernels, kind: str, group: int, sign: int) -> None:
    """The largest sums there are, of one sign: with scales of 1 and no branch the result is their exact integer."""
    problem = Problem(kind, 16, 32, 4 * (group or 64), group, rank=0)
    x, (low, high) = problem.kind.x_codes, problem.kind.w_codes
    problem.x_codes.fill_(x[0] if abs(x[0]) > abs(x[1]) else x[1])
    negative = (problem.x_codes[0, 0] < 0) == (sign > 0)
    problem.w_codes.fill_(low if negative else high)
    problem.w_multiplier.fill_(MULTIPLIERS[1])
    problem.x_scale.fill_(1.0)
    problem.w_scale.fill_(1.0)
    problem.bias.zero_()
    exact = problem.x_codes.long() @ problem.w_values.long().T
    assert torch.equal(problem.run(kernels, f"{kind}_g{group}", 64, 64).long(), exact)


@pytest.mark.parametrize("kind", [kind for kind, _ in CASES if KINDS[kind].x_codes == E4M3])
def test_gemm_int__every_e4m3_is_read_as_what_it_is(kernels: HostKernels, kind: str) -> None:
    """Column n of the result is code n of the weights: each has one number that is not 0, and x the number 1 there."""
    numbers = [c for c in range(256) if c & 0x7F != 0x7F]
    problem = Problem(kind, 16, len(numbers), 128, 0, rank=0)
    problem.w_codes.zero_()
    problem.x_codes.zero_()
    for n, code in enumerate(numbers):
        problem.w_codes[n, n % 128] = code
    problem.x_codes.fill_(0x38)  # 1.0
    problem.x_scale.fill_(1.0)
    problem.w_scale.fill_(1.0)
    problem.bias.zero_()
    values = torch.tensor(numbers, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert torch.equal(problem.run(kernels, f"{kind}_g0", 64, 64), values.expand(16, -1))


WIDTHS = {
    "flux": [(3072, 3072), (9216, 3072), (3072, 12288)],
    "pixart": [(1152, 1152), (4608, 1152), (1152, 4608)],
    "sdxl": [(640, 640), (1280, 1280), (10240, 1280)],
}


@pytest.mark.parametrize(("n", "k"), [shape for shapes in WIDTHS.values() for shape in shapes])
def test_gemm_int__model_widths(kernels: HostKernels, n: int, k: int) -> None:
    Problem(S4, 17, n, k, 64, rank=32).check(kernels, f"{S4}_g64")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gemm_int__any_order_of_threads(kernels: HostKernels, schedule: int) -> None:
    """What one thread reads of another's shared memory is ordered by barriers: results do not depend on the order."""
    problem = Problem(S4, 130, 130, 1088, 64)
    first = problem.run(kernels, f"{S4}_full", 128, 128)
    assert torch.equal(problem.run(kernels, f"{S4}_full", 128, 128, schedule), first)
