"""The intrinsic layer on its host back end, and what its kernels compile to on every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.cuda import sass
from tests.cuda.host_kernels import (
    SCHEDULES,
    HostKernels,
    LaunchFailed,
    guarded,
    margins_untouched,
)

from svdqc.compiler.targets.cuda import CUDA_TARGETS, SM_90A, CudaTarget

PROBES = Path(__file__).parent / "probes"
NAMES = ("exchange", "staged_copy", "conversions", "mistakes")


@pytest.fixture(scope="module")
def kernels() -> HostKernels:
    return HostKernels({name: (PROBES / f"{name}.cu").read_text() for name in NAMES})


def tree_sum(x: np.ndarray[Any, Any], lanes: int) -> np.ndarray[Any, Any]:
    """lanes_sum over the last axis [..., threads]: every lane has its group's sum, added in the documented order."""
    total = x.copy()
    distance = 1
    while distance < lanes:
        total = total + total[..., np.arange(x.shape[-1]) ^ distance]
        distance *= 2
    return total


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("os_threads", [1, 3])
def test_exchange(kernels: HostKernels, schedule: int, os_threads: int) -> None:
    grid = 5
    x = np.random.default_rng(1).standard_normal((grid, 128)).astype(np.float32)
    out, whole = guarded(grid * 12 * 128, np.float32)
    bits, wide = np.zeros((grid, 3, 128), np.uint32), np.zeros((grid, 128), np.float64)
    kernels.launch(
        "exchange", [x, out, bits, wide], grid_x=grid, schedule=schedule, os_threads=os_threads
    )

    warps = x.reshape(grid, 4, 32)
    lane = np.arange(32)

    def lanes(source: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return warps[..., source].reshape(grid, 128)

    def grouped(function: Any, width: int) -> np.ndarray[Any, Any]:
        return np.repeat(function(x.reshape(grid, -1, width), axis=-1), width, axis=-1)

    sums = tree_sum(x, 32)
    total = sums[:, 0] + sums[:, 32] + sums[:, 64] + sums[:, 96]
    handed = np.zeros((grid, 128), np.float32)
    handed[:, :32] = (warps[:, 1] + 1) + (warps[:, 2] + 1) + (warps[:, 3] + 1)
    handed += x.reshape(grid, 2, 64)[..., ::-1].reshape(grid, 128)
    expected = [
        lanes((lane * 5 + 3) % 32),
        lanes(lane ^ 9),
        lanes(np.where(lane >= 3, lane - 3, lane)),
        lanes(np.where(lane + 7 < 32, lane + 7, lane)),
        sums,
        tree_sum(x, 4),
        grouped(np.max, 8),
        grouped(np.min, 32),
        tree_sum(x, 16),
        np.repeat(total[:, None], 128, axis=1),
        x[:, np.arange(128) ^ 32],
        handed,
    ]
    np.testing.assert_array_equal(out.reshape(grid, 12, 128), np.stack(expected, axis=1))
    assert margins_untouched(out, whole)

    ballot = ((warps > 0) << lane.astype(np.uint32)).sum(axis=-1).astype(np.uint32)
    votes = np.any(warps > 2, axis=-1) + 2 * np.all(warps > -2, axis=-1)
    np.testing.assert_array_equal(bits[:, 0], np.repeat(ballot, 32, axis=-1))
    np.testing.assert_array_equal(bits[:, 1], np.repeat(votes, 32, axis=-1))
    np.testing.assert_array_equal(
        bits[:, 2], np.repeat(np.any(x > 3, axis=1)[:, None], 128, axis=1)
    )
    np.testing.assert_array_equal(wide, tree_sum(x.astype(np.float64), 32))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_bytes", [4, 8, 16])
@pytest.mark.parametrize("n", [4, 4092, 4096, 4100, 10_000])
def test_staged_copy(kernels: HostKernels, n: int, num_bytes: int, schedule: int) -> None:
    x, _ = guarded(n, np.float32)
    x[:] = np.random.default_rng(n).standard_normal(n)
    y, whole = guarded(n, np.float32)
    grid_x = -(-n // 4096)
    kernels.launch("staged_copy", [x, y], [n, num_bytes], grid_x=grid_x, schedule=schedule)
    np.testing.assert_array_equal(y, 2 * x)
    assert margins_untouched(y, whole)


def interesting_floats() -> np.ndarray[Any, Any]:
    """Numbers of every magnitude, every tie between neighbours in each format, both zeros, infinities: no NaN."""
    rng = np.random.default_rng(2)
    wide = np.exp2(rng.uniform(-30, 20, 20_000)) * rng.choice([-1, 1], 20_000)
    bits = np.arange(0, 0x7F80, dtype=np.uint32) << 16  # all bf16, and what lies between two
    ties = np.concatenate([bits, bits | 0x8000, bits | 0x8001, bits | 0x7FFF]).view(np.float32)
    half = np.arange(0, 0x7BFF, dtype=np.uint16)
    between = (
        half.view(np.float16).astype(np.float32) + (half + 1).view(np.float16).astype(np.float32)
    ) / 2
    codes = np.arange(0x7E, dtype=np.uint8)
    fp8 = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    fp8_ties = (fp8[1:] + fp8[:-1]) / 2
    special = np.array([0.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 448, 464, 480, np.inf])
    x = np.concatenate([wide, ties, between, fp8, fp8_ties, special]).astype(np.float32)
    x = np.concatenate([x, -x])
    return np.ascontiguousarray(x[: len(x) // 4 * 4])


def test_conversions(kernels: HostKernels) -> None:
    x = interesting_floats()
    n = len(x)
    bf16, f16 = np.zeros(n, np.uint16), np.zeros(n, np.uint16)
    e4m3, e2m1 = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
    rounded, packed = np.zeros(n, np.int32), np.zeros((n // 4, 4), np.uint32)
    from_bf16, from_f16 = np.zeros(65536, np.float32), np.zeros(65536, np.float32)
    from_e4m3, from_e2m1 = np.zeros(256, np.float32), np.zeros(16, np.float32)
    buffers = [x, bf16, f16, e4m3, e2m1, rounded, packed]
    buffers += [from_bf16, from_f16, from_e4m3, from_e2m1]
    kernels.launch("conversions", buffers, [n], grid_x=2)

    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(bf16, x.astype(ml_dtypes.bfloat16).view(np.uint16))
        np.testing.assert_array_equal(f16, x.astype(np.float16).view(np.uint16))
    fp8 = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(e4m3, fp8.view(np.uint8))
    fp4 = np.clip(x, -6, 6).astype(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(e2m1, fp4.view(np.uint8) & 15)
    limit = np.nextafter(np.float32(2**31), np.float32(0))
    nearest = np.rint(np.clip(x, -(2**31), limit)).astype(np.int64)
    np.testing.assert_array_equal(rounded, np.where(x >= 2**31, 2**31 - 1, nearest))

    four = [part.reshape(-1, 4).astype(np.uint32) for part in (bf16, f16, e4m3, e2m1)]
    np.testing.assert_array_equal(packed[:, 0], four[0][:, 0] | four[0][:, 1] << 16)
    np.testing.assert_array_equal(packed[:, 1], four[1][:, 2] | four[1][:, 3] << 16)
    shifts = np.array([0, 8, 16, 24], np.uint32)
    np.testing.assert_array_equal(packed[:, 2], (four[2] << shifts).sum(axis=1))
    np.testing.assert_array_equal(packed[:, 3], four[3][:, 0] | four[3][:, 1] << 4)

    halves = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(from_bf16, halves.view(ml_dtypes.bfloat16).astype(np.float32))
    np.testing.assert_array_equal(from_f16, halves.view(np.float16).astype(np.float32))
    eighths = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(from_e4m3, eighths.astype(np.float32))
    quarters = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(from_e2m1, quarters.astype(np.float32))


@pytest.mark.parametrize(
    ("kernel", "text"),
    [
        ("waits_alone", "threads 0-31 wait at cta_sync; threads 32-63 have returned; barrier 0"),
        ("diverges", "the warp diverges"),
        ("overlapping_masks", "masks overlap|not in the mask|deadlock"),
        ("writes_outside", "wrote outside its 64 bytes of shared memory"),
        ("copies_outside", "cp_async: 64 [+] 16 is outside the 64 bytes of shared memory"),
        ("misaligned", "cp_async: shared memory at 8 is not aligned to 16 bytes"),
        ("barriers_disagree", "barrier 3 expects 32 threads, and here 64|wait at barrier_sync"),
        ("gives_up", "scale is not a number"),
    ],
)
def test_mistakes_are_reported(kernels: HostKernels, kernel: str, text: str) -> None:
    out = np.zeros(64, np.int32)
    with pytest.raises(LaunchFailed, match=text) as told:
        kernels.launch(kernel, [out], grid_x=3)
    assert str(told.value).startswith(f"{kernel}: ")
    # And the library goes on.
    kernels.launch("reads_too_early", [out], grid_x=1)


def test_a_copy_is_not_there_before_it_is_waited_for(kernels: HostKernels) -> None:
    out = np.arange(64, dtype=np.int32)
    kernels.launch("reads_too_early", [out], grid_x=1)
    np.testing.assert_array_equal(out, -1)


def test_a_missing_barrier_shows_in_the_order(kernels: HostKernels) -> None:
    results = []
    for schedule in (0, 1):
        out = np.zeros(64, np.int32)
        kernels.launch("misses_a_barrier", [out], grid_x=1, schedule=schedule)
        results.append(out)
    assert (results[0] != results[1]).any()
    assert (results[0] == -1).any()  # poison


def test_kernels_say_what_they_were_compiled_for(kernels: HostKernels) -> None:
    info = kernels.info("staged_copy")
    assert (info.num_threads, info.shared_bytes) == (64, 3072)
    assert (info.num_buffers, info.num_scalars) == (2, 2)


@pytest.mark.parametrize("target", CUDA_TARGETS, ids=lambda target: target.arch)
@pytest.mark.parametrize("name", ["exchange", "staged_copy", "conversions"])
def test_compiled(name: str, target: CudaTarget) -> None:
    """Each intrinsic is the instruction it stands for, where the architecture has it."""
    kernel = sass.disassembled(name, (PROBES / f"{name}.cu").read_text(), target)
    kernel.require_clean(max_registers=64)
    if name == "exchange":
        for opcode in ("SHFL.IDX", "SHFL.BFLY", "SHFL.UP", "SHFL.DOWN", "BAR.SYNC", "BAR.ARV"):
            kernel.require_opcode(opcode)
    elif name == "staged_copy":
        assert (kernel.count("LDGSTS") > 0) == target.has_async_copies
    else:
        packed = [i.opcode for i in kernel.instructions if i.opcode.startswith("F2FP")]
        assert any("BF16" in opcode for opcode in packed) == target.has_async_copies
        assert any("E4M3" in opcode for opcode in packed) == (target.compute_capability >= (8, 9))
        assert any("E2M1" in opcode for opcode in packed) == (target.compute_capability[0] >= 10)


def test_remarks_of_the_compiler_are_seen() -> None:
    source = (PROBES / "staged_copy.cu").read_text()
    assert sass.compiler_remarks(source, SM_90A) == []
    remarks = sass.compiler_remarks(source + "\n#warning look here\n", SM_90A)
    assert any("look here" in line for line in remarks)
