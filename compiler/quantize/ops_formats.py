"""The ops of the formats beside int4, registered with PyTorch: few and general, the format is an attribute.

svdq::quantize       smooth, project down and code the input of a coded linear
svdq::linear_coded   coded linear plus the up-projection of the low-rank branch
svdq::linear_w       linear whose weight alone is coded

E4M3 numbers are uint8 here, their bits: no kernel and no file needs a dtype for them. The scales of nvfp4 weights are
E4M3 too, in units of `w_unit`, a power of two. Codes of w4a8 weights are multiplied with the integers `w_multiplier`,
one a group, to int8. (Artifacts of quantization 1 have none, and a scale per group instead.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from svdqc.compiler.ir import ops
from svdqc.compiler.quantize import reference
from svdqc.compiler.quantize.errors import UnknownFormat
from svdqc.compiler.quantize.formats import e4m3_from_bits
from svdqc.compiler.quantize.ranges import RANGES, ActivationFormat

CODED = ("int8", "fp8", "w4a8", "nvfp4")
"""Precisions of svdq::linear_coded."""
WEIGHT_ONLY = ("s4", "nf4")
"""Weight formats of svdq::linear_w."""
_BITS = {"int": 8, "e2m1": 4, "e4m3": 8}

_library = torch.library.Library(ops.NAMESPACE, "FRAGMENT")
_library.define(
    "quantize(Tensor x, Tensor inv_smooth, Tensor lora_down, int group_size, str range, bool rotate, float shift, "
    "str encoding, float tensor_scale) -> (Tensor codes, Tensor scale, Tensor low)"
)
_library.define(
    "linear_coded(Tensor codes, Tensor scale, Tensor low, Tensor w_codes, Tensor w_scale, Tensor lora_up, "
    "Tensor? bias, str precision, float w_unit, Tensor? w_multiplier=None) -> Tensor"
)
_library.define(
    "linear_w(Tensor x, Tensor w_codes, Tensor w_scale, Tensor? bias, str weight_format) -> Tensor"
)


def _quantize(
    x: Tensor,
    inv_smooth: Tensor,
    lora_down: Tensor,
    group_size: int,
    range: str,
    rotate: bool,
    shift: float,
    encoding: str,
    tensor_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if range not in RANGES.get(encoding, ()) or encoding not in _BITS:
        raise _unknown(
            "quantize", f"{encoding} {range}", "int symmetric, e4m3 absmax or an E2M1 range"
        )
    activation = ActivationFormat(
        _BITS[encoding], group_size, range, rotate, shift, encoding, tensor_scale
    )
    codes, scale, low = reference.quantize_activation(x, inv_smooth, lora_down, activation)
    return codes.view(torch.uint8) if encoding == "e4m3" else codes, scale, low


def _quantize_fake(
    x: Tensor,
    inv_smooth: Tensor,
    lora_down: Tensor,
    group_size: int,
    range: str,
    rotate: bool,
    shift: float,
    encoding: str,
    tensor_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    lead = x.shape[:-1]
    return (
        x.new_empty(x.shape, dtype=torch.uint8 if encoding == "e4m3" else torch.int8),
        x.new_empty((*lead, x.shape[-1] // group_size), dtype=torch.float32),
        x.new_empty((*lead, lora_down.shape[0]), dtype=torch.float32),
    )


def _linear_coded(
    codes: Tensor,
    scale: Tensor,
    low: Tensor,
    w_codes: Tensor,
    w_scale: Tensor,
    lora_up: Tensor,
    bias: Tensor | None,
    precision: str,
    w_unit: float,
    w_multiplier: Tensor | None = None,
) -> Tensor:
    if precision not in CODED:
        raise _unknown("linear_coded", precision, ", ".join(CODED))
    if precision == "fp8":
        codes, w_codes = codes.view(torch.float8_e4m3fn), w_codes.view(torch.float8_e4m3fn)
    if precision == "nvfp4":
        w_scale = e4m3_from_bits(w_scale) * w_unit
    if w_multiplier is not None:
        w_codes = reference.multiplied_codes(w_codes, w_multiplier)
    return reference.linear_s4(codes, scale, low, w_codes, w_scale, lora_up, bias)


def _linear_coded_fake(
    codes: Tensor,
    scale: Tensor,
    low: Tensor,
    w_codes: Tensor,
    w_scale: Tensor,
    lora_up: Tensor,
    bias: Tensor | None,
    precision: str,
    w_unit: float,
    w_multiplier: Tensor | None = None,
) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], w_codes.shape[0]), dtype=torch.float32)


def _linear_w(
    x: Tensor, w_codes: Tensor, w_scale: Tensor, bias: Tensor | None, weight_format: str
) -> Tensor:
    if weight_format not in WEIGHT_ONLY:
        raise _unknown("linear_w", weight_format, ", ".join(WEIGHT_ONLY))
    return reference.linear_w(x, w_codes, w_scale, bias, weight_format)


def _linear_w_fake(
    x: Tensor, w_codes: Tensor, w_scale: Tensor, bias: Tensor | None, weight_format: str
) -> Tensor:
    return x.new_empty((*x.shape[:-1], w_codes.shape[0]), dtype=torch.float32)


def _unknown(op: str, found: str, known: str) -> UnknownFormat:
    return UnknownFormat(
        f"svdq::{op}", "format", f"found {found!r}; this version knows {known}", "use its artifacts"
    )


for _name, _reference, _fake in (
    ("quantize", _quantize, _quantize_fake),
    ("linear_coded", _linear_coded, _linear_coded_fake),
    ("linear_w", _linear_w, _linear_w_fake),
):
    _library.impl(_name, _reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"svdq::{_name}", _fake, lib=_library)

quantize = torch.ops.svdq.quantize.default
linear_coded = torch.ops.svdq.linear_coded.default
linear_w = torch.ops.svdq.linear_w.default


class CodedLinear(NamedTuple):
    """The operands of svdq::linear_coded, of a call in a graph."""

    codes: Any
    scale: Any
    low: Any
    w_codes: Any
    w_scale: Any
    lora_up: Any
    bias: Any
    precision: str
    w_unit: float
    w_multiplier: Any = None
