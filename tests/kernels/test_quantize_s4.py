"""quantize_s4 gives the very bits of svdqc.compiler.quantize.reference, on every instruction set."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from tests.kernels.cpu_build import ISAS, call
from tests.kernels.linear_s4 import load_linear_s4

from svdqc.compiler.quantize.hadamard import rotate
from svdqc.compiler.quantize.ranges import ActivationFormat
from svdqc.compiler.quantize.reference import quantize_activation

SEED = 20
RANGES = {  # name in the harness: (range, bits)
    "symmetric": ("symmetric", 4),
    "signed8": ("signed8", 4),
    "unsigned": ("unsigned", 4),
    "symmetric8bit": ("symmetric", 8),
}
ROTATED = ("symmetric", "signed8")
CASES = [(name, group, False) for name in RANGES for group in (32, 64, 128)]
CASES += [(name, group, True) for name in ROTATED for group in (32, 64, 128)]


@pytest.fixture(scope="session", params=ISAS)
def kernels(request: Any) -> ctypes.CDLL:
    return load_linear_s4(request.param)


def quantize(
    kernels: ctypes.CDLL,
    case: tuple[str, int, bool],
    x: np.ndarray,
    inv_smooth: np.ndarray | None,
    shift: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """codes [rows, k], scale [rows, k/group], x_hat [rows, k] from the kernel; strides larger than k."""
    name, group, rotated = case
    rows, k = x.shape
    wide_x = np.full((rows, k + 3), np.nan, np.float32)
    wide_x[:, :k] = x
    x_hat = np.full((rows, k + 5), np.nan, np.float32)
    codes = np.full((rows, k), 99, np.int8)
    scale = np.full((rows, k // group), np.nan, np.float32)
    function = getattr(kernels, f"quantize_{name}_g{group}" + "_rotated" * rotated)
    call(function, rows, k, wide_x, k + 3, inv_smooth, shift, x_hat, k + 5, codes, scale)
    assert np.isnan(x_hat[:, k:]).all()
    return codes, scale, x_hat[:, :k]


def expected(
    case: tuple[str, int, bool], x: np.ndarray, inv_smooth: np.ndarray | None, shift: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    name, group, rotated = case
    range_name, bits = RANGES[name]
    activation = ActivationFormat(
        bits=bits, group_size=group, range=range_name, rotate=rotated, shift=shift
    )
    inverse = torch.ones(x.shape[1]) if inv_smooth is None else torch.from_numpy(inv_smooth)
    codes, scale, _ = quantize_activation(torch.from_numpy(x), inverse, None, activation)
    x_hat = (x + np.float32(shift)) * inverse.numpy()
    return codes.numpy(), scale.numpy(), x_hat


def assert_same(
    kernels: ctypes.CDLL, case: Any, x: np.ndarray, inv_smooth: Any = None, shift: float = 0.0
) -> None:
    got, want = quantize(kernels, case, x, inv_smooth, shift), expected(case, x, inv_smooth, shift)
    for part, ours, theirs in zip(("codes", "scale", "x_hat"), got, want, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=f"{part} of {case}, seed {SEED}")


def heavy_tailed(rows: int, k: int) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    return (rng.standard_t(4, (rows, k)) * rng.lognormal(0, 1, k)).astype(np.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("rows", [1, 5])
def test_quantize_s4__equals_reference(kernels: ctypes.CDLL, case: Any, rows: int) -> None:
    x = heavy_tailed(rows, 640)
    inv_smooth = np.random.default_rng(SEED).lognormal(0, 1, 640).astype(np.float32)
    if case[0] == "unsigned":
        x = np.maximum(x, -0.17)
    shift = 0.171875 if case[0] == "unsigned" else 0.0
    assert_same(kernels, case, x, inv_smooth, shift)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_quantize_s4__equals_reference_on_many_groups(kernels: ctypes.CDLL, case: Any) -> None:
    assert_same(kernels, case, heavy_tailed(64, 1152))


def test_quantize_s4__one_group(kernels: ctypes.CDLL) -> None:
    for group in (32, 64, 128):
        assert_same(kernels, ("signed8", group, False), heavy_tailed(3, group))


def test_quantize_s4__no_rows(kernels: ctypes.CDLL) -> None:
    codes, scale, x_hat = quantize(
        kernels, ("signed8", 64, True), np.zeros((0, 64), np.float32), None, 0.0
    )
    assert codes.size == scale.size == x_hat.size == 0


def test_quantize_s4__zeros(kernels: ctypes.CDLL) -> None:
    for case in CASES:
        codes, scale, _ = quantize(kernels, case, np.zeros((2, 256), np.float32), None, 0.0)
        assert not codes.any()
        assert not scale.any()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_quantize_s4__signed8_ties_take_the_first(kernels: ctypes.CDLL, group: int) -> None:
    rng = np.random.default_rng(SEED)
    rows = 40
    x = rng.uniform(-1, 1, (rows, group)).astype(np.float32)
    for row in range(rows):  # two extremes of opposite sign, in either order, anywhere
        first, second = sorted(rng.choice(group, 2, replace=False))
        x[row, first], x[row, second] = (2.0, -2.0) if row % 2 else (-2.0, 2.0)
    codes, scale, _ = quantize(kernels, ("signed8", group, False), x, None, 0.0)
    np.testing.assert_array_equal(scale[:, 0], np.where(np.arange(rows) % 2, -0.25, 0.25))
    assert codes.min() == -8
    assert codes.max() == 7
    assert_same(kernels, ("signed8", group, False), x)


def test_quantize_s4__halves_round_to_even(kernels: ctypes.CDLL) -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, :10] = [7, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 4.5, 5.5]
    codes, _, _ = quantize(kernels, ("symmetric", 64, False), x, None, 0.0)
    np.testing.assert_array_equal(codes[0, :10], [7, 0, 2, 2, 4, 0, -2, -2, 4, 6])


@pytest.mark.parametrize("magnitude", [1e-45, 1e-39, 3e-38, 1e38])
def test_quantize_s4__extreme_magnitudes(kernels: ctypes.CDLL, magnitude: float) -> None:
    x = np.clip(heavy_tailed(4, 256), -3, 3) * np.float32(magnitude)
    for case in CASES:
        if case[2] and magnitude == 1e38:
            continue  # sums of a butterfly overflow
        assert_same(kernels, case, np.abs(x) if case[0] == "unsigned" else x)


def test_quantize_s4__in_place_and_without_x_hat(kernels: ctypes.CDLL) -> None:
    x = heavy_tailed(7, 192)
    inv_smooth = np.linspace(0.5, 2, 192, dtype=np.float32)
    want_codes, want_scale, want_hat = expected(("signed8", 64, True), x, inv_smooth, 0.0)
    for x_hat in (None, x):
        codes, scale = np.empty((7, 192), np.int8), np.empty((7, 3), np.float32)
        call(
            kernels.quantize_signed8_g64_rotated,
            7,
            192,
            x,
            192,
            inv_smooth,
            0.0,
            x_hat,
            192,
            codes,
            scale,
        )
        np.testing.assert_array_equal(codes, want_codes)
        np.testing.assert_array_equal(scale, want_scale)
    np.testing.assert_array_equal(x, want_hat)


def test_quantize_s4__unsigned_clamps_any_negative(kernels: ctypes.CDLL) -> None:
    x = heavy_tailed(4, 256)
    x[:, ::7] = -1e30
    for group in (32, 64, 128):
        assert_same(kernels, ("unsigned", group, False), x)


def test_quantize_s4__bf16_x_hat(kernels: ctypes.CDLL) -> None:
    x = heavy_tailed(5, 320)
    inv_smooth = np.linspace(0.5, 2, 320, dtype=np.float32)
    want_codes, want_scale, want_hat = expected(("signed8", 64, True), x, inv_smooth, 0.0)
    codes, scale = np.empty((5, 320), np.int8), np.empty((5, 5), np.float32)
    x_hat = np.zeros((5, 322), np.uint16)
    call(kernels.quantize_to_bf16, 5, 320, x, 320, inv_smooth, 0.0, x_hat, 322, codes, scale)
    np.testing.assert_array_equal(codes, want_codes)
    np.testing.assert_array_equal(scale, want_scale)
    rounded = torch.from_numpy(want_hat).to(torch.bfloat16).view(torch.int16).numpy()
    np.testing.assert_array_equal(x_hat[:, :320].view(np.int16), rounded)


def test_rotation__is_orthonormal_and_its_own_inverse() -> None:
    x = torch.from_numpy(heavy_tailed(16, 128))
    bound = (
        2**-24 * 12 * x.abs().amax() * 8
    )  # 6 stages each way, sums of up to 64 / 8 times the largest
    assert (rotate(rotate(x)) - x).abs().max() <= bound < x.abs().max()
