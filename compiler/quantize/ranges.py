"""From real numbers to 4-bit codes: which scale a group gets, and the codes that follow from it.

    codes = clamp(round_half_even(x * (1 / scale)), lo, hi)        1/scale in f32, 0 where scale == 0

| range     | scale                                   | codes, 4 bits |
|-----------|-----------------------------------------|---------------|
| symmetric | absmax / 7                              | -7 .. 7       |
| signed8   | v / -8, v = the element of largest |.|  | -8 .. 7       |
| unsigned  | max / 15, for values >= 0               | 0 .. 15       |

"signed8" uses all sixteen codes: the scale takes the sign that sends the extreme to -8, so it may be negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RANGES = {
    "int": ("symmetric", "signed8", "unsigned"),
    "e2m1": ("six", "four_over_six", "best_of_three"),
    "e4m3": ("absmax",),
    "float": ("none",),
}
"""Per encoding: "int" ranges are those above; "e2m1" is NVFP4, see formats.E2M1_RANGES; "e4m3" is FP8, absmax /
448; "float" is not coded."""


@dataclass(frozen=True)
class ActivationFormat:
    """How the activations of one linear are quantized, per token and group.

    x_hat = (x + shift) * inv_smooth, rotated in blocks of 64 channels where `rotate`, then coded by `encoding` and
    `range`. The scales of "e2m1" are E4M3 values times `tensor_scale`.
    """

    bits: int = 4
    group_size: int = 64
    range: str = "signed8"
    rotate: bool = False
    shift: float = 0.0
    encoding: str = "int"
    tensor_scale: float = 1.0

    def __post_init__(self) -> None:
        assert self.range in RANGES[self.encoding], (self.encoding, self.range)
        if self.encoding == "int":
            assert self.bits == 4 or (self.bits, self.range) == (8, "symmetric"), self
        elif self.encoding == "e2m1":
            assert (self.bits, self.group_size) == (4, 16), self
        elif self.encoding == "e4m3":
            assert self.bits == 8, self
        assert self.range != "unsigned" or not self.rotate, "a rotation makes codes negative"

    @property
    def code_dtype(self) -> torch.dtype:
        """int8 (e2m1 codes are doubled integers), or the E4M3 values themselves."""
        return torch.float8_e4m3fn if self.encoding == "e4m3" else torch.int8

    @property
    def code_limits(self) -> tuple[int, int]:
        """The smallest and largest code of an integer encoding."""
        assert self.encoding != "e4m3"
        return (-12, 12) if self.encoding == "e2m1" else code_limits(self.range, self.bits)


UNCODED = ActivationFormat(bits=32, group_size=1, range="none", encoding="float")
"""Activations as they are: the input of a linear whose weight alone is coded."""


def code_limits(range_name: str, bits: int = 4) -> tuple[int, int]:
    """The smallest and largest code."""
    half = 1 << (bits - 1)
    return {
        "symmetric": (1 - half, half - 1),
        "signed8": (-half, half - 1),
        "unsigned": (0, 2 * half - 1),
    }[range_name]


def group_scales(x_grouped: Tensor, range_name: str, bits: int = 4) -> Tensor:
    """The scale of each group: x_grouped [..., groups, group_size] f32 -> [..., groups] f32."""
    lo, hi = code_limits(range_name, bits)
    if range_name == "symmetric":
        return x_grouped.abs().amax(-1) / hi
    if range_name == "unsigned":
        return x_grouped.amax(-1).clamp_min(0.0) / hi
    return _extreme(x_grouped) / lo


def _extreme(x_grouped: Tensor) -> Tensor:
    """The element of largest magnitude of each group, the first of equals: [..., group_size] -> [...]."""
    least, most = torch.aminmax(x_grouped, dim=-1)
    extreme = torch.where(most > -least, most, least)
    tied = (most == -least) & (most != 0)
    if bool(tied.any()):
        groups = x_grouped[tied]  # rare: look for which came first
        first = groups.abs().argmax(-1, keepdim=True)
        extreme[tied] = groups.gather(-1, first).squeeze(-1)
    return extreme


def reciprocal(scale: Tensor) -> Tensor:
    """1/scale, and 0 where scale is 0 (or so small that the reciprocal overflows)."""
    inverse = 1.0 / scale
    return torch.where(torch.isfinite(inverse), inverse, torch.zeros_like(inverse))


def encode(x_grouped: Tensor, scale: Tensor, limits: tuple[int, int]) -> Tensor:
    """Codes, as floats, of x_grouped [..., groups, group_size] under scale [..., groups]."""
    return (x_grouped * reciprocal(scale).unsqueeze(-1)).round_().clamp_(*limits)


def to_bf16_values(x: Tensor) -> Tensor:
    """x rounded to bfloat16, held in f32."""
    return x.to(torch.bfloat16).to(torch.float32)
