"""The reference of a quantized linear against loops over Python integers, and against the float product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svdqc.compiler.quantize.ranges import ActivationFormat
from svdqc.compiler.quantize.reference import (
    dequantize_weight,
    linear_s4,
    quantize_activation,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_case(
    tokens: int, out: int, width: int, group: int, rank: int, seed: int = 0
) -> list[Tensor]:
    g = generator(seed)
    return [
        torch.randint(-8, 8, (tokens, width), generator=g, dtype=torch.int8),
        torch.randn(tokens, width // group, generator=g),
        torch.randn(tokens, rank, generator=g),
        torch.randint(-8, 8, (out, width), generator=g, dtype=torch.int8),
        torch.randn(out, width // group, generator=g).bfloat16(),
        torch.randn(out, rank, generator=g).bfloat16(),
        torch.randn(out, generator=g),
    ]


@pytest.mark.parametrize(
    ("tokens", "out", "width", "group", "rank"),
    [
        (1, 1, 64, 64, 0),
        (3, 5, 192, 64, 7),
        (2, 9, 128, 32, 16),
        (4, 2, 256, 128, 1),
        (3, 3, 48, 16, 2),
    ],
)
def test_linear_s4__against_exact_integers(
    tokens: int, out: int, width: int, group: int, rank: int
) -> None:
    codes, scale, low, w_codes, w_scale, lora_up, bias = random_case(
        tokens, out, width, group, rank
    )
    y = linear_s4(codes, scale, low, w_codes, w_scale, lora_up, bias)
    for m in range(tokens):
        for n in range(out):
            exact = float(bias[n])
            size = abs(exact)
            for g in range(width // group):
                k = slice(g * group, (g + 1) * group)
                total = sum(
                    a * b for a, b in zip(codes[m, k].tolist(), w_codes[n, k].tolist(), strict=True)
                )
                exact += total * float(scale[m, g]) * float(w_scale[n, g])
                size += abs(total * float(scale[m, g]) * float(w_scale[n, g]))
            for r in range(rank):
                exact += float(low[m, r]) * float(lora_up[n, r])
                size += abs(float(low[m, r]) * float(lora_up[n, r]))
            assert abs(float(y[m, n]) - exact) <= (width // group + rank + 3) * 2**-23 * size


def test_linear_s4__all_codes_minus_8() -> None:
    codes = torch.full((2, 256), -8, dtype=torch.int8)
    ones = torch.ones(2, 2)
    y = linear_s4(codes, ones, torch.zeros(2, 0), codes, ones, torch.zeros(2, 0), None)
    assert (y == 64.0 * 256).all()


def test_linear_s4__eight_bit_codes_stay_exact() -> None:
    codes = torch.full((1, 4096), 127, dtype=torch.int8)
    codes[0, 0] = 126
    one = torch.ones(1, 1)
    y = linear_s4(codes, one, torch.zeros(1, 0), codes, one, torch.zeros(1, 0), None)
    assert float(y) == float(torch.tensor(4095 * 127**2 + 126**2, dtype=torch.float32))


def test_linear_s4__keeps_leading_dims_and_allows_no_tokens() -> None:
    codes, scale, low, w_codes, w_scale, lora_up, bias = random_case(6, 4, 64, 64, 3)
    flat = linear_s4(codes, scale, low, w_codes, w_scale, lora_up, bias)
    deep = linear_s4(
        codes.view(2, 3, 64),
        scale.view(2, 3, 1),
        low.view(2, 3, 3),
        w_codes,
        w_scale,
        lora_up,
        bias,
    )
    assert torch.equal(deep.view(6, 4), flat)
    empty = linear_s4(codes[:0], scale[:0], low[:0], w_codes, w_scale, lora_up, bias)
    assert empty.shape == (0, 4)


@pytest.mark.parametrize("rotated", [False, True])
def test_quantize_activation__low_reads_the_unrotated_input(rotated: bool) -> None:
    g = generator(3)
    x, inv_smooth = torch.randn(4, 128, generator=g), torch.rand(128, generator=g) + 0.5
    lora_down = torch.randn(8, 128, generator=g).bfloat16()
    _, _, low = quantize_activation(x, inv_smooth, lora_down, ActivationFormat(rotate=rotated))
    torch.testing.assert_close(low, (x * inv_smooth) @ lora_down.float().T)


def test_quantize_activation__shift_comes_before_smoothing() -> None:
    x, inv_smooth = torch.full((1, 64), -0.1), torch.full((64,), 2.0)
    activation = ActivationFormat(range="unsigned", shift=0.25)
    codes, scale, low = quantize_activation(x, inv_smooth, None, activation)
    assert low.shape == (1, 0)
    torch.testing.assert_close(codes.float() * scale, (x + 0.25) * 2)
    assert int(codes.min()) >= 0


def test_quantized_pair__approaches_the_float_product() -> None:
    g = generator(4)
    x, w = torch.randn(32, 256, generator=g), torch.randn(16, 256, generator=g)
    codes, scale, low = quantize_activation(x, torch.ones(256), None, ActivationFormat())
    w_codes, w_scale, _ = quantize_activation(w, torch.ones(256), None, ActivationFormat())
    y = linear_s4(codes, scale, low, w_codes, w_scale, torch.zeros(16, 0), None)
    torch.testing.assert_close(
        y,
        dequantize_weight(codes, scale) @ dequantize_weight(w_codes, w_scale).T,
        atol=1e-4,
        rtol=1e-4,
    )
    error = float((y - x @ w.T).norm() / (x @ w.T).norm())
    assert error < 0.15  # two independent errors of about 0.095
