"""One interface over the number formats, for the algorithms that do not care which they fill.

A codec says which scales a group may have and which codes its values then get; real = code x scale for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from svdqc.compiler.quantize.formats import (
    E2M1_RANGES,
    E4M3_LARGEST,
    LARGEST_MULTIPLIER,
    NVFP4_GROUP,
    nvfp4_encode,
    nvfp4_scales,
    nvfp4_tensor_scale,
    quantize_nvfp4,
    round_e2m1_doubled,
    round_e4m3,
)
from svdqc.compiler.quantize.ranges import (
    ActivationFormat,
    code_limits,
    encode,
    group_scales,
    reciprocal,
    to_bf16_values,
)
from svdqc.compiler.quantize.schemes import scheme_of

_CLIPS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_NVFP4_LARGEST = (6.0, 4.0, 3.0, 3.5, 4.5, 5.0, 5.5, 6.5, 7.0, 8.0)
_NVFP4_HEADROOM = 4.0
_TOP_MULTIPLIERS = (11.0, 11.5, 12.0, 12.5, 13.0, 13.5, 14.0, 14.5, 15.0)
"""Tried for the largest group of a channel; above them is room for what error feedback adds."""


class Codec(Protocol):
    """A weight format: groups of `group_size` along in_features."""

    @property
    def group_size(self) -> int: ...

    @property
    def code_dtype(self) -> torch.dtype: ...

    def full_scales(self, grouped: Tensor) -> Tensor:
        """The scale that just holds each group: [..., group_size] -> [...]."""

    def candidates(self, grouped: Tensor) -> Iterator[Tensor]:
        """Scales worth trying, full_scales first, each [...]."""

    def storable(self, scale: Tensor) -> Tensor:
        """The nearest scales that can be stored: [out_features, ...]."""

    def of_rows(self, rows: slice) -> Codec:
        """The codec of these output channels, for those that differ by channel."""

    def round_codes(self, ratio: Tensor) -> Tensor:
        """Codes, as floats, of values divided by their scale. May work in place."""

    def encode(self, grouped: Tensor, scale: Tensor) -> Tensor:
        """Codes, as floats: [..., group_size] under [...]."""


@dataclass(frozen=True)
class IntegerCodec:
    """Integers of `bits` bits under bf16 scales."""

    group_size: int
    range: str
    bits: int = 4
    code_dtype: torch.dtype = torch.int8

    def full_scales(self, grouped: Tensor) -> Tensor:
        return self.storable(group_scales(grouped, self.range, self.bits))

    def candidates(self, grouped: Tensor) -> Iterator[Tensor]:
        full = group_scales(grouped, self.range, self.bits)
        ratios = [1.0, *_CLIPS]
        if (
            self.range == "signed8"
        ):  # the extreme at +7 instead of -8: better when the far side is as long
            ratios += [-8.0 / 7.0, -1.0, *(-clip for clip in _CLIPS)]
        for ratio in ratios:
            yield self.storable(full * ratio)

    def storable(self, scale: Tensor) -> Tensor:
        return to_bf16_values(scale)

    def of_rows(self, rows: slice) -> IntegerCodec:
        return self

    def round_codes(self, ratio: Tensor) -> Tensor:
        return ratio.round_().clamp_(*code_limits(self.range, self.bits))

    def encode(self, grouped: Tensor, scale: Tensor) -> Tensor:
        return encode(grouped, scale, code_limits(self.range, self.bits))


@dataclass(frozen=True)
class MultipliedCodec(IntegerCodec):
    """4-bit integers under whole multiples of one bf16 scale per output channel, up to LARGEST_MULTIPLIER.

    channel_scale  [out_features]  f32, of bf16 values, >= 0
    """

    channel_scale: Tensor = field(kw_only=True)

    @staticmethod
    def fitting(w: Tensor, group_size: int, range_name: str) -> MultipliedCodec:
        """With the channel scales to whose multiples the scales of w's groups are nearest."""
        grouped = w.reshape(w.shape[0], -1, group_size)
        wanted = group_scales(grouped, range_name).abs()
        largest = wanted.amax(-1)
        best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
        for top in _TOP_MULTIPLIERS:
            tried = MultipliedCodec(
                group_size, range_name, channel_scale=to_bf16_values(largest / top)
            )
            loss = (tried.storable(wanted) - wanted).square().sum(-1)
            best = torch.where(loss < least, tried.channel_scale, best)
            least = torch.minimum(loss, least)
        return MultipliedCodec(group_size, range_name, channel_scale=best)

    def storable(self, scale: Tensor) -> Tensor:
        unit = self.channel_scale.reshape(-1, *[1] * (scale.dim() - 1))
        steps = (scale.abs() * reciprocal(unit)).round_().clamp_(1, LARGEST_MULTIPLIER)
        return torch.copysign(steps * unit, scale)

    def of_rows(self, rows: slice) -> MultipliedCodec:
        return replace(self, channel_scale=self.channel_scale[rows])


@dataclass(frozen=True)
class Nvfp4Codec:
    """E2M1, doubled, under E4M3 scales times a power of two."""

    tensor_scale: float
    group_size: int = NVFP4_GROUP
    code_dtype: torch.dtype = torch.int8

    @staticmethod
    def fitting(w: Tensor) -> Nvfp4Codec:
        """With a tensor scale that leaves room for what error feedback adds."""
        return Nvfp4Codec(nvfp4_tensor_scale(float(w.abs().max()) * _NVFP4_HEADROOM))

    def full_scales(self, grouped: Tensor) -> Tensor:
        return nvfp4_scales(grouped, self.tensor_scale)

    def candidates(self, grouped: Tensor) -> Iterator[Tensor]:
        for largest in _NVFP4_LARGEST:
            yield nvfp4_scales(grouped, self.tensor_scale, largest)

    def of_rows(self, rows: slice) -> Nvfp4Codec:
        return self

    def storable(self, scale: Tensor) -> Tensor:
        unit = 0.5 * self.tensor_scale
        return round_e4m3(scale / unit) * unit

    def round_codes(self, ratio: Tensor) -> Tensor:
        return round_e2m1_doubled(ratio.mul_(0.5))

    def encode(self, grouped: Tensor, scale: Tensor) -> Tensor:
        return nvfp4_encode(grouped, scale)


@dataclass(frozen=True)
class Fp8Codec:
    """E4M3 values under one bf16 scale per output channel."""

    group_size: int
    code_dtype: torch.dtype = torch.float8_e4m3fn

    def full_scales(self, grouped: Tensor) -> Tensor:
        return to_bf16_values(grouped.abs().amax(-1) / E4M3_LARGEST)

    def candidates(self, grouped: Tensor) -> Iterator[Tensor]:
        yield self.full_scales(grouped)

    def storable(self, scale: Tensor) -> Tensor:
        return to_bf16_values(scale)

    def of_rows(self, rows: slice) -> Fp8Codec:
        return self

    def round_codes(self, ratio: Tensor) -> Tensor:
        return round_e4m3(ratio)

    def encode(self, grouped: Tensor, scale: Tensor) -> Tensor:
        return round_e4m3(grouped * reciprocal(scale).unsqueeze(-1))


def codec_of(precision: str, residual: Tensor, group_size: int, range_name: str) -> Codec:
    """The weight codec of a precision for `residual` [out_features, in_features]; the last two are the recipe's."""
    weight = scheme_of(precision).weight
    if weight == "e2m1":
        return Nvfp4Codec.fitting(residual)
    if weight == "e4m3":
        return Fp8Codec(residual.shape[1])
    if weight == "s8":
        return IntegerCodec(residual.shape[1], "symmetric", bits=8)
    if weight == "s4m":
        return MultipliedCodec.fitting(residual, group_size, range_name)
    return IntegerCodec(group_size, range_name)


def choose_scales(w: Tensor, codec: Codec, clip: bool, energy: Tensor | None = None) -> Tensor:
    """One storable scale per group: w [..., group_size] f32 -> [...] f32.

        argmin_s sum_k energy_k (w_k - s * code(w_k / s))^2

    over the codec's candidates; the full scale without `clip`. Candidates are judged as stored, since the kernel
    multiplies by the stored scale. energy broadcasts against w; None is all ones.
    """
    if not clip:
        return codec.full_scales(w)
    best = best_loss = None
    for scale in codec.candidates(w):
        miss = torch.addcmul(w, codec.encode(w, scale), scale.unsqueeze(-1), value=-1.0).square_()
        loss = miss.sum(-1) if energy is None else miss.mul_(energy).sum(-1)
        if best is None or best_loss is None:
            best, best_loss = scale, loss
        else:
            best = torch.where(loss < best_loss, scale, best)
            best_loss = torch.minimum(loss, best_loss)
    assert best is not None
    return best


def encode_activation(x_rot: Tensor, activation: ActivationFormat) -> tuple[Tensor, Tensor]:
    """Codes, as floats [..., in_features], and scales [..., groups] f32 of smoothed and rotated activations."""
    if activation.encoding == "e2m1":
        return quantize_nvfp4(x_rot, activation.tensor_scale, E2M1_RANGES[activation.range])
    groups = x_rot.shape[-1] // activation.group_size
    grouped = x_rot.reshape(*x_rot.shape[:-1], groups, activation.group_size)
    if activation.encoding == "e4m3":
        scale = grouped.abs().amax(-1) / E4M3_LARGEST
        return round_e4m3(grouped * reciprocal(scale).unsqueeze(-1)).reshape(x_rot.shape), scale
    scale = group_scales(grouped, activation.range, activation.bits)
    return encode(grouped, scale, activation.code_limits).reshape(x_rot.shape), scale


def decode_activation(codes: Tensor, scale: Tensor) -> Tensor:
    """What the codes stand for: [..., in_features] f32."""
    grouped = codes.to(torch.float32).reshape(*scale.shape, -1)
    return (grouped * scale.unsqueeze(-1)).reshape(codes.shape)
