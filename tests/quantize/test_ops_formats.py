"""The ops of the formats beside int4 against formulas written out here, in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from svdqc.compiler.quantize.formats import (
    NF4_VALUES,
    e4m3_from_bits,
    e4m3_parts,
    nvfp4_scales,
    nvfp4_tensor_scale,
)
from svdqc.compiler.quantize.ops_formats import linear_coded, linear_w, quantize
from svdqc.compiler.quantize.schemes import SCHEMES, num_bytes

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def e4m3_value(bits: int) -> Fraction:
    """By the definition of the format (OCP 8-bit floating point, table 1)."""
    sign, exponent, mantissa = -1 if bits & 128 else 1, bits >> 3 & 15, bits & 7
    if exponent == 0:
        return Fraction(sign * mantissa, 8) * Fraction(2) ** -6
    return sign * (1 + Fraction(mantissa, 8)) * Fraction(2) ** (exponent - 7)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_e4m3__every_number() -> None:
    finite = [b for b in range(256) if b & 127 != 127]
    values = e4m3_from_bits(torch.tensor(finite, dtype=torch.uint8))
    assert [Fraction(v) for v in values.tolist()] == [e4m3_value(b) for b in finite]


def test_e4m3_parts__give_back_the_scales() -> None:
    for size in (1e-8, 1.0, 3e4):
        grouped = random(4, 6, 16) * size
        scale = nvfp4_scales(grouped, nvfp4_tensor_scale(float(grouped.abs().max()) * 4))
        bits, unit = e4m3_parts(scale.to(torch.bfloat16))
        assert torch.equal(e4m3_from_bits(bits) * unit, scale)
    bits, unit = e4m3_parts(torch.zeros(2, 3))
    assert (int(bits.max()), unit) == (0, 1.0)


def test_quantize_s8__rounds_to_the_nearest_of_255_steps() -> None:
    x, smooth = random(5, 32), random(32).abs() + 0.5
    down = random(3, 32)
    codes, scale, low = quantize(x, smooth, down, 32, "symmetric", False, 0.0, "int", 1.0)
    x_hat = (x * smooth).double()
    assert codes.dtype == torch.int8
    assert torch.allclose(scale.double(), x_hat.abs().amax(1, keepdim=True) / 127, rtol=1e-6)
    assert bool(((codes * scale.double() - x_hat).abs() <= 0.5001 * scale).all())
    assert torch.allclose(low.double(), x_hat @ down.double().T, atol=1e-5)


def test_quantize_e4m3__gives_the_nearest_number() -> None:
    x = random(4, 64).exp()
    codes, scale, _ = quantize(
        x, torch.ones(64), torch.zeros(0, 64), 64, "absmax", False, 0.0, "e4m3", 1.0
    )
    assert codes.dtype == torch.uint8
    numbers = torch.tensor([float(e4m3_value(b)) for b in range(127)], dtype=torch.float64)
    ratio = x.double() / scale.double()
    least = (ratio.unsqueeze(-1) - numbers).abs().amin(-1)
    miss = (e4m3_from_bits(codes).double() - ratio).abs()
    assert bool((miss <= least + 1e-5 * ratio).all())


def test_quantize_e2m1__gives_the_nearest_value_and_the_best_scale() -> None:
    x = random(6, 64)
    unit = nvfp4_tensor_scale(8.0)
    arguments = (x, torch.ones(64), torch.zeros(0, 64), 16)
    losses = []
    for name in ("six", "four_over_six", "best_of_three"):
        codes, scale, _ = quantize(*arguments, name, False, 0.0, "e2m1", unit)
        values = codes.double() * scale.double().repeat_interleave(16, 1)
        steps = torch.tensor([s * 2 * v for v in E2M1_VALUES for s in (1.0, -1.0)]).double()
        ratio = x.double() / scale.double().repeat_interleave(16, 1)
        least = (ratio.unsqueeze(-1) - steps).abs().amin(-1)
        assert bool(((codes - ratio).abs() <= least + 1e-5).all())
        losses.append((values - x).square().reshape(6, 4, 16).sum(-1))
    assert bool((losses[1] <= losses[0] * 1.00001).all())
    assert bool((losses[2] <= losses[1] * 1.00001).all())
    assert float(losses[2].sum()) < 0.95 * float(losses[0].sum())


@pytest.mark.parametrize("precision", ["int8", "w4a8", "w4a8 1", "nvfp4", "fp8"])
def test_linear_coded__against_fractions(precision: str) -> None:
    """Every sum written out; the op may round once per group and at the end. Of w4a8 also as quantization 1 had it,
    a scale per group."""
    m, n, k, rank = 2, 3, 32, 2
    precision, _, form = precision.partition(" ")
    groups = {"int8": 1, "fp8": 1, "w4a8": 1, "nvfp4": 2}[precision] if not form else 2
    generator = torch.Generator().manual_seed(3)

    def some(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    unit, x_groups = 1.0, groups if precision == "nvfp4" else 1
    if precision == "fp8":
        x, w = some(0, 127, m, k).to(torch.uint8), (some(0, 127, n, k) + 128).to(torch.uint8)
        worth = lambda c: e4m3_value(int(c))  # noqa: E731
    else:
        top = {"int8": 127, "w4a8": 127, "nvfp4": 12}[precision]
        x = some(-top, top + 1, m, k).to(torch.int8)
        w = some(-8, 8, n, k).to(torch.int8)
        worth = lambda c: Fraction(int(c))  # noqa: E731
    x_scale, up, low = random(m, x_groups), random(n, rank).to(torch.bfloat16), random(m, rank)
    if precision == "nvfp4":
        w_scale, unit = some(0, 127, n, groups).to(torch.uint8), 2.0**-5
        scale_of = [[e4m3_value(int(s)) * Fraction(unit) for s in row] for row in w_scale]
    else:
        w_scale = random(n, groups).to(torch.bfloat16)
        scale_of = [[Fraction(float(s)) for s in row] for row in w_scale]
    bias, multiplier = random(n), None
    if precision == "w4a8" and not form:
        multiplier = some(-15, 16, n, 2).to(torch.int8)
    y = linear_coded(x, x_scale, low, w, w_scale, up, bias, precision, unit, multiplier)
    if multiplier is not None:  # at most 8 * 15
        w = w * multiplier.repeat_interleave(k // 2, 1)
    for i in range(m):
        for j in range(n):
            terms = [Fraction(float(bias[j]))]
            terms += [
                Fraction(float(a)) * Fraction(float(b)) for a, b in zip(low[i], up[j], strict=True)
            ]
            for g in range(groups):
                at = range(g * k // groups, (g + 1) * k // groups)
                total = sum((worth(x[i, p]) * worth(w[j, p]) for p in at), Fraction(0))
                step = Fraction(float(x_scale[i, g if x_groups > 1 else 0]))
                terms.append(total * scale_of[j][g] * step)
            bound = float(sum(abs(t) for t in terms)) * 2.0**-24 * 8
            assert abs(float(y[i, j]) - float(sum(terms))) <= bound


@pytest.mark.parametrize(("weight_format", "values"), [("s4", range(-8, 8)), ("nf4", NF4_VALUES)])
def test_linear_w__against_a_dense_weight(weight_format: str, values: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    index = torch.randint(0, 16, (5, 64), generator=generator)
    codes = (index if weight_format == "nf4" else index - 8).to(torch.int8)
    scale, x, bias = random(5, 2).to(torch.bfloat16), random(3, 7, 64), random(5)
    dense = torch.tensor(list(values), dtype=torch.float64)[index]
    dense = dense * scale.double().repeat_interleave(32, 1)
    wanted = x.double() @ dense.T + bias.double()
    found = linear_w(x, codes, scale, bias, weight_format)
    assert found.shape == (3, 7, 5)
    bound = 2.0**-24 * 70 * (x.abs().double() @ dense.abs().T + bias.abs())
    assert bool(((found - wanted).abs() <= bound).all())


def test_num_bytes__counts_bits() -> None:
    assert num_bytes("none", 96, 128, 16) == 2 * 96 * 128
    branch, smoothing = 2 * 16 * (96 + 128), 4 * 128
    assert num_bytes("int4", 96, 128, 16) == 96 * 64 + 2 * 96 * 2 + smoothing + branch
    assert num_bytes("int4", 96, 128, 16, 32) == 96 * 64 + 2 * 96 * 4 + smoothing + branch
    assert num_bytes("nvfp4", 96, 128, 16, 32) == 96 * 64 + 96 * 8 + smoothing + branch
    assert num_bytes("int8", 96, 128, 0) == 96 * 128 + 2 * 96 + smoothing
    assert num_bytes("w4a8", 96, 128, 16) == 96 * 64 + 96 * 2 + 2 * 96 + smoothing + branch
    assert num_bytes("w4a16", 96, 128, 16) == num_bytes("nf4", 96, 128, 16) == 96 * 64 + 2 * 96 * 2
    assert set(SCHEMES) == {"int4", "nvfp4", "int8", "fp8", "w4a8", "w4a16", "nf4"}
