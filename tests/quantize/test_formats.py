"""Each number format against a search over all its values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svdqc.compiler.quantize.codecs import (
    Codec,
    Fp8Codec,
    IntegerCodec,
    Nvfp4Codec,
    choose_scales,
    decode_activation,
    encode_activation,
)
from svdqc.compiler.quantize.formats import (
    E2M1_RANGES,
    NF4_VALUES,
    dequantize_groups,
    dequantize_nf4,
    nvfp4_tensor_scale,
    quantize_fp8,
    quantize_int8,
    quantize_nf4,
    quantize_nvfp4,
    round_e2m1_doubled,
    round_e4m3,
)
from svdqc.compiler.quantize.ranges import ActivationFormat

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_e2m1__nearest_of_all_values() -> None:
    x = randn(20000) * 3
    values = torch.cat([-E2M1.flip(0), E2M1])
    nearest = (x.unsqueeze(1) - values).abs().amin(1)
    assert torch.equal((x - round_e2m1_doubled(x) / 2).abs(), nearest)


def test_e2m1__ties_go_to_the_even_mantissa() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.75, 9.0])
    expected = torch.tensor([0.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0, -2.0, 12.0])
    assert torch.equal(round_e2m1_doubled(ties), expected)


def test_nvfp4__scales_are_e4m3_and_bf16() -> None:
    x = randn(64, 256) * torch.logspace(-3, 3, 64).unsqueeze(1)
    tensor_scale = nvfp4_tensor_scale(float(x.abs().max()))
    codes, scale = quantize_nvfp4(x, tensor_scale, E2M1_RANGES["four_over_six"])
    units = scale / (0.5 * tensor_scale)
    assert torch.equal(units, round_e4m3(units))
    assert torch.equal(scale, scale.bfloat16().float())
    assert set(codes.abs().unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0}


def test_nvfp4__more_choices_never_lose() -> None:
    x = randn(400, 64)
    losses = []
    for name in ("six", "four_over_six", "best_of_three"):
        codes, scale = quantize_nvfp4(x, nvfp4_tensor_scale(8.0), E2M1_RANGES[name])
        losses.append(float((dequantize_groups(codes, scale) - x).square().mean()))
    assert losses[0] > losses[1] > losses[2]


def test_nvfp4__tensor_scale_holds_the_largest() -> None:
    for absmax in (1e-6, 1.0, 2688.0, 2689.0, 1e6):
        assert absmax / 6.0 / nvfp4_tensor_scale(absmax) <= 448.0


def test_int8__error_within_half_a_step() -> None:
    x = randn(30, 200)
    codes, scale = quantize_int8(x)
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) == 127
    assert ((dequantize_groups(codes, scale) - x).abs() <= 0.5001 * scale).all()


def test_fp8__error_within_a_sixteenth() -> None:
    x = randn(30, 200)
    codes, scale = quantize_fp8(x)
    miss = (dequantize_groups(codes, scale) - x).abs()
    assert (miss <= x.abs() / 16 + scale * 2**-10).all()  # 3 mantissa bits; subnormals step 2^-9


def test_nf4__nearest_quantile() -> None:
    w = randn(16, 128)
    codes, scale = quantize_nf4(w)
    every = torch.tensor(NF4_VALUES) * scale.repeat_interleave(64, 1).unsqueeze(-1)
    nearest = (w.unsqueeze(-1) - every).abs().amin(-1)
    torch.testing.assert_close((dequantize_nf4(codes, scale) - w).abs(), nearest)


@pytest.mark.parametrize(
    "codec",
    [IntegerCodec(64, "signed8"), IntegerCodec(32, "symmetric"), Nvfp4Codec(0.01), Fp8Codec(64)],
)
def test_choose_scales__clipping_never_loses(codec: Codec) -> None:
    w = randn(50, codec.group_size)
    losses = []
    for clip in (False, True):
        scale = choose_scales(w, codec, clip)
        assert torch.equal(scale, codec.storable(scale))
        losses.append((w - codec.encode(w, scale) * scale.unsqueeze(1)).square().sum(1))
    assert (losses[1] <= losses[0]).all()


@pytest.mark.parametrize(
    "activation",
    [
        ActivationFormat(),
        ActivationFormat(4, 32, "symmetric"),
        ActivationFormat(4, 64, "unsigned"),
        ActivationFormat(8, 256, "symmetric"),
        ActivationFormat(4, 16, "best_of_three", encoding="e2m1", tensor_scale=2.0**-6),
        ActivationFormat(8, 256, "absmax", encoding="e4m3"),
    ],
    ids=lambda a: f"{a.encoding}{a.bits}_{a.range}",
)
def test_activation__zero_and_random(activation: ActivationFormat) -> None:
    x = randn(20, 256).abs() if activation.range == "unsigned" else randn(20, 256)
    x[0] = 0.0
    codes, scale = encode_activation(x, activation)
    back = decode_activation(codes, scale)
    assert (back[0] == 0).all()
    bound = 0.12 if activation.bits == 4 else 0.03  # 4 bits of a Gaussian: about 0.1 of its size
    assert float((back - x).norm() / x.norm()) < bound
