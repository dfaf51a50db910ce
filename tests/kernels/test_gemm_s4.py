"""gemm_s4 against a naive quantized reference: integer sums exact, float scaling within its rounding bound."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from tests.kernels.cpu_build import ISAS, call, poisoned_scratch
from tests.kernels.linear_s4 import load_linear_s4

from svdqc.compiler.targets.cpu_layouts import (
    UnpackableWeight,
    bf16_scale_n16_bytes,
    pack_bf16_scale_n16,
    pack_s4_n16k4,
    packed_codes_bytes,
    s4_n16k4_bytes,
    unpack_bf16_scale_n16,
    unpack_s4_n16k4,
)

SEED = 4
CODE_LIMITS = {"signed8": (-8, 7), "unsigned": (0, 15), "symmetric8bit": (-127, 127)}
EPS = 2.0**-24


@pytest.fixture(scope="session", params=ISAS)
def kernels(request: Any) -> ctypes.CDLL:
    return load_linear_s4(request.param)


class Problem:
    """One product: codes and scales of x [m, k] and w [n, k], random unless given."""

    def __init__(self, m: int, n: int, k: int, group: int, name: str = "signed8") -> None:
        rng = np.random.default_rng([SEED, m, n, k, group])
        lo, hi = CODE_LIMITS[name]
        self.group, self.name = group, name
        self.x_codes = rng.integers(lo, hi + 1, (m, k), dtype=np.int8)
        self.w_codes = rng.integers(-8, 8, (n, k), dtype=np.int8)
        self.x_scale = rng.normal(0, 1, (m, k // group)).astype(np.float32)
        w_scale = torch.from_numpy(rng.normal(0, 1, (n, k // group)).astype(np.float32))
        self.w_scale = w_scale.to(torch.bfloat16).to(torch.float32).numpy()

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """The product [m, n] in f64, and the bound of its f32 error."""
        m, k = self.x_codes.shape
        groups = k // self.group
        x = self.x_codes.reshape(m, groups, self.group).astype(np.float64)
        w = self.w_codes.reshape(-1, groups, self.group).astype(np.float64)
        sums = np.einsum("mgk,ngk->gmn", x, w)  # integers below 2^53: exact
        scales = np.einsum(
            "mg,ng->gmn", self.x_scale.astype(np.float64), self.w_scale.astype(np.float64)
        )
        terms = sums * scales
        # Each term is rounded once when scaled (twice where fma is two operations), each partial sum once.
        return terms.sum(0), EPS * (groups + 3) * np.abs(terms).sum(0)

    def run(
        self,
        kernels: ctypes.CDLL,
        panels: tuple[int, int] | None = None,
        start: np.ndarray | None = None,
    ) -> np.ndarray:
        """The kernel's [m, 16 * panels]; `start` is what it accumulates to."""
        m, k = self.x_codes.shape
        w_packed = pack_s4_n16k4(torch.from_numpy(self.w_codes)).numpy()
        w_scale = pack_bf16_scale_n16(torch.from_numpy(self.w_scale)).view(torch.int16).numpy()
        begin, end = panels or (0, w_packed.shape[0])
        width = 16 * (end - begin)
        out = np.full((m, width + 2), np.nan, np.float32)
        if start is not None:
            out[:, :width] = start
        num_bytes = packed_codes_bytes(m, k, self.group)
        assert num_bytes == kernels.packed_codes_bytes(m, k, self.group)
        scratch = poisoned_scratch(num_bytes)
        function = getattr(kernels, f"gemm_{self.name}_g{self.group}")
        operands = (self.x_codes, self.x_scale, w_packed, w_scale)
        call(function, m, k, *operands, begin, end, out, width + 2, start is not None, scratch)
        assert np.isnan(out[:, width:]).all()
        return out[:, :width]

    def check(self, kernels: ctypes.CDLL) -> None:
        want, bound = self.expected()
        n = want.shape[1]
        got = self.run(kernels)
        assert (np.abs(got[:, :n] - want) <= bound).all(), np.abs(got[:, :n] - want).max()
        assert not got[:, n:].any()
        if want.size:
            assert bound.max() < 1e-3 * np.abs(want).max()


@pytest.mark.parametrize("name", list(CODE_LIMITS))
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("m", [*range(18), 24, 31, 32, 33, 48])
def test_gemm_s4__m_tails(kernels: ctypes.CDLL, m: int, group: int, name: str) -> None:
    Problem(m, 48, 256, group, name).check(kernels)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32, 33, 64, 100])
def test_gemm_s4__n_tails(kernels: ctypes.CDLL, n: int) -> None:
    Problem(13, n, 192, 64).check(kernels)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_gemm_s4__one_group(kernels: ctypes.CDLL, group: int) -> None:
    Problem(5, 40, group, group).check(kernels)


@pytest.mark.parametrize("k", [1152, 4608])
def test_gemm_s4__model_shape(kernels: ctypes.CDLL, k: int) -> None:
    Problem(29, 288, k, 64).check(kernels)


@pytest.mark.parametrize("name", list(CODE_LIMITS))
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("w_code", [-8, 7])
def test_gemm_s4__extreme_codes_are_exact(
    kernels: ctypes.CDLL, w_code: int, group: int, name: str
) -> None:
    for x_code in CODE_LIMITS[name]:
        problem = Problem(19, 33, 2 * group, group, name)
        problem.x_codes[:], problem.w_codes[:] = x_code, w_code
        problem.x_scale[:], problem.w_scale[:] = 1, 1
        np.testing.assert_array_equal(problem.run(kernels)[:, :33], 2 * group * x_code * w_code)


@pytest.mark.parametrize("name", list(CODE_LIMITS))
def test_gemm_s4__integers_are_exact(kernels: ctypes.CDLL, name: str) -> None:
    problem = Problem(37, 80, 512, 64, name)
    problem.x_scale[:], problem.w_scale[:] = 1, 1  # sums stay below 2^24, so floats hold them
    want = problem.x_codes.astype(np.int64) @ problem.w_codes.astype(np.int64).T
    np.testing.assert_array_equal(problem.run(kernels), want)


def test_gemm_s4__panel_ranges_give_the_same_bits(kernels: ctypes.CDLL) -> None:
    problem = Problem(21, 112, 256, 64)
    whole = problem.run(kernels)
    for begin, end in [(0, 1), (1, 4), (4, 7), (6, 7), (3, 3)]:
        np.testing.assert_array_equal(
            problem.run(kernels, (begin, end)), whole[:, 16 * begin : 16 * end]
        )


def test_gemm_s4__row_split_gives_the_same_bits(kernels: ctypes.CDLL) -> None:
    problem = Problem(27, 32, 256, 64)
    whole = problem.run(kernels)
    for begin, end in [(0, 1), (1, 6), (6, 14), (14, 27)]:
        part = Problem(27, 32, 256, 64)
        part.x_codes, part.x_scale = part.x_codes[begin:end].copy(), part.x_scale[begin:end].copy()
        np.testing.assert_array_equal(part.run(kernels), whole[begin:end])


def test_gemm_s4__accumulates(kernels: ctypes.CDLL) -> None:
    problem = Problem(14, 32, 256, 64)
    start = np.random.default_rng(SEED).normal(0, 100, (14, 32)).astype(np.float32)
    want, bound = problem.expected()
    got = problem.run(kernels, start=start)
    assert (np.abs(got - (want + start)) <= bound + EPS * 5 * np.abs(start)).all()


@pytest.mark.parametrize("k", [64, 4096, 4160, 8320])  # slices of 4096
def test_gemm_s4__onto_a_start_gives_the_bits_of_accumulate(kernels: ctypes.CDLL, k: int) -> None:
    problem = Problem(14, 80, k, 64)
    start = np.random.default_rng(SEED).normal(0, 100, (14, 80)).astype(np.float32)
    out = np.full((14, 80), np.nan, np.float32)
    w_packed = pack_s4_n16k4(torch.from_numpy(problem.w_codes)).numpy()
    w_scale = pack_bf16_scale_n16(torch.from_numpy(problem.w_scale)).view(torch.int16).numpy()
    operands = (problem.x_codes, problem.x_scale, w_packed, w_scale)
    scratch = poisoned_scratch(packed_codes_bytes(14, k, 64))
    call(kernels.gemm_onto, 14, k, *operands, 5, out, 80, start, scratch)
    np.testing.assert_array_equal(out, problem.run(kernels, start=start))
    want, bound = problem.expected()
    assert (np.abs(out - (want + start)) <= bound + EPS * (k // 64 + 3) * np.abs(start)).all()


@pytest.mark.parametrize("n", [1, 16, 35])
def test_cpu_layouts__roundtrip(n: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    w_codes = torch.randint(-8, 8, (n, 64), generator=generator, dtype=torch.int8)
    w_scale = torch.randn(n, 2, generator=generator).to(torch.bfloat16)
    packed, packed_scale = pack_s4_n16k4(w_codes), pack_bf16_scale_n16(w_scale)
    assert packed.numel() == s4_n16k4_bytes(n, 64)
    assert packed_scale.numel() * 2 == bf16_scale_n16_bytes(n, 2)
    assert torch.equal(unpack_s4_n16k4(packed, n), w_codes)
    assert torch.equal(unpack_bf16_scale_n16(packed_scale, n), w_scale)


def test_cpu_layouts__rejects_what_does_not_fit() -> None:
    with pytest.raises(UnpackableWeight, match="a multiple of 8"):
        pack_s4_n16k4(torch.zeros(16, 12, dtype=torch.int8))
    with pytest.raises(UnpackableWeight, match="codes from 0 to 8"):
        pack_s4_n16k4(torch.arange(9, dtype=torch.int8).repeat(8, 8))
    with pytest.raises(UnpackableWeight, match="more bits than bfloat16"):
        pack_bf16_scale_n16(torch.tensor([[1.001]]))
