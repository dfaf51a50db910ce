"""gemm_wgmma.h on the host back end against the quantized reference, and what ptxas makes of it for Hopper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cuda import host_kernels
from tests.cuda.conftest import GateLoop
from tests.cuda.host_kernels import (
    SCHEDULES,
    HostKernels,
    e4m3_rounding,
    guarded,
    has,
    margins_untouched,
)
from tests.cuda.sass import compiler_remarks, disassembled
from torch import Tensor

from svdqc.compiler.targets.cuda import SM_90A
from svdqc.compiler.targets.cuda_layouts import LAYOUTS, UnpackableCudaWeight
from svdqc.compiler.targets.cuda_layouts_wgmma import LAYOUTS as WGMMA_LAYOUTS
from svdqc.compiler.targets.layout import MULTIPLIERS

pytestmark = pytest.mark.skipif(not has("wgmma_s8"), reason="this GPU has no wgmma")
SOURCE = (Path(__file__).resolve().parent / "cu" / "gemm_wgmma.cu").read_text()
ALL_LAYOUTS = LAYOUTS | WGMMA_LAYOUTS
SEED = 17
EPS = 2.0**-24
LOW_RANK = 2.0**-17
"""What splitting `low` into two bf16 costs a product of the branch."""


@dataclass(frozen=True)
class Kind:
    """codes: svdq's; layout of the weight; budget: issue slots per wgmma of 64 x 128 x 32, which takes 64 clocks: two
    warps of an SM's quarter share 128 slots in two; tile: rows, columns and stages; group: k that share a multiplier
    (0: there are none)."""

    codes: str
    layout: str
    opcode: str
    budget: float
    tile: tuple[int, int, int] = (128, 128, 5)
    group: int = 0

    @property
    def cpp(self) -> str:
        rows, columns, stages = self.tile
        if self.group:
            return f"WgmmaGemmS4, {self.codes}<{self.group}>, WgmmaTile<{rows}, {stages}>"
        return f"WgmmaGemm, {self.codes}, GemmTile<{rows}, {columns}, 8, 1, {stages}, 1>"

    def limits(self, of_weight: bool) -> tuple[int, int]:
        if self.codes == "WgmmaE4m3":
            return 0, 256  # bit patterns
        return (-8, 8) if of_weight and self.group else (-128, 128)

    def random(self, shape: tuple[int, int], of_weight: bool, made: torch.Generator) -> Tensor:
        is_float = self.codes == "WgmmaE4m3"
        dtype = torch.uint8 if is_float else torch.int8
        codes = torch.randint(*self.limits(of_weight), shape, generator=made, dtype=dtype)
        return torch.where(codes & 0x7F == 0x7F, codes - 1, codes) if is_float else codes  # no NaN

    def values(self, codes: Tensor) -> Tensor:
        return (codes.view(torch.float8_e4m3fn) if codes.dtype is torch.uint8 else codes).double()


S8, E4M3 = "IGMMA.64x{}x32.S8.S8", "QGMMA.64x{}x32.F32.E4M3.E4M3"
KINDS = {
    "s8": Kind("WgmmaS8", "s8_wgmma", S8.format(128), 16.0),
    "e4m3": Kind("WgmmaE4m3", "e4m3_wgmma", E4M3.format(128), 44.0),
    "s8_192": Kind("WgmmaS8", "s8_wgmma", S8.format(192), 16.0, (128, 192, 4)),
    "e4m3_192": Kind("WgmmaE4m3", "e4m3_wgmma", E4M3.format(192), 66.0, (128, 192, 4)),
    # Of 192 an operation takes 96 clocks: 96 slots.
    "s8s4_g32": Kind("WgmmaS8S4", "u4s8_mma", S8.format(192), 34.0, (192, 128, 5), 32),
    "s8s4_g64": Kind("WgmmaS8S4", "u4s8_mma", S8.format(192), 32.0, (192, 128, 5), 64),
    "s8s4_g128": Kind("WgmmaS8S4", "u4s8_mma", S8.format(192), 32.0, (192, 128, 5), 128),
    "s8s4_128": Kind("WgmmaS8S4", "u4s8_mma", S8.format(128), 32.0, (128, 128, 6), 64),
}


SOME = ["s8_192", "e4m3", "s8s4_g64"]
"""One of each kind of sums, and of each kind of weights."""


def kernel_text(names: list[str]) -> str:
    listed = " ".join(f"X({name}, {KINDS[name].cpp})" for name in names)
    return f"#define KERNELS(X) {listed}\n" + SOURCE


@pytest.fixture(scope="module")
def kernels() -> HostKernels:
    return HostKernels({"gemm_wgmma": kernel_text(list(KINDS))})


def check(
    kernels: HostKernels,
    name: str,
    m: int,
    n: int,
    k: int,
    rank: int = 16,
    *,
    exact: bool = False,
    schedule: int = 0,
    extreme: bool = False,
    ctas: int = 3,
) -> None:
    """exact: scales of 1 and nothing added, so the result is the integer sum; extreme: all codes the lowest, under the
    largest multiplier; ctas: at most, so that one computes several tiles."""
    kind = KINDS[name]
    made = torch.Generator().manual_seed(hash((SEED, m, n, k, rank)) % (1 << 31))
    x_codes = kind.random((m, k), False, made)
    w_codes = kind.random((n, k), True, made)
    if extreme:
        x_codes.fill_(kind.limits(False)[0])
        w_codes.fill_(kind.limits(True)[0])
    multiplier = torch.zeros(n, 1, dtype=torch.int8)
    w_values = kind.values(w_codes)
    if kind.group:
        most = MULTIPLIERS[1]
        multiplier = torch.randint(-most, most + 1, (n, k // kind.group), generator=made).to(
            torch.int8
        )
        if extreme:
            multiplier.fill_(most)
        w_values = w_values * multiplier.repeat_interleave(kind.group, 1)
    x_scale = torch.ones(m) if exact else torch.rand(m, generator=made) + 0.1
    w_scale = torch.ones(n) if exact else torch.rand(n, generator=made) + 0.1
    w_scale = w_scale.bfloat16()
    size_of_x = float(kind.values(x_codes).abs().mean() * w_values.abs().mean()) * k
    low = torch.randn(m, rank, generator=made) * size_of_x / 100
    up = torch.randn(n, rank, generator=made).bfloat16()
    bias = torch.zeros(n) if exact else torch.randn(n, generator=made) * size_of_x / 100
    out, margins = guarded(m * (n + 5), np.float32)
    packed_up = LAYOUTS["bf16_mma"].pack(up) if rank else torch.zeros(16, dtype=torch.bfloat16)
    multipliers = LAYOUTS["multiplier_mma"].pack(multiplier)
    buffers = [
        x_codes,
        x_scale,
        ALL_LAYOUTS[kind.layout].pack(w_codes),
        w_scale.view(torch.int16),
        low,
        packed_up.view(torch.int16),
        bias,
    ]
    kernels.launch(
        name,
        [*(_aligned(b.numpy()) for b in buffers), out, _aligned(multipliers.numpy())],
        [m, n, k, rank, n + 5],
        grid_x=min(ctas, -(-m // kind.tile[0]) * -(-n // kind.tile[1])),
        schedule=schedule,
    )
    assert margins_untouched(out, margins)
    rows = torch.from_numpy(out).reshape(m, n + 5)
    assert rows[:, n:].isnan().all()

    x, w = kind.values(x_codes), w_values
    if exact:
        assert rank == 0
        assert torch.equal(rows[:, :n], (x @ w.T).float())
        return
    x = x * x_scale.double()[:, None]
    w = w * w_scale.double()[:, None]
    coded = x @ w.T
    inner = 3 * EPS * coded.abs()  # the sum and its scaling are rounded; of floats each product
    if x_codes.dtype is torch.uint8:
        inner = inner + e4m3_rounding(k) * (x.abs() @ w.abs().T)
    branch = low.double() @ up.double().T
    size = low.double().abs() @ up.double().abs().T
    want = coded + branch + bias.double()
    bound = EPS * (4 * (coded.abs() + bias.abs()) + (3 * rank + 2) * (size + want.abs()))
    bound += LOW_RANK * size + inner
    miss = (rows[:, :n].double() - want).abs()
    assert (miss <= bound).all(), (SEED, float(miss.max()), float((miss / bound).max()))
    coarse = x_codes.dtype is torch.uint8 and host_kernels.gpu is not None
    assert bound.max() < (0.1 if coarse else 1e-3) * want.abs().max()


def _aligned(array: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """A copy that begins at a multiple of 64 bytes, as buffers of a plan do."""
    whole = np.zeros(array.nbytes + 64, np.uint8)
    begin = -whole.ctypes.data % 64
    copy = whole[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("m", [1, 7, 63, 64, 65, 127, 128, 129, 191, 192, 193])
def test_gemm_wgmma__m_tails(kernels: HostKernels, kind: str, m: int) -> None:
    check(kernels, kind, m, 128, 128)


@pytest.mark.parametrize("kind", ["s8_192", "e4m3_192", "s8s4_g64", "s8s4_128"])
@pytest.mark.parametrize("n", [8, 120, 127, 128, 129, 191, 192, 193, 256, 330])
def test_gemm_wgmma__n_tails(kernels: HostKernels, kind: str, n: int) -> None:
    check(kernels, kind, 40, n, 192)


@pytest.mark.parametrize("kind", list(KINDS))
def test_gemm_wgmma__k_tails_and_stages(kernels: HostKernels, kind: str) -> None:
    sizes = (16, 64, 112, 128, 144, 256, 384, 512, 640, 768)
    step = KINDS[kind].group or 16
    for k in dict.fromkeys(-(-k // step) * step for k in sizes):
        check(kernels, kind, 130, 40, k)


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("rank", [0, 8, 16, 32, 40])
def test_gemm_wgmma__ranks(kernels: HostKernels, kind: str, rank: int) -> None:
    check(kernels, kind, 70, 70, 128, rank)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].codes != "WgmmaE4m3"])
def test_gemm_wgmma__integer_sums_are_exact(kernels: HostKernels, kind: str) -> None:
    check(kernels, kind, 129, 130, 384, 0, exact=True)
    check(kernels, kind, 64, 64, 1024, 0, exact=True, extreme=True)


def test_gemm_wgmma__long_sums_stay_integers(kernels: HostKernels) -> None:
    """The largest there are, 15 times as large as what f32 counts without rounding."""
    check(kernels, "s8s4_g64", 2, 3, 1 << 14, 0, exact=True, extreme=True)


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gemm_wgmma__any_order_of_threads(kernels: HostKernels, kind: str, schedule: int) -> None:
    check(kernels, kind, 100, 100, 640, schedule=schedule)


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("ctas", [1, 2, 4])
def test_gemm_wgmma__several_tiles_a_cta(kernels: HostKernels, kind: str, ctas: int) -> None:
    """Three by two tiles, fewer steps than stages and more; what copies is ahead of what multiplies."""
    check(kernels, kind, 300, 200, 128, ctas=ctas)
    check(kernels, kind, 300, 200, 704, ctas=ctas, schedule=1)


@pytest.mark.parametrize("kind", SOME)
def test_gemm_wgmma__width_of_flux(kernels: HostKernels, kind: str) -> None:
    check(kernels, kind, 5, 256, 3072, 32)


@pytest.mark.parametrize("name", list(WGMMA_LAYOUTS))
def test_wgmma_layouts__round_trip(name: str) -> None:
    layout = WGMMA_LAYOUTS[name]
    for shape in [(1, 1), (8, 16), (130, 200), (256, 128)]:
        if name == "e4m3_wgmma":
            tensor = torch.randint(0, 256, shape, dtype=torch.uint8)
        else:
            tensor = torch.randint(-128, 128, shape, dtype=torch.int8)
        flat = layout.pack(tensor).reshape(-1).view(torch.uint8)
        assert flat.numel() == layout.num_bytes(shape)
        assert torch.equal(layout.unpack(flat, shape), tensor)


@pytest.mark.parametrize("name", list(KINDS))
def test_gemm_wgmma__sass(name: str, gate_loop: GateLoop) -> None:
    kind, text = KINDS[name], kernel_text([name])
    sass = disassembled(name, text, SM_90A)
    sass.require_opcode(kind.opcode)
    sass.require_opcode("UBLKCP")
    sass.require_clean(max_registers=168)
    gate_loop(sass, kind.opcode, kind.budget)
    sass.require_opcode("USETMAXREG")
    assert not compiler_remarks(text, SM_90A)  # such as "wgmma serialized" or "setmaxnreg ignored"


def test_wgmma_layouts__refuse_what_they_cannot_hold() -> None:
    for layout, tensor in (
        ("s8_wgmma", torch.zeros(8, 16)),
        ("e4m3_wgmma", torch.zeros(8, 16, dtype=torch.int8)),
    ):
        with pytest.raises(UnpackableCudaWeight, match="pack"):
            WGMMA_LAYOUTS[layout].pack(tensor)
