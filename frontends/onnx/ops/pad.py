"""Padding in all modes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.host import Value
from svdqc.frontends.onnx.registry import onnx_op

TORCH_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@onnx_op("Pad", host=(1, 2, 3))
def pad(
    call: Call,
    x: Tensor,
    pads_input: Value,
    fill: Value | None = None,
    axes_input: Value | None = None,
) -> Tensor:
    pads = call.ints(pads_input, "the padding")
    axes = list(range(x.dim())) if axes_input is None else call.static_ints(axes_input)
    before: list[Any] = [0] * x.dim()
    after: list[Any] = [0] * x.dim()
    for position, axis in enumerate(axes):
        before[axis % x.dim()] = pads[position]
        after[axis % x.dim()] = pads[position + len(axes)]
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        value = 0 if fill is None else call.host(fill, "the fill value").number()
        return _constant(x, before, after, value)
    touched = [axis for axis in range(x.dim()) if not _zero(before[axis], after[axis])]
    if not touched:
        return x
    if mode != "wrap" and _torch_has(x, touched, before, after, mode):
        flat = [p for axis in reversed(range(2, x.dim())) for p in (before[axis], after[axis])]
        return F.pad(x, flat, mode=TORCH_MODES[mode])
    for axis in touched:
        positions = torch.arange(-before[axis], x.shape[axis] + after[axis])
        x = torch.index_select(x, axis, _source(positions, x.shape[axis], mode))
    return x


def _constant(x: Tensor, before: list[Any], after: list[Any], value: Any) -> Tensor:
    flat = [p for axis in reversed(range(x.dim())) for p in (before[axis], after[axis])]
    while len(flat) > 2 and _zero(flat[-2], flat[-1]):
        flat = flat[:-2]
    if x.dtype == torch.bool:
        return F.pad(x.to(torch.uint8), flat, value=int(value)).to(torch.bool)
    return F.pad(x, flat, value=value)


def _zero(*pads: Any) -> bool:
    return all(isinstance(pad, int) and pad == 0 for pad in pads)


def _torch_has(
    x: Tensor, touched: list[int], before: list[Any], after: list[Any], mode: str
) -> bool:
    """Whether F.pad has this case: floats, image axes of [batch, channels, …], no cropping."""
    if x.dim() not in (3, 4, 5) or touched[0] < 2 or not x.dtype.is_floating_point:
        return False
    for axis in touched:
        pads = (before[axis], after[axis])
        if not all(isinstance(pad, int) and pad >= 0 for pad in pads):
            return False
        size = x.shape[axis]
        if mode == "reflect" and (not isinstance(size, int) or max(pads) >= size):
            return False
    return True


def _source(positions: Tensor, size: Any, mode: str) -> Tensor:
    """Where an output position, relative to the input's start, reads from."""
    if mode == "edge":
        return positions.clamp(0, size - 1)
    if mode == "wrap":
        return torch.remainder(positions, size)
    if isinstance(size, int) and size == 1:
        return torch.zeros_like(positions)
    folded = torch.remainder(positions, 2 * (size - 1))
    return torch.where(folded < size, folded, 2 * (size - 1) - folded)
