"""gemm_wgmma.h on the host back end against the quantized reference, and what ptxas makes of it for Hopper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cuda.host_kernels import SCHEDULES, HostKernels, guarded, margins_untouched
from tests.cuda.sass import compiler_remarks, disassembled

from svdqc.compiler.targets.cuda import SM_90A
from svdqc.compiler.targets.cuda_layouts import LAYOUTS
from svdqc.compiler.targets.cuda_layouts_wgmma import LAYOUTS as WGMMA_LAYOUTS

SOURCE = (Path(__file__).resolve().parent / "cu" / "gemm_wgmma.cu").read_text()
SEED = 17
EPS = 2.0**-24
LOW_RANK = 2.0**-17
"""What splitting `low` into two bf16 costs a product of the branch."""


@pytest.fixture(scope="module")
def kernels() -> HostKernels:
    return HostKernels({"gemm_wgmma": SOURCE})


def check(
    kernels: HostKernels,
    m: int,
    n: int,
    k: int,
    rank: int = 16,
    *,
    exact: bool = False,
    schedule: int = 0,
    extreme: bool = False,
) -> None:
    """exact: scales of 1 and nothing added, so the result is the integer sum; extreme: all codes -128 and 127."""
    made = torch.Generator().manual_seed(hash((SEED, m, n, k, rank)) % (1 << 31))
    limits = (-128, 128)
    x_codes = torch.randint(*limits, (m, k), generator=made, dtype=torch.int8)
    w_codes = torch.randint(*limits, (n, k), generator=made, dtype=torch.int8)
    if extreme:
        x_codes.fill_(-128)
        w_codes.fill_(-128)
    x_scale = torch.ones(m) if exact else torch.rand(m, generator=made) + 0.1
    w_scale = (torch.ones(n) if exact else torch.rand(n, generator=made) + 0.1).bfloat16()
    low = torch.randn(m, rank, generator=made) * 1e3
    up = torch.randn(n, rank, generator=made).bfloat16() * 10
    bias = torch.zeros(n) if exact else torch.randn(n, generator=made) * 1e3
    out, margins = guarded(m * (n + 5), np.float32)
    packed_up = LAYOUTS["bf16_mma"].pack(up) if rank else torch.zeros(16, dtype=torch.bfloat16)
    buffers = [
        x_codes,
        x_scale,
        WGMMA_LAYOUTS["s8_wgmma"].pack(w_codes),
        w_scale.view(torch.int16),
        low,
        packed_up.view(torch.int16),
        bias,
    ]
    kernels.launch(
        "gemm_wgmma",
        [*(_aligned(b.numpy()) for b in buffers), out],
        [m, n, k, rank, n + 5],
        grid_x=-(-m // 128) * -(-n // 128),
        schedule=schedule,
    )
    assert margins_untouched(out, margins)
    rows = torch.from_numpy(out).reshape(m, n + 5)
    assert rows[:, n:].isnan().all()

    sums = x_codes.double() @ w_codes.double().T
    if exact:
        assert rank == 0
        assert torch.equal(rows[:, :n], sums.float())
        return
    coded = sums * x_scale.double()[:, None] * w_scale.double()
    branch = low.double() @ up.double().T
    size = low.double().abs() @ up.double().abs().T
    want = coded + branch + bias.double()
    bound = EPS * (4 * (coded.abs() + bias.abs()) + (3 * rank + 2) * (size + want.abs()))
    bound += LOW_RANK * size
    miss = (rows[:, :n].double() - want).abs()
    assert (miss <= bound).all(), (SEED, float(miss.max()), float((miss / bound).max()))
    assert bound.max() < 1e-3 * want.abs().max()


def _aligned(array: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """A copy that begins at a multiple of 64 bytes, as buffers of a plan do."""
    whole = np.zeros(array.nbytes + 64, np.uint8)
    begin = -whole.ctypes.data % 64
    copy = whole[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("m", [1, 7, 63, 64, 65, 127, 128, 129])
def test_gemm_wgmma__m_tails(kernels: HostKernels, m: int) -> None:
    check(kernels, m, 128, 128)


@pytest.mark.parametrize("n", [8, 16, 120, 127, 128, 129, 256])
def test_gemm_wgmma__n_tails(kernels: HostKernels, n: int) -> None:
    check(kernels, 40, n, 192)


@pytest.mark.parametrize("k", [16, 64, 112, 128, 144, 256, 384, 512, 640])
def test_gemm_wgmma__k_tails_and_stages(kernels: HostKernels, k: int) -> None:
    check(kernels, 130, 40, k)


@pytest.mark.parametrize("rank", [0, 8, 16, 32, 40])
def test_gemm_wgmma__ranks(kernels: HostKernels, rank: int) -> None:
    check(kernels, 70, 70, 128, rank)


def test_gemm_wgmma__integer_sums_are_exact(kernels: HostKernels) -> None:
    check(kernels, 129, 130, 448, 0, exact=True)
    check(kernels, 64, 64, 1024, 0, exact=True, extreme=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gemm_wgmma__any_order_of_threads(kernels: HostKernels, schedule: int) -> None:
    check(kernels, 100, 100, 640, schedule=schedule)


def test_gemm_wgmma__width_of_flux(kernels: HostKernels) -> None:
    check(kernels, 5, 256, 3072, 32)


@pytest.mark.parametrize("shape", [(1, 1), (8, 16), (130, 200), (256, 128)])
def test_s8_wgmma__round_trip(shape: tuple[int, int]) -> None:
    layout = WGMMA_LAYOUTS["s8_wgmma"]
    codes = torch.randint(-128, 128, shape, dtype=torch.int8)
    flat = layout.pack(codes).reshape(-1).view(torch.uint8)
    assert flat.numel() == layout.num_bytes(shape)
    assert torch.equal(layout.unpack(flat, shape), codes)


def test_gemm_wgmma__sass() -> None:
    sass = disassembled("gemm_wgmma", SOURCE, SM_90A)
    sass.require_opcode("IGMMA.64x128x32.S8.S8")
    sass.require_opcode("UBLKCP")
    sass.require_clean(max_registers=168)
    loop = sass.inner_loop("IGMMA")
    print(f"gemm_wgmma sm_90a: {loop.per_op:.1f} instructions per IGMMA of 64 x 128 x 32")
    assert loop.per_op < 32  # an IGMMA takes 64 cycles of the tensor cores; four warps issue it
    assert not [line for line in compiler_remarks(SOURCE, SM_90A) if "serializ" in line]
