"""Kernels of the formats beside int4: codes and scales equal the reference bit for bit, integer sums are exact, float
sums keep the bounds that the headers state. Outputs start as NaN."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.kernels.cpu_build import ISAS, build_harness, call, poisoned_scratch
from torch import Tensor

from svdqc.compiler.quantize.formats import (
    E2M1_RANGES,
    NF4_VALUES,
    e4m3_from_bits,
    nvfp4_tensor_scale,
)
from svdqc.compiler.quantize.ranges import ActivationFormat
from svdqc.compiler.quantize.reference import quantize_activation
from svdqc.compiler.targets.layouts import pack

SEED = 7
EPS = 2.0**-24
TOKENS = [0, 1, 2, 3, 5, 8, 11, 12, 13, 25]
COLUMNS = [1, 15, 16, 17, 33, 80]
E2M1 = [s * v for v in (0, 1, 2, 3, 4, 6, 8, 12) for s in (1, -1)]


@pytest.fixture(scope="session", params=[isa for isa in ISAS if isa != "avx512_bf16"])
def kernels(request: Any, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build_harness("formats.cpp", request.param, tmp_path_factory.mktemp("formats"))


# ---- activations


def quantized(
    kernels: ctypes.CDLL, x: Tensor, inv_smooth: Tensor, form: ActivationFormat
) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, scales, x_hat) of the kernel, from rows that lie apart."""
    rows, k = x.shape
    name = {"int": "quantize_s8", "e4m3": "quantize_e4m3", "e2m1": "quantize_e2m1"}[form.encoding]
    ld = k + 16
    held = torch.full((rows, ld), float("nan"))
    held[:, :k] = x
    x_hat = torch.full((rows, ld), float("nan"))
    codes = torch.full((rows, k), 99, dtype=torch.int8)
    scale = torch.full((rows, k // form.group_size), float("nan"))
    extra: tuple[Any, ...] = ()
    if form.encoding == "e2m1":
        largest = torch.tensor(E2M1_RANGES[form.range])
        extra = (largest, len(largest), form.tensor_scale)
    function = getattr(kernels, name + ("_rotated" if form.rotate else ""))
    call(function, rows, k, held, ld, inv_smooth, form.shift, x_hat, ld, codes, scale, *extra)
    assert x_hat[:, k:].isnan().all()
    return codes, scale, x_hat[:, :k]


def forms(k: int, absmax: float) -> list[ActivationFormat]:
    scale = nvfp4_tensor_scale(absmax)
    plain = [
        ActivationFormat(8, k, "symmetric"),
        ActivationFormat(8, k, "absmax", encoding="e4m3"),
        ActivationFormat(8, k, "symmetric", shift=0.171875),
        *(ActivationFormat(4, 16, r, encoding="e2m1", tensor_scale=scale) for r in E2M1_RANGES),
    ]
    if k % 64:
        return plain
    rotated = [
        ActivationFormat(f.bits, f.group_size, f.range, True, f.shift, f.encoding, f.tensor_scale)
        for f in plain
    ]
    return plain + rotated


def numbers(codes: Tensor, form: ActivationFormat) -> Tensor:
    """What codes stand for; the two zeros of E4M3 are one."""
    return e4m3_from_bits(codes.view(torch.uint8)) if form.encoding == "e4m3" else codes


def check_quantized(kernels: ctypes.CDLL, x: Tensor, form: ActivationFormat) -> None:
    inv_smooth = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(1)) + 0.5
    codes, scale, x_hat = quantized(kernels, x, inv_smooth, form)
    want_codes, want_scale, _ = quantize_activation(x, inv_smooth, None, form)
    assert torch.equal(scale, want_scale), form
    assert torch.equal(numbers(codes, form), numbers(want_codes.view(torch.int8), form)), form
    assert torch.equal(x_hat, (x + form.shift) * inv_smooth), form


@pytest.mark.parametrize("k", [16, 48, 64, 256, 272, 576])
def test_quantize__equals_reference(kernels: ctypes.CDLL, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    for rows in (0, 1, 3, 7):
        x = torch.randn(rows, k, generator=generator) * torch.randn(k, generator=generator).exp()
        for form in forms(k, 50.0):
            check_quantized(kernels, x, form)


@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 1e-6, 1e4])
def test_quantize__magnitudes(kernels: ctypes.CDLL, magnitude: float) -> None:
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(2)) * magnitude
    for form in forms(128, max(magnitude, 1e-30) * 5):
        check_quantized(kernels, x, form)


def test_quantize__ties_and_every_e4m3_number(kernels: ctypes.CDLL) -> None:
    """Halfway points of each format under scale 1: the row's extreme sets the scale."""
    rising = e4m3_from_bits(torch.arange(126, dtype=torch.uint8))  # from 0 to 416, the last but one
    halves = (rising[1:] + rising[:-1]) / 2
    row = torch.cat([rising, -rising, halves, -halves, torch.tensor([448.0])])
    row = torch.cat([row, torch.zeros(-len(row) % 16)])[None]
    ones = torch.ones(row.shape[1])
    form = ActivationFormat(8, row.shape[1], "absmax", encoding="e4m3")
    codes, scale, _ = quantized(kernels, row, ones, form)
    assert scale.item() == 1.0
    assert torch.equal(numbers(codes, form), row.to(torch.float8_e4m3fn).to(torch.float32))
    integers = torch.arange(-127, 127) + 0.5
    row = torch.cat([torch.tensor([127.0]), integers, torch.zeros(1)])[None]
    codes, scale, _ = quantized(
        kernels, row, torch.ones(256), ActivationFormat(8, 256, "symmetric")
    )
    assert scale.item() == 1.0
    assert torch.equal(codes.to(torch.float32), row.round())


# ---- products


class Product:
    """One product of coded operands: what the kernel is given, what it should give, and within what bound."""

    def __init__(self, precision: str, m: int, n: int, k: int, group: int = 64) -> None:
        rng = np.random.default_rng([SEED, m, n, k, group])
        self.precision, self.group = (
            precision,
            {"nvfp4": 16, "int8": k, "fp8": k, "w4a8": k}.get(precision, group),
        )
        self.m, self.n, self.k = m, n, k
        groups = k // self.group

        def some_of(values: Any, shape: tuple[int, int]) -> Tensor:
            return torch.from_numpy(rng.choice(np.array(values), shape))

        scale = torch.from_numpy(rng.normal(0, 1, (n, groups)).astype(np.float32))
        self.w_scale = scale.to(torch.bfloat16)
        self.x_scale = torch.from_numpy(
            rng.normal(0, 1, (m, groups if precision == "nvfp4" else 1)).astype(np.float32)
        )
        self.unit = 1.0
        integers = range(-127, 128)
        if precision == "nvfp4":
            self.x, self.w = (some_of(E2M1, s).to(torch.int8) for s in ((m, k), (n, k)))
            self.w_scale, self.unit = some_of(range(127), (n, groups)).to(torch.uint8), 2.0**-9
        elif precision == "fp8":
            finite = [b for b in range(256) if b & 127 != 127]
            self.x, self.w = (some_of(finite, s).to(torch.uint8) for s in ((m, k), (n, k)))
        elif precision == "int8":
            self.x, self.w = (some_of(integers, s).to(torch.int8) for s in ((m, k), (n, k)))
        elif precision == "w4a8":
            self.x = some_of(integers, (m, k)).to(torch.int8)
            self.w = some_of(range(-8, 8), (n, k)).to(torch.int8)
            self.multiplier = some_of(range(-15, 16), (n, k // group)).to(torch.int8)
        else:
            self.x = torch.from_numpy(rng.normal(0, 1, (m, k)).astype(np.float32))
            low = 0 if precision == "nf4" else -8
            self.w = some_of(range(low, low + 16), (n, k)).to(torch.int8)

    @property
    def values(self) -> tuple[Tensor, Tensor]:
        """What the codes of x and w are worth, f64 [m, k] and [n, k]."""
        if self.precision == "fp8":
            return e4m3_from_bits(self.x).double(), e4m3_from_bits(self.w).double()
        if self.precision == "nf4":
            return self.x.double(), torch.tensor(NF4_VALUES).double()[self.w.long()]
        if self.precision == "w4a8":
            of_code = self.multiplier.repeat_interleave(self.k // self.multiplier.shape[1], 1)
            return self.x.double(), (self.w * of_code).double()
        return self.x.double(), self.w.double()

    def expected(self) -> tuple[Tensor, Tensor]:
        """The product [m, n] in f64, and the bound of its f32 error."""
        groups = self.k // self.group
        x, w = (v.reshape(-1, groups, self.group) for v in self.values)
        w_scale = e4m3_from_bits(self.w_scale) if self.precision == "nvfp4" else self.w_scale
        scale = w_scale.double()[None] * self.unit
        if self.precision not in ("w4a16", "nf4"):
            scale = scale * self.x_scale.double()[:, None]
        terms = torch.einsum("mgk,ngk->mng", x, w) * scale
        sizes = torch.einsum("mgk,ngk->mng", x.abs(), w.abs()) * scale.abs()
        # Coded integers: a rounding per group and step of its scaling. Floats: one per step of k as well.
        exact = self.precision in ("int8", "w4a8", "nvfp4")
        steps = groups + 3 + (0 if exact else self.group)
        return terms.sum(-1), EPS * steps * (terms.abs() if exact else sizes).sum(-1)

    def run(
        self,
        kernels: ctypes.CDLL,
        panels: tuple[int, int] | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """The kernel's [m, 16 * panels]; `start` is what it accumulates to."""
        codes = {"nvfp4": "e2m1_n16k4", "int8": "s8_n16k4", "fp8": "e4m3_n16", "nf4": "nf4_n16k4"}
        w = pack(codes.get(self.precision, "s4_n16k4"), self.w)
        scales = "e4m3_scale_n16" if self.precision == "nvfp4" else "bf16_scale_n16"
        w_scale = pack(scales, self.w_scale)
        begin, end = panels or (0, w.shape[0])
        width = 16 * (end - begin)
        out = torch.full((self.m, width + 2), float("nan"))
        if start is not None:
            out[:, :width] = start
        place = (begin, end, out, width + 2, start is not None)
        if self.precision in ("w4a16", "nf4"):
            held = torch.full((self.m, self.k + 3), float("nan"))
            held[:, : self.k] = self.x
            name = "gemm_s4_values" if self.precision == "w4a16" else "gemm_nf4_values"
            operands = (self.m, self.k, self.group, held, self.k + 3, w, w_scale)
            call(getattr(kernels, name), *operands, *place)
        else:
            name = "gemm_" + self.precision
            scratch = poisoned_scratch(max(self.m, 1) * (4 * self.k + 8 * (self.k // 16)))
            extra: tuple[Any, ...] = (self.unit,) if self.precision == "nvfp4" else ()
            if self.precision == "w4a8":
                extra = (pack("multiplier_n16", self.multiplier),)
            operands = (self.m, self.k, self.x, self.x_scale, w, w_scale)
            call(getattr(kernels, name), *operands, *place, scratch, *extra)
        assert out[:, width:].isnan().all()
        return out[:, :width]

    def check(self, kernels: ctypes.CDLL) -> None:
        want, bound = self.expected()
        got = self.run(kernels)
        assert bool((got[:, : self.n] - want).abs().le(bound).all()), (
            (got[:, : self.n] - want).abs().max()
        )
        assert not got[:, self.n :].any()
        if want.numel() > 100:
            assert bound.max() < 1e-2 * want.abs().max()


PRECISIONS = ["int8", "w4a8", "nvfp4", "fp8", "w4a16", "nf4"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gemm__token_tails(kernels: ctypes.CDLL, precision: str) -> None:
    for m in TOKENS:
        Product(precision, m, 48, 192).check(kernels)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gemm__column_tails(kernels: ctypes.CDLL, precision: str) -> None:
    for n in COLUMNS:
        Product(precision, 2 + n % 5, n, 128).check(kernels)


@pytest.mark.parametrize("group", [32, 128])
def test_gemm__groups(kernels: ctypes.CDLL, group: int) -> None:
    """Of codes against codes: test_gemm_s4.py."""
    Product("w4a16", 7, 40, 256, group).check(kernels)


@pytest.mark.parametrize("precision", ["int8", "fp8", "nvfp4"])
def test_gemm__k_of_one_group(kernels: ctypes.CDLL, precision: str) -> None:
    Product(precision, 5, 20, 16).check(kernels)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gemm__model_shape(kernels: ctypes.CDLL, precision: str) -> None:
    Product(precision, 13, 80, 4608).check(kernels)


@pytest.mark.parametrize("precision", ["int8", "w4a8", "nvfp4"])
def test_gemm__integers_are_exact(kernels: ctypes.CDLL, precision: str) -> None:
    """The largest codes of each sign, and random ones; scales are 1, sums stay below 2^24."""
    top_x, top_w = {"int8": (127, 127), "w4a8": (127, -8), "nvfp4": (12, 12)}[precision]
    for fill in (None, (top_x, top_w), (-top_x, top_w)):
        product = Product(precision, 9, 33, 512)
        product.x_scale[:] = 1
        if precision == "nvfp4":
            product.w_scale[:], product.unit = 0x38, 1.0  # E4M3's 1
        else:
            product.w_scale[:] = 1
        if fill is not None:
            product.x[:], product.w[:] = fill
            if precision == "w4a8":
                product.multiplier[:] = 15
        x, w = product.values
        want = x.long() @ w.long().T
        assert torch.equal(product.run(kernels)[:, :33], want.to(torch.float32))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gemm__split_gives_the_same_bits(kernels: ctypes.CDLL, precision: str) -> None:
    product = Product(precision, 14, 112, 256)
    whole = product.run(kernels)
    for begin, end in [(0, 1), (1, 4), (4, 7), (3, 3)]:
        part = product.run(kernels, (begin, end))
        assert torch.equal(part, whole[:, 16 * begin : 16 * end])
    for begin, end in [(0, 1), (1, 3), (3, 14)]:
        rows = Product(precision, 14, 112, 256)
        rows.m, rows.x = end - begin, rows.x[begin:end].contiguous()
        rows.x_scale = rows.x_scale[begin:end].contiguous()
        assert torch.equal(rows.run(kernels), whole[begin:end])


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "fp8"])
def test_gemm__accumulates(kernels: ctypes.CDLL, precision: str) -> None:
    product = Product(precision, 7, 32, 256)
    start = torch.randn(7, 32, generator=torch.Generator().manual_seed(SEED)) * 100
    want, bound = product.expected()
    got = product.run(kernels, start=start)
    steps = product.k // product.group + 2
    assert bool((got - (want + start)).abs().le(bound + EPS * steps * start.abs()).all())


def test_packed_codes_s8_bytes__hold_what_is_packed(kernels: ctypes.CDLL) -> None:
    kernels.packed_codes_s8_bytes.restype = ctypes.c_int64
    assert kernels.packed_codes_s8_bytes(ctypes.c_int64(5), ctypes.c_int64(64)) == 5 * 136


@pytest.mark.parametrize("bits", range(2))
def test_every_e4m3_weight(kernels: ctypes.CDLL, bits: int, tmp_path: Path) -> None:
    """One row of ones times each E4M3 number, signs apart."""
    product = Product("fp8", 1, 127, 16)
    product.x[:], product.x_scale[:], product.w_scale[:] = 0x38, 1, 1
    product.w[:] = 0
    product.w[:, 3] = torch.arange(127, dtype=torch.uint8) + 128 * bits
    want = e4m3_from_bits(product.w[:, 3])[None]
    assert torch.equal(product.run(kernels)[:, :127], want)
