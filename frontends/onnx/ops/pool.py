"""Pools."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.host import Value
from svdqc.frontends.onnx.ops.windows import Window, padded, stacked, window_of
from svdqc.frontends.onnx.registry import onnx_op

MAX_POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@onnx_op("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    window = window_of(call, list(x.shape[2:]), call.required("kernel_shape"))
    wants_indices = call.wants(1)
    simple = window.is_symmetric() and all(
        2 * pad <= k for pad, k in zip(window.before, window.kernel, strict=True)
    )
    if simple and not wants_indices and x.dtype.is_floating_point and window.rank in MAX_POOLS:
        pool = MAX_POOLS[window.rank]
        result: Tensor = pool(x, window.kernel, window.stride, window.before, window.dilation)
        return result
    lowest = float("-inf") if x.dtype.is_floating_point else float(torch.iinfo(x.dtype).min)
    taps = stacked(padded(x, window, lowest), window)
    values, tap = taps.max(dim=2)
    if not wants_indices:
        return values
    return values, _linear_indices(x, window, tap, call.attribute("storage_order", 0))


def _linear_indices(x: Tensor, window: Window, tap: Tensor, storage_order: int) -> Tensor:
    """Positions in the flattened x of the chosen taps [batch, channels, out…]."""
    spatial = list(x.shape[2:])
    coordinates = []
    rest = tap
    for axis in reversed(range(window.rank)):
        offset = torch.remainder(rest, window.kernel[axis])
        rest = torch.div(rest, window.kernel[axis], rounding_mode="floor")
        steps = torch.arange(tap.shape[axis + 2]) * window.stride[axis] - window.before[axis]
        view = [-1 if a == axis else 1 for a in range(window.rank)]
        coordinates.append(offset * window.dilation[axis] + steps.reshape(view))
    coordinates.reverse()
    axes = range(window.rank) if storage_order == 0 else reversed(range(window.rank))
    linear = torch.zeros_like(tap)
    for axis in axes:
        linear = linear * spatial[axis] + coordinates[axis]
    plane = torch.arange(x.shape[0] * x.shape[1]).reshape(
        [x.shape[0], x.shape[1]] + [1] * window.rank
    )
    return linear + plane * prod(spatial)


@onnx_op("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    window = window_of(call, list(x.shape[2:]), call.required("kernel_shape"))
    count_pads = call.flag("count_include_pad")
    unpadded = all(isinstance(pad, int) and pad == 0 for pad in window.before)
    dense = all(d == 1 for d in window.dilation)
    small = all(2 * pad <= k for pad, k in zip(window.before, window.kernel, strict=True))
    simple = window.is_symmetric() and dense and (unpadded or (count_pads and small))
    if simple and window.rank in AVERAGE_POOLS:
        pool = AVERAGE_POOLS[window.rank]
        result: Tensor = pool(x, window.kernel, window.stride, window.before)
        return result
    total = stacked(padded(x, window, 0.0), window).sum(dim=2)
    ones = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype)
    if count_pads:
        # The pads count as elements, what ceil_mode adds does not.
        ones = padded(ones, window, 1.0, with_extra=False)
        extra = [pad for end in reversed(window.extra) for pad in (0, end)]
        ones = F.pad(ones, extra)
    else:
        ones = padded(ones, window, 0.0)
    return total / stacked(ones, window).sum(dim=2)


@onnx_op("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    window = window_of(call, list(x.shape[2:]), call.required("kernel_shape"))
    p = call.attribute("p", 2)
    taps = stacked(padded(x, window, 0.0).abs() ** p, window)
    return torch.pow(taps.sum(dim=2), 1.0 / p)


@onnx_op("GlobalAveragePool")
def global_average_pool(call: Call, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


@onnx_op("GlobalMaxPool")
def global_max_pool(call: Call, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), keepdim=True)


@onnx_op("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    p = call.attribute("p", 2)
    return torch.pow((x.abs() ** p).sum(list(range(2, x.dim())), keepdim=True), 1.0 / p)


@onnx_op("MaxUnpool", host=(2,))
def max_unpool(call: Call, x: Tensor, indices: Tensor, output_shape: Value | None = None) -> Tensor:
    """Scatter values to the linear positions of a MaxPool. The indices count in the unpadded output."""
    kernel = call.required("kernel_shape")
    rank = len(kernel)
    stride = call.attribute("strides", [1] * rank)
    pads = call.attribute("pads", [0] * 2 * rank)
    inferred = [
        (size - 1) * stride[axis] + kernel[axis] - pads[axis] - pads[axis + rank]
        for axis, size in enumerate(x.shape[2:])
    ]
    source = [x.shape[0], x.shape[1], *inferred]
    flat = torch.zeros([prod(source)], dtype=x.dtype)
    canvas = flat.scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(source)
    if output_shape is None:
        return canvas
    wanted = call.ints(output_shape)
    # Indices were made for the inferred shape; a larger canvas is filled with zeros behind it.
    ends = [want - have for want, have in zip(wanted[2:], inferred, strict=True)]
    return F.pad(canvas, [pad for end in reversed(ends) for pad in (0, end)])
