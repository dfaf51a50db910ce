"""The quantized ops, registered with PyTorch: each has a reference, so a graph that holds them runs.

svdq::quantize_s4         smooth, project down and code the input of a 4-bit linear
svdq::quantize_s4_parts   the same with the projection in parts, whose sum it is (GPUs quantize tiles)
svdq::linear_s4           4-bit linear plus the up-projection of the low-rank branch

The other formats' ops are in ops_formats.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.compiler.ir import ops
from svdqc.compiler.quantize import (
    ops_formats,  # noqa: F401  (whoever needs these ops needs those too)
    reference,
)
from svdqc.compiler.quantize.ranges import ActivationFormat

_library = torch.library.Library(ops.NAMESPACE, "FRAGMENT")
_library.define(
    "quantize_s4(Tensor x, Tensor inv_smooth, Tensor lora_down, int group_size, str range, bool rotate, float shift) "
    "-> (Tensor codes, Tensor scale, Tensor low)"
)
_library.define(
    "quantize_s4_parts(Tensor x, Tensor inv_smooth, Tensor lora_down, int group_size, str range, bool rotate, "
    "float shift, int part) -> (Tensor codes, Tensor scale, Tensor low_parts)"
)
_library.define(
    "linear_s4(Tensor codes, Tensor scale, Tensor low, Tensor w_codes, Tensor w_scale, Tensor lora_up, "
    "Tensor? bias) -> Tensor"
)


def _quantize_s4(
    x: Tensor,
    inv_smooth: Tensor,
    lora_down: Tensor,
    group_size: int,
    range: str,
    rotate: bool,
    shift: float,
) -> tuple[Tensor, Tensor, Tensor]:
    activation = ActivationFormat(
        bits=4, group_size=group_size, range=range, rotate=rotate, shift=shift
    )
    return reference.quantize_activation(x, inv_smooth, lora_down, activation)


def _quantize_s4_fake(
    x: Tensor,
    inv_smooth: Tensor,
    lora_down: Tensor,
    group_size: int,
    range: str,
    rotate: bool,
    shift: float,
) -> tuple[Tensor, Tensor, Tensor]:
    lead = x.shape[:-1]
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty((*lead, x.shape[-1] // group_size), dtype=torch.float32),
        x.new_empty((*lead, lora_down.shape[0]), dtype=torch.float32),
    )


def _quantize_s4_parts(
    x: Tensor,
    inv_smooth: Tensor,
    lora_down: Tensor,
    group_size: int,
    range: str,
    rotate: bool,
    shift: float,
    part: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As quantize_s4, but low_parts [..., in_features / part, rank] are what so many columns each add to low."""
    activation = ActivationFormat(
        bits=4, group_size=group_size, range=range, rotate=rotate, shift=shift
    )
    codes, scale, _ = reference.quantize_activation(x, inv_smooth, None, activation)
    x_hat = reference.smooth_activation(x, inv_smooth, activation).unflatten(-1, (-1, part))
    down = lora_down.to(torch.float32).unflatten(-1, (-1, part))
    return codes, scale, torch.einsum("...pk,rpk->...pr", x_hat, down)


def _quantize_s4_parts_fake(
    x: Tensor,
    inv_smooth: Tensor,
    lora_down: Tensor,
    group_size: int,
    range: str,
    rotate: bool,
    shift: float,
    part: int,
) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale, low = _quantize_s4_fake(
        x, inv_smooth, lora_down, group_size, range, rotate, shift
    )
    return codes, scale, low.new_empty((*low.shape[:-1], x.shape[-1] // part, low.shape[-1]))


def _linear_s4(
    codes: Tensor,
    scale: Tensor,
    low: Tensor,
    w_codes: Tensor,
    w_scale: Tensor,
    lora_up: Tensor,
    bias: Tensor | None,
) -> Tensor:
    return reference.linear_s4(codes, scale, low, w_codes, w_scale, lora_up, bias)


def _linear_s4_fake(
    codes: Tensor,
    scale: Tensor,
    low: Tensor,
    w_codes: Tensor,
    w_scale: Tensor,
    lora_up: Tensor,
    bias: Tensor | None,
) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], w_codes.shape[0]), dtype=torch.float32)


_library.impl("quantize_s4", _quantize_s4, "CompositeExplicitAutograd")
_library.impl("quantize_s4_parts", _quantize_s4_parts, "CompositeExplicitAutograd")
_library.impl("linear_s4", _linear_s4, "CompositeExplicitAutograd")
torch.library.register_fake("svdq::quantize_s4", _quantize_s4_fake, lib=_library)
torch.library.register_fake("svdq::quantize_s4_parts", _quantize_s4_parts_fake, lib=_library)
torch.library.register_fake("svdq::linear_s4", _linear_s4_fake, lib=_library)

quantize_s4 = torch.ops.svdq.quantize_s4.default
quantize_s4_parts = torch.ops.svdq.quantize_s4_parts.default
linear_s4 = torch.ops.svdq.linear_s4.default
