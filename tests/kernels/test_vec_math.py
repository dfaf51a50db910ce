"""vec_math.h: largest error in ulp against double precision, special values, and loops that really are vector code."""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.kernels.cpu_build import ISAS, build_library, call

Array = np.ndarray
INF, NAN = float("inf"), float("nan")


def wide(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Array], Array]:
    """A torch function on float64 numpy arrays."""
    return lambda x: function(torch.from_numpy(x)).numpy()


def linear(lo: float, hi: float, num: int = 400_001) -> Array:
    return np.linspace(lo, hi, num).astype(np.float32)


def every_exponent(lo: int = -149, hi: int = 127, per: int = 800) -> Array:
    """Positive floats over a range of binary exponents, subnormals included."""
    rng = np.random.default_rng(7)
    mantissa = 1.0 + rng.random((hi - lo + 1, per))
    with np.errstate(over="ignore", under="ignore"):
        x = (mantissa * 2.0 ** np.arange(lo, hi + 1)[:, None]).astype(np.float32)
    return np.unique(x[np.isfinite(x) & (x > 0)])


def both_signs(x: Array) -> Array:
    return np.concatenate([x, -x])


gelu_exact = wide(lambda x: x * 0.5 * torch.special.erfc(-x / math.sqrt(2.0)))
gelu_tanh_exact = wide(lambda x: x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)))
small = both_signs(every_exponent(-40, 3))

# name: (exact function on float64, samples, largest error in ulp of the result)
CASES: dict[str, tuple[Callable[[Array], Array], Array, float]] = {
    "exp": (np.exp, np.concatenate([linear(-104, 88.7), small]), 1.5),
    "exp2": (np.exp2, np.concatenate([linear(-150, 127.9), small]), 1.5),
    "expm1": (np.expm1, np.concatenate([linear(-30, 88.7), small]), 2.0),
    "log": (np.log, np.concatenate([every_exponent(), linear(0.5, 2)]), 1.5),
    "log2": (np.log2, np.concatenate([every_exponent(), linear(0.5, 2)]), 2.0),
    "log10": (np.log10, np.concatenate([every_exponent(), linear(0.5, 2)]), 3.0),
    "log1p": (np.log1p, np.concatenate([every_exponent(), linear(-0.99999, 4), -small[small > 0] / 16]), 2.0),
    "tanh": (np.tanh, np.concatenate([linear(-11, 11), small]), 3.0),
    "erf": (wide(torch.special.erf), np.concatenate([linear(-6, 6), small]), 2.0),
    "sin": (np.sin, np.concatenate([linear(-1e4, 1e4), both_signs(every_exponent(-40, 40))]), 2.0),
    "cos": (np.cos, np.concatenate([linear(-1e4, 1e4), both_signs(every_exponent(-40, 40))]), 2.0),
    "atan": (np.arctan, np.concatenate([linear(-20, 20), both_signs(every_exponent(-40, 127))]), 3.0),
    "sigmoid": (wide(torch.sigmoid), linear(-104, 30), 3.0),
    "silu": (lambda x: x / (1 + np.exp(-x)), np.concatenate([linear(-88, 30), small]), 4.0),
    "gelu_erf": (gelu_exact, np.concatenate([linear(-1, 20), small[np.abs(small) < 1]]), 5.0),
    "gelu_tanh": (gelu_tanh_exact, np.concatenate([linear(-1, 20), small[np.abs(small) < 1]]), 5.0),
    "softplus": (lambda x: np.logaddexp(0, x), linear(-80, 80), 3.0),
    "mish": (lambda x: x * np.tanh(np.logaddexp(0, x)), linear(-80, 80), 6.0),
    "rsqrt": (lambda x: 1 / np.sqrt(x), every_exponent(), 1.5),
    "sqrt": (np.sqrt, every_exponent(), 0.5),
    "reciprocal": (np.reciprocal, every_exponent(-125, 125), 0.5),
}  # fmt: skip


def ulp_of(exact: Array) -> Array:
    """The distance between floats at each value of `exact` (float64)."""
    _, exponent = np.frexp(exact)
    ulp: Array = np.ldexp(1.0, np.maximum(exponent - 24, -149))
    return ulp


@pytest.fixture(scope="session", params=ISAS)
def library_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library("vec_math.cpp", request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def library(library_path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(library_path))


def evaluate(library: ctypes.CDLL, name: str, *arguments: Array | list[float]) -> Array:
    inputs = [np.ascontiguousarray(a, dtype=np.float32) for a in arguments]
    y = np.full_like(inputs[0], 123.0)
    call(getattr(library, f"run_{name}"), *inputs, y, y.size)
    return y


@pytest.mark.parametrize("name", CASES)
def test_vec_math__ulp(library: ctypes.CDLL, name: str) -> None:
    exact_function, x, bound = CASES[name]
    y = evaluate(library, name, x).astype(np.float64)
    with np.errstate(all="ignore"):
        exact = exact_function(x.astype(np.float64))
    error = np.abs(y - exact) / ulp_of(exact)
    worst = int(np.argmax(error))
    assert error[worst] <= bound, f"{name}({x[worst]!r}) = {y[worst]!r}, {error[worst]:.2f} ulp"
    assert x.size > 10_000


@pytest.mark.parametrize("name", ["gelu_erf", "gelu_tanh"])
def test_vec_math__gelu_negative_tail(library: ctypes.CDLL, name: str) -> None:
    # The result is about e^-t with t rounded in f32 (t = x^2 / 2, or 2 y of the tanh form): an error of 2^-24 t in the
    # exponent is up to t ulp of the result per rounding. In absolute terms all of it stays below 1 ulp of 1.
    x = linear(-12, -1)
    exact = (gelu_exact if name == "gelu_erf" else gelu_tanh_exact)(x.astype(np.float64))
    y = evaluate(library, name, x)
    normal = np.abs(exact) > 2.0**-126
    magnitude = np.abs(x.astype(np.float64))
    exponent = magnitude**2 / 2 if name == "gelu_erf" else 1.6 * (magnitude + 0.0447 * magnitude**3)
    error = (np.abs(y - exact) / ulp_of(exact))[normal]
    assert (error <= (4 + 3 * exponent)[normal]).all()
    assert np.abs(y - exact).max() < 2.0**-23


SPECIAL: list[tuple[str, list[float], list[float]]] = [
    ("exp", [INF, -INF, 89.0, 1e30, -1e30, 0.0, -105.0], [INF, 0, INF, INF, 0, 1, 0]),
    ("exp2", [INF, -INF, 128.0, 127.0, -149.0, -151.0], [INF, 0, INF, 2.0**127, 2.0**-149, 0]),
    ("expm1", [INF, -INF, 1e30, -1e30, 0.0, -0.0], [INF, -1, INF, -1, 0, -0.0]),
    ("log", [0.0, -0.0, -1.0, INF, 1.0, -INF], [-INF, -INF, NAN, INF, 0, NAN]),
    ("log2", [0.0, -1.0, INF, 1.0, 8.0, 2.0**-149], [-INF, NAN, INF, 0, 3, -149]),
    ("log1p", [-1.0, -2.0, INF, 0.0, -0.0], [-INF, NAN, INF, 0, -0.0]),
    ("tanh", [INF, -INF, 0.0, -0.0, 1e30], [1, -1, 0, -0.0, 1]),
    ("erf", [INF, -INF, 0.0, -0.0, -1e30], [1, -1, 0, -0.0, -1]),
    ("sigmoid", [INF, -INF, 0.0], [1, 0, 0.5]),
    ("gelu_erf", [INF, 1e30, -1e30, 0.0], [INF, 1e30, 0, 0]),
    ("gelu_tanh", [INF, 1e30, -1e30, 0.0], [INF, 1e30, 0, 0]),
    ("softplus", [INF, -INF, 0.0], [INF, 0, math.log(2.0)]),
    ("sin", [INF, -INF, 0.0, -0.0], [NAN, NAN, 0, -0.0]),
    ("cos", [INF, -INF, 0.0], [NAN, NAN, 1]),
    ("atan", [INF, -INF, -0.0], [math.pi / 2, -math.pi / 2, -0.0]),
    ("rsqrt", [0.0, INF, -1.0], [INF, 0, NAN]),
    ("floor", [2.5, -2.5, 1e30, -0.0], [2, -3, 1e30, -0.0]),
    ("ceil", [2.5, -2.5], [3, -2]),
    ("trunc", [2.7, -2.7], [2, -2]),
    ("round_even", [0.5, 1.5, 2.5, -0.5, -1.5, 8388609.0], [0, 2, 2, -0.0, -2, 8388609.0]),
    ("sign", [3.0, -2.0, 0.0], [1, -1, 0]),
    ("relu", [3.0, -2.0, INF, -INF], [3, 0, INF, 0]),
]


@pytest.mark.parametrize(("name", "x", "expected"), SPECIAL, ids=[row[0] for row in SPECIAL])
def test_vec_math__special_values(
    library: ctypes.CDLL, name: str, x: list[float], expected: list[float]
) -> None:
    # Repeated, so that both the vector body and the scalar tail of the loop see each value; NaN in gives NaN out.
    samples = np.repeat(np.array([*x, NAN], np.float32), 37)
    wanted = np.repeat(np.array([*expected, NAN], np.float32), 37)
    y = evaluate(library, name, samples)
    np.testing.assert_array_equal(y, wanted)
    if name in ("expm1", "log1p", "tanh", "erf", "sin", "atan", "floor"):  # odd near 0: -0 stays -0
        zeros = wanted == 0
        np.testing.assert_array_equal(np.signbit(y[zeros]), np.signbit(wanted[zeros]))


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_vec_math__huge_angles(library: ctypes.CDLL, name: str) -> None:
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(3)
    x = both_signs(every_exponent(20, 127, per=8))
    x = rng.permutation(x)[:600]
    with mpmath.workprec(400):
        exact = np.array([float(getattr(mpmath, name)(mpmath.mpf(float(v)))) for v in x])
    error = np.abs(evaluate(library, name, x) - exact) / ulp_of(exact)
    assert error.max() <= 2.0


def test_vec_math__pow(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(5)
    x = np.exp2(rng.uniform(-126, 127, 200_000)).astype(np.float32)
    y = (rng.uniform(-140, 127, x.size) / np.log2(x)).astype(np.float32)
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.float64), y.astype(np.float64))
    inside = (exact > 2.0**-148) & (exact < 2.0**127.9)
    error = (np.abs(evaluate(library, "pow", x, y) - exact) / ulp_of(exact))[inside]
    assert error.size > 100_000
    assert error.max() <= 1.0


def test_vec_math__pow_special_values(library: ctypes.CDLL) -> None:
    values = np.array(
        [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, 1e-40, 1e30, INF, -INF, NAN, 2**24 + 2],
        np.float32,
    )  # fmt: skip
    x, y = (grid.ravel() for grid in np.meshgrid(values, values))
    expected = torch.pow(torch.from_numpy(x.copy()), torch.from_numpy(y.copy())).numpy()
    np.testing.assert_allclose(evaluate(library, "pow", x, y), expected, rtol=2e-7, atol=1.5e-45)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("min", torch.minimum),
        ("max", torch.maximum),
        ("fmod", torch.fmod),
        ("remainder", torch.remainder),
        ("atan2", torch.atan2),
    ],
)
def test_vec_math__binary_like_torch(
    library: ctypes.CDLL, name: str, reference: Callable[..., torch.Tensor]
) -> None:
    values = np.array([0.0, 1.0, -1.0, 2.5, -2.5, 7.25, -7.25, 1e30, INF, -INF, NAN], np.float32)
    x, y = (grid.ravel() for grid in np.meshgrid(values, values))
    expected = reference(torch.from_numpy(x.copy()), torch.from_numpy(y.copy())).numpy()
    if name == "remainder":  # torch leaves inf modulo signs to the C library; keep to finite pairs
        keep = np.isfinite(x) & np.isfinite(y)
        x, y, expected = x[keep], y[keep], expected[keep]
    np.testing.assert_allclose(evaluate(library, name, x, y), expected, rtol=3e-7)


def test_vec_math__clamp_keeps_nan(library: ctypes.CDLL) -> None:
    x = [NAN, -5.0, 5.0, 0.25]
    y = evaluate(library, "clamp", x, [-1.0] * 4, [1.0] * 4)
    np.testing.assert_array_equal(y, np.array([NAN, -1.0, 1.0, 0.25], np.float32))


def test_vec_math__elu(library: ctypes.CDLL) -> None:
    x = linear(-20, 20, 1001)
    y = evaluate(library, "elu", x, np.full_like(x, 1.5))
    exact = np.where(x > 0, x, 1.5 * np.expm1(x.astype(np.float64)))
    np.testing.assert_allclose(y, exact, rtol=3 * 2.0**-23)


VECTORISED = ["exp", "exp2", "expm1", "log", "log1p", "tanh", "erf", "sin", "cos", "atan", "pow",
              "sigmoid", "silu", "gelu_erf", "gelu_tanh", "softplus", "rsqrt", "min", "max"]  # fmt: skip


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
@pytest.mark.parametrize("name", VECTORISED)
def test_vec_math__loop_is_vector_code(library_path: Path, name: str) -> None:
    isa = library_path.stem.removeprefix("vec_math_")
    if isa == "portable":
        pytest.skip(
            "the portable build has no fma and no vector rounding: only the plain functions vectorise"
        )
    done = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", f"--disassemble=run_{name}", str(library_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    register = "zmm" if isa.startswith("avx512") else "ymm"
    packed = re.findall(rf"\bv\w+p[sd]\s[^\n]*%{register}\d+", done.stdout)
    assert len(packed) >= (1 if name in ("min", "max") else 2), done.stdout[:2000]
    assert "call" not in done.stdout
