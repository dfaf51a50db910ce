"""gemm_f32.h against numpy in double precision; every instruction set that this machine runs."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from tests.kernels.cpu_build import ISAS, build_harness, call

from svdqc.compiler.targets.cpu_layouts_f32 import (
    UnpackableFloatWeight,
    pack_gemm_bf16dot,
    pack_gemm_f32,
    pack_gemm_w16,
)

EPS = 2.0**-24  # of one f32 rounding, relative
POISON = 12345.0


@pytest.fixture(scope="session", params=ISAS)
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    return build_harness("gemm_f32.cpp", request.param, tmp_path_factory.mktemp(request.param))


def numpy_bits(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's memory as numpy (16-bit floats as uint16)."""
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    return tensor.contiguous().numpy()


def case(rows: int, n: int, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 1009 + n * 31 + k)
    x = torch.randn(rows, k, generator=generator)
    return x, torch.randn(n, k, generator=generator).to(dtype)


def bound(x: torch.Tensor, w: torch.Tensor) -> np.ndarray:
    """A chain of K fused multiply-adds (two roundings each without fma), and one more term for an initial value."""
    k = x.shape[1]
    return 2 * (k + 1) * EPS * (x.abs().double() @ w.abs().double().T).numpy() + 1e-30


def run_gemm(
    library: ctypes.CDLL,
    name: str,
    x: torch.Tensor,
    w: torch.Tensor,
    panels: tuple[int, int] | None = None,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """The whole-panel output [rows, panels * 16]; x sits in a larger matrix, out in a poisoned one that is checked."""
    rows, k = x.shape
    begin, end = panels or (0, -(-w.shape[0] // 16))
    columns = (end - begin) * 16
    out = np.full((rows + 1, columns + 5), POISON, np.float32)
    if start is not None:
        out[:rows, :columns] = start
    wide_x = torch.full((max(rows, 1), k + 3), torch.nan)
    wide_x[:rows, :k] = x
    if name == "gemm_bf16dot":
        ldx = k + (k & 1) + 2
        x_bits = np.full((max(rows, 1), ldx), 0x7FC0, np.uint16)
        call(library.run_round_rows_bf16, rows, k, wide_x.numpy(), k + 3, x_bits, ldx)
        packed = pack_gemm_bf16dot(w)
        x_array = x_bits
    else:
        ldx = k + 3
        x_array = wide_x.numpy()
        packed = pack_gemm_f32(w) if name == "gemm_f32" else pack_gemm_w16(w)
    call(
        getattr(library, f"run_{name}"),
        *(rows, k, x_array, ldx, numpy_bits(packed), begin, end, out, columns + 5),
        int(start is not None),
    )
    assert (out[rows:] == POISON).all()
    assert (out[:, columns:] == POISON).all()
    return out[:rows, :columns]


TYPES = {
    "gemm_f32": torch.float32,
    "gemm_wbf16": torch.bfloat16,
    "gemm_wf16": torch.float16,
    "gemm_bf16dot": torch.bfloat16,
}
SHAPES = [
    *((rows, 40, 33) for rows in (1, 2, 3, 5, 6, 7, 11, 12, 13, 24, 25, 31)),
    *((5, n, 20) for n in (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80)),
    *((7, 32, k) for k in (1, 2, 3, 4, 5, 383, 384, 385, 768, 1000)),
    *((rows, n, 17) for rows in (1, 2) for n in (16, 48, 64, 112)),
]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_gemm_f32__matches_double(
    library: ctypes.CDLL, name: str, shape: tuple[int, int, int]
) -> None:
    x, w = case(*shape, TYPES[name])
    y = run_gemm(library, name, x, w)
    x_used = x.to(torch.bfloat16).float() if name == "gemm_bf16dot" else x
    exact = (x_used.double() @ w.double().T).numpy()
    limit = bound(x_used, w)
    assert (np.abs(y[:, : shape[1]] - exact) <= limit).all()
    assert limit.max() < 0.01 * max(np.abs(exact).max(), 1.0)
    assert (y[:, shape[1] :] == 0).all()


@pytest.mark.parametrize("name", TYPES)
def test_gemm_f32__accumulates(library: ctypes.CDLL, name: str) -> None:
    x, w = case(13, 33, 50, TYPES[name])
    start = np.random.default_rng(1).standard_normal((13, 48)).astype(np.float32)
    y = run_gemm(library, name, x, w, start=start)
    x_used = x.to(torch.bfloat16).float() if name == "gemm_bf16dot" else x
    exact = (x_used.double() @ w.double().T).numpy() + start[:, :33]
    assert (
        np.abs(y[:, :33] - exact) <= bound(x_used, w) + 51 * 2 * EPS * np.abs(start[:, :33])
    ).all()
    np.testing.assert_array_equal(y[:, 33:], start[:, 33:])


@pytest.mark.parametrize("name", TYPES)
def test_gemm_f32__same_bits_for_any_split(library: ctypes.CDLL, name: str) -> None:
    x, w = case(29, 100, 450, TYPES[name])
    whole = run_gemm(library, name, x, w)
    for first, last in ((0, 1), (1, 3), (3, 15), (15, 29)):
        np.testing.assert_array_equal(run_gemm(library, name, x[first:last], w), whole[first:last])
    for begin, end in ((0, 1), (1, 3), (3, 7), (6, 7)):
        part = run_gemm(library, name, x, w, panels=(begin, end))
        np.testing.assert_array_equal(part, whole[:, begin * 16 : end * 16])


@pytest.mark.parametrize("name", TYPES)
def test_gemm_f32__k_zero_and_no_rows(library: ctypes.CDLL, name: str) -> None:
    x, w = case(3, 20, 0, TYPES[name])
    assert (run_gemm(library, name, x, w) == 0).all()
    x, w = case(0, 20, 8, TYPES[name])
    assert run_gemm(library, name, x, w).shape == (0, 32)


def test_gemm_f32__k_in_two_strided_calls(library: ctypes.CDLL) -> None:
    x, w = case(9, 50, 700, torch.float32)
    packed = pack_gemm_f32(w).numpy()
    out = np.full((9, 64), POISON, np.float32)
    for first, last, add in ((0, 123, 0), (123, 700, 1)):
        call(
            library.run_gemm_f32_strided,
            *(
                9,
                last - first,
                x.numpy().reshape(-1)[first:],
                700,
                packed.reshape(-1)[first * 16 :],
            ),
            *(700 * 16, 0, 4, out, 64, add),
        )
    np.testing.assert_array_equal(out, run_gemm(library, "gemm_f32", x, w))


@pytest.mark.parametrize(("k", "n"), [(1, 1), (15, 17), (16, 16), (17, 15), (33, 48), (64, 31)])
@pytest.mark.parametrize("layout", ["rows", "columns", "scattered"])
def test_pack_b(library: ctypes.CDLL, k: int, n: int, layout: str) -> None:
    b = np.random.default_rng(k * 100 + n).standard_normal((k, n)).astype(np.float32)
    if layout == "rows":
        memory, stride_k, stride_n = b.copy(), n, 1
    elif layout == "columns":
        memory, stride_k, stride_n = b.T.copy(), 1, k
    else:
        memory = np.full((k, 3, n, 2), np.nan, np.float32)
        memory[:, 0, :, 0] = b
        stride_k, stride_n = 6 * n, 2
    out = np.full((-(-n // 16)) * k * 16 + 1, POISON, np.float32)
    call(library.run_pack_b, k, n, memory, stride_k, stride_n, out)
    expected = pack_gemm_f32(torch.from_numpy(b.T.copy())).numpy().reshape(-1)
    np.testing.assert_array_equal(out[:-1], expected)
    assert out[-1] == POISON


@pytest.mark.parametrize("k", [1, 15, 16, 17, 32])
def test_round_rows_bf16(library: ctypes.CDLL, k: int) -> None:
    x = torch.randn(3, k, generator=torch.Generator().manual_seed(k))
    ldo = k + (k & 1)
    out = np.full((3, ldo), 0xFFFF, np.uint16)
    call(library.run_round_rows_bf16, 3, k, x.numpy(), k, out, ldo)
    np.testing.assert_array_equal(out[:, :k], numpy_bits(x.to(torch.bfloat16)))
    assert (out[:, k:] == 0).all()


@pytest.mark.parametrize(
    "pack",
    [
        lambda: pack_gemm_w16(torch.zeros(4, 4)),
        lambda: pack_gemm_f32(torch.zeros(4)),
        lambda: pack_gemm_f32(torch.zeros(4, 4, dtype=torch.int8)),
    ],
)
def test_pack_gemm__rejects(pack: object) -> None:
    assert callable(pack)
    with pytest.raises(UnpackableFloatWeight):
        pack()
