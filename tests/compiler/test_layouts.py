"""Packed weights: what comes back is what went in, and the size is known in advance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svdqc.compiler.targets.cpu_layouts import UnpackableWeight
from svdqc.compiler.targets.cpu_layouts_f32 import UnpackableFloatWeight
from svdqc.compiler.targets.layouts import (
    UnknownLayout,
    conv_layout,
    pack,
    packed_bytes,
    unpack,
)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def codes(out_features: int, in_features: int) -> Tensor:
    generator = torch.Generator().manual_seed(out_features)
    return torch.randint(-8, 8, (out_features, in_features), generator=generator, dtype=torch.int8)


def some_of(values: list[int], out_features: int, in_features: int) -> Tensor:
    generator = torch.Generator().manual_seed(out_features)
    chosen = torch.randint(0, len(values), (out_features, in_features), generator=generator)
    return torch.tensor(values)[chosen]


BYTES = list(range(256))
MULTIPLIERS = list(range(-15, 16))
E2M1 = [s * v for v in (0, 1, 2, 3, 4, 6, 8, 12) for s in (1, -1)]

CASES = [
    *(("nf4_n16k4", some_of(list(range(16)), n, 64).to(torch.int8)) for n in (1, 15, 16, 17)),
    *(("e2m1_n16k4", some_of(E2M1, n, 32).to(torch.int8)) for n in (1, 15, 16, 17)),
    *(("s8_n16k4", some_of(BYTES, n, 20).to(torch.uint8).view(torch.int8)) for n in (1, 16, 17)),
    *(("e4m3_n16", some_of(BYTES, n, 17).to(torch.uint8)) for n in (1, 16, 17)),
    *(("e4m3_scale_n16", some_of(BYTES, n, 3).to(torch.uint8)) for n in (1, 16, 17)),
    *(("multiplier_n16", some_of(MULTIPLIERS, n, 3).to(torch.int8)) for n in (1, 16, 17)),
    *(("multiplier_mma", some_of(MULTIPLIERS, n, 3).to(torch.int8)) for n in (1, 32, 33)),
    *(("u4s8_mma", codes(n, k)) for n, k in ((1, 32), (32, 64), (33, 160))),
    *(("row_major", weight(5, 7, dtype=d)) for d in FLOATS),
    ("row_major", torch.arange(7)),
    *(("gemm_n16", weight(n, 24, dtype=d)) for d in FLOATS for n in (1, 15, 16, 17)),
    *(("conv_n16_g1", weight(n, 3, 3, 3, dtype=d)) for d in FLOATS for n in (1, 16, 17)),
    ("conv_n16_g1", weight(17, 3, 5)),
    ("conv_n16_g1", weight(17, 3, 2, 3, 2)),
    ("conv_n16_g4", weight(20, 3, 3, 3)),
    ("conv_n16_g1_t", weight(6, 17, 2, 2)),
    ("conv_n16_g2_t", weight(6, 17, 2, 2)),
    ("depthwise", weight(17, 1, 3, 3)),
    ("depthwise", weight(16, 1, 5, dtype=torch.bfloat16)),
    *(("s4_n16k4", codes(n, 64)) for n in (1, 15, 16, 17)),
    *(("bf16_scale_n16", weight(n, 3, dtype=torch.bfloat16)) for n in (1, 16, 17)),
    ("bf16_scale_n16", weight(17, 1, dtype=torch.bfloat16).float()),
]


@pytest.mark.parametrize(
    ("layout", "tensor"),
    CASES,
    ids=[f"{n}-{'x'.join(map(str, t.shape))}-{str(t.dtype)[6:]}" for n, t in CASES],
)
def test_round_trip(layout: str, tensor: Tensor) -> None:
    packed = pack(layout, tensor)
    size = packed_bytes(layout, tuple(tensor.shape), tensor.dtype)
    assert packed.numel() * packed.element_size() == size
    back = unpack(layout, packed, tuple(tensor.shape), tensor.dtype)
    assert back.shape == tensor.shape
    assert torch.equal(back.to(tensor.dtype), tensor)


def test_s4__all_codes_minus_8() -> None:
    lowest = torch.full((16, 64), -8, dtype=torch.int8)
    assert int(pack("s4_n16k4", lowest).max()) == 0


def test_s4__rejects_a_ninth_bit() -> None:
    with pytest.raises(UnpackableWeight, match="4-bit codes"):
        pack("s4_n16k4", torch.full((16, 64), 8, dtype=torch.int8))


def test_s4__rejects_odd_k() -> None:
    with pytest.raises(UnpackableWeight, match="multiple of 8"):
        pack("s4_n16k4", codes(16, 60))


def test_scale__rejects_more_bits_than_bf16() -> None:
    with pytest.raises(UnpackableWeight, match="bfloat16"):
        pack("bf16_scale_n16", torch.full((16, 2), 1.001))


def test_conv__rejects_groups_that_do_not_divide() -> None:
    with pytest.raises(UnpackableFloatWeight, match="groups=3"):
        pack("conv_n16_g3", weight(16, 3, 3, 3))


def test_names() -> None:
    assert conv_layout(4, False) == "conv_n16_g4"
    assert conv_layout(1, True) == "conv_n16_g1_t"
    with pytest.raises(UnknownLayout, match="'gemm_n8'"):
        pack("gemm_n8", weight(4, 4))


@pytest.mark.parametrize(
    ("layout", "tensor"),
    [
        ("nf4_n16k4", torch.full((16, 8), 16, dtype=torch.int8)),
        ("e2m1_n16k4", torch.full((16, 8), 5, dtype=torch.int8)),
        ("e2m1_n16k4", torch.full((16, 8), -128, dtype=torch.int8)),
        ("s8_n16k4", torch.zeros(16, 6, dtype=torch.int8)),
        ("e4m3_n16", torch.zeros(16, 8, dtype=torch.int8)),
    ],
)
def test_codes_that_a_layout_cannot_hold(layout: str, tensor: Tensor) -> None:
    with pytest.raises(UnpackableWeight):
        pack(layout, tensor)
