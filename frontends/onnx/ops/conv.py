"""Convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.host import Value
from svdqc.frontends.onnx.ops.windows import Window, padded, window_of
from svdqc.frontends.onnx.registry import onnx_op

CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@onnx_op("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = window_of(call, list(x.shape[2:]), list(weight.shape[2:]))
    return convolve(call, x, weight, bias, window)


def convolve(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    if window.rank not in CONVOLUTIONS:
        raise call.error(f"{window.rank} spatial axes", "reshape the model to at most 3")
    if window.is_symmetric():
        pads = window.before
    else:
        x, pads = padded(x, window, 0.0), [0] * window.rank
    function = CONVOLUTIONS[window.rank]
    groups = call.attribute("group", 1)
    result: Tensor = function(x, weight, bias, window.stride, pads, window.dilation, groups)
    return result


@onnx_op("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.dim() - 2
    if rank not in TRANSPOSED:
        raise call.error(f"{rank} spatial axes", "reshape the model to at most 3")
    stride = call.attribute("strides", [1] * rank)
    dilation = call.attribute("dilations", [1] * rank)
    groups = call.attribute("group", 1)
    extension = call.attribute("output_padding", [0] * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    full = [
        s * (size - 1) + extent for s, size, extent in zip(stride, x.shape[2:], reach, strict=True)
    ]
    before, after = _transposed_pads(call, list(x.shape[2:]), full, stride, extension)
    function = TRANSPOSED[rank]
    if before == after and all(
        isinstance(pad, int) and pad >= 0 and e < max(s, d)
        for pad, e, s, d in zip(before, extension, stride, dilation, strict=True)
    ):
        result: Tensor = function(x, weight, bias, stride, before, extension, groups, dilation)
        return result
    y = function(x, weight, None, stride, 0, 0, groups, dilation)
    # Negative pads crop; what lies beyond the full output is zero.
    crops = [(-b, e - a) for b, a, e in zip(before, after, extension, strict=True)]
    y = F.pad(y, [pad for pair in reversed(crops) for pad in pair])
    return y if bias is None else y + bias.reshape([-1] + [1] * rank)


def _transposed_pads(
    call: Call, sizes: list[Any], full: list[Any], stride: list[int], extension: list[int]
) -> tuple[list[Any], list[Any]]:
    """Pads given, or chosen so that the output gets the wanted shape."""
    rank = len(sizes)
    auto_pad = call.attribute("auto_pad", "NOTSET")
    wanted = call.attribute("output_shape")
    if wanted is None:
        if auto_pad == "NOTSET":
            pads = call.attribute("pads", [0] * 2 * rank)
            return pads[:rank], pads[rank:]
        if auto_pad == "VALID":
            return [0] * rank, [0] * rank
        wanted = [size * s for size, s in zip(sizes, stride, strict=True)]
    before, after = [], []
    for extent, add, target in zip(full, extension, wanted[-rank:], strict=True):
        total = extent + add - target
        half = total // 2
        before.append(half if auto_pad == "SAME_UPPER" else total - half)
        after.append(total - half if auto_pad == "SAME_UPPER" else half)
    return before, after


@onnx_op("ConvInteger")
def conv_integer(
    call: Call,
    x: Tensor,
    weight: Tensor,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
) -> Tensor:
    """int8 products summed in int32. Padding stands for the zero point, so 0 after its subtraction."""
    centred = x.to(torch.int32) if x_zero is None else x.to(torch.int32) - x_zero.to(torch.int32)
    kernel = weight.to(torch.int32)
    if weight_zero is not None:
        shape = [-1] + [1] * (weight.dim() - 1) if weight_zero.dim() else []
        kernel = kernel - weight_zero.to(torch.int32).reshape(shape)
    return integer_convolution(call, centred, kernel)


def integer_convolution(call: Call, x: Tensor, weight: Tensor) -> Tensor:
    """Exact: int8 products summed in f64, whose 53 bits hold 2^37 of them."""
    window = window_of(call, list(x.shape[2:]), list(weight.shape[2:]))
    exact = convolve(call, x.to(torch.float64), weight.to(torch.float64), None, window)
    return exact.to(torch.int32)


@onnx_op("Col2Im", since=18, host=(1, 2))
def col2im(call: Call, x: Tensor, image_shape: Value, block_shape: Value) -> Tensor:
    """Sum sliding blocks [batch, channels · taps, blocks] back into an image."""
    image = call.static_ints(image_shape, "the image's shape")
    block = call.static_ints(block_shape, "the block's shape")
    rank = len(image)
    stride = call.attribute("strides", [1] * rank)
    dilation = call.attribute("dilations", [1] * rank)
    pads = call.attribute("pads", [0] * 2 * rank)
    wide = [size + pads[axis] + pads[axis + rank] for axis, size in enumerate(image)]
    taps = 1
    for extent in block:
        taps *= extent
    position = torch.zeros([1, 1], dtype=torch.int64)  # [taps, blocks]: where a tap lands
    for axis in range(rank):
        count = (wide[axis] - (block[axis] - 1) * dilation[axis] - 1) // stride[axis] + 1
        tap = torch.arange(block[axis]) * dilation[axis]
        start = torch.arange(count) * stride[axis]
        along = tap.reshape(-1, 1) + start.reshape(1, -1)  # [block, count]
        joined = position.reshape(position.shape[0], 1, position.shape[1], 1) * wide[axis]
        joined = joined + along.reshape(1, along.shape[0], 1, along.shape[1])
        position = joined.reshape(
            position.shape[0] * along.shape[0], position.shape[1] * along.shape[1]
        )
    batch, channels = x.shape[0], x.shape[1] // taps
    flat = x.reshape(batch, channels, -1)
    total = 1
    for size in wide:
        total *= size
    canvas = torch.zeros([batch, channels, total], dtype=x.dtype)
    canvas = canvas.index_add(2, position.reshape(-1), flat).reshape(batch, channels, *wide)
    for axis in range(rank):
        canvas = canvas.narrow(axis + 2, pads[axis], image[axis])
    return canvas
