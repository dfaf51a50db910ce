"""The quantized ops, registered with PyTorch: each has a reference, so a graph that holds them runs.

svdq::quantize_s4   smooth, project down and code the input of a 4-bit linear
svdq::linear_s4     4-bit linear plus the up-projection of the low-rank branch

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
_library.impl("linear_s4", _linear_s4, "CompositeExplicitAutograd")
torch.library.register_fake("svdq::quantize_s4", _quantize_s4_fake, lib=_library)
torch.library.register_fake("svdq::linear_s4", _linear_s4_fake, lib=_library)

quantize_s4 = torch.ops.svdq.quantize_s4.default
linear_s4 = torch.ops.svdq.linear_s4.default
