"""Operators that move elements around without changing them."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.errors import DataDependentError
from svdqc.frontends.onnx.host import Host, Value, host_scalar, host_vector
from svdqc.frontends.onnx.registry import onnx_op


@onnx_op("Shape", host="all")
def shape_of(call: Call, x: Value) -> Host:
    rank = len(x.shape)
    start = _clamped(call.attribute("start", 0), rank)
    end = _clamped(call.attribute("end", rank), rank)
    return host_vector(list(x.shape)[start:end])


def _clamped(index: int, rank: int) -> int:
    return min(max(index + rank if index < 0 else index, 0), rank)


@onnx_op("Size", host="all")
def size_of(call: Call, x: Value) -> Host:
    return host_scalar(prod(x.shape))


@onnx_op("Reshape", host=(1,))
def reshape(call: Call, x: Tensor, shape: Value) -> Tensor:
    sizes = call.ints(shape)
    allow_zero = call.flag("allowzero")
    resolved: list[Any] = []
    for axis, size in enumerate(sizes):
        if not allow_zero and isinstance(size, int) and size == 0:
            resolved.append(x.shape[axis])
        else:
            resolved.append(size)
    if any(isinstance(size, int) and size == 0 for size in resolved):
        # torch cannot infer -1 in an empty tensor; ONNX can, from the other sizes.
        known = prod(size for size in resolved if not _is_minus_one(size))
        if known != 0:
            return x.reshape(resolved)
        return x.reshape([0 if _is_minus_one(size) else size for size in resolved])
    return x.reshape(resolved)


def _is_minus_one(size: Any) -> bool:
    return isinstance(size, int) and size == -1


@onnx_op("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.attribute("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@onnx_op("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.attribute("perm", list(range(x.dim()))[::-1]))


@onnx_op("Squeeze", host=(1,))
def squeeze(call: Call, x: Tensor, axes: Value | None = None) -> Tensor:
    dims = call.axes("axes", axes)
    if dims is None:
        dims = [axis for axis, size in enumerate(x.shape) if isinstance(size, int) and size == 1]
    return x.squeeze(tuple(dims)) if dims else x


@onnx_op("Unsqueeze", host=(1,))
def unsqueeze(call: Call, x: Tensor, axes: Value) -> Tensor:
    dims = call.static_ints(axes)
    rank = x.dim() + len(dims)
    for dim in sorted(dim % rank for dim in dims):
        x = x.unsqueeze(dim)
    return x


@onnx_op("Concat")
def concat(call: Call, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, dim=call.required("axis"))


@onnx_op("Split", host=(1,))
def split(call: Call, x: Tensor, sizes_input: Value | None = None) -> tuple[Tensor, ...]:
    axis = call.attribute("axis", 0)
    return torch.split(x, split_sizes(call, x.shape[axis], sizes_input), dim=axis)


def split_sizes(call: Call, size: Any, sizes_input: Value | None) -> list[Any]:
    """The sizes of the parts: given, or equal ones of which the last is smaller."""
    if sizes_input is not None:
        return call.ints(sizes_input, "the sizes")
    parts = call.attribute("num_outputs", call.num_outputs)
    each = (size + parts - 1) // parts
    return [each] * (parts - 1) + [size - each * (parts - 1)]


@onnx_op("Slice", host=(1, 2, 3, 4))
def slice_(
    call: Call,
    x: Tensor,
    starts: Value,
    ends: Value,
    axes: Value | None = None,
    steps: Value | None = None,
) -> Tensor:
    first, last = call.ints(starts, "the start"), call.ints(ends, "the end")
    dims = list(range(len(first))) if axes is None else call.static_ints(axes)
    strides = [1] * len(first) if steps is None else call.static_ints(steps, "the step")
    for start, end, dim, stride in zip(first, last, dims, strides, strict=True):
        x = slice_axis(x, dim, start, end, stride)
    return x


def _strided(x: Tensor, dim: int, start: Any, end: Any, step: int) -> Tensor:
    result: Tensor = torch.ops.aten.slice.Tensor(x, dim, start, end, step)
    return result


def slice_axis(x: Tensor, dim: int, start: Any, end: Any, step: int) -> Tensor:
    """x[start:end:step] along `dim`, with Python's meaning; torch has no negative steps."""
    dim = dim % x.dim()
    if step > 0:
        # torch wants an end that fits in int64, and takes anything beyond the size as the size.
        return _strided(x, dim, start, end, step)
    size = x.shape[dim]
    if not isinstance(size, int):
        if start == -1 and end < -(2**31):
            return _strided(x.flip(dim), dim, 0, size, -step)
        raise DataDependentError(
            f"axis {dim}", "a negative step over part of a dynamic dim", "make that dim static"
        )
    positions = range(size)[slice(start, None if end < -size else end, step)]
    if not positions:
        return x.narrow(dim, 0, 0)
    begin = size - 1 - positions[0]
    end = begin + len(positions) * -step
    return _strided(x.flip(dim), dim, begin, end, -step)


@onnx_op("Expand", host=(1,))
def expand(call: Call, x: Tensor, shape: Value) -> Tensor:
    """Broadcast both ways: a size of 1 in `shape` keeps the input's."""
    sizes = call.ints(shape)
    rank = max(len(sizes), x.dim())
    wanted = [1] * (rank - len(sizes)) + list(sizes)
    own = [1] * (rank - x.dim()) + list(x.shape)
    target = [
        have if isinstance(want, int) and want == 1 else want
        for want, have in zip(wanted, own, strict=True)
    ]
    return x.expand(target)


@onnx_op("Tile", host=(1,))
def tile(call: Call, x: Tensor, repeats: Value) -> Tensor:
    return x.repeat(call.ints(repeats, "the repeats"))


@onnx_op("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    block = call.required("blocksize")
    batch, channels, height, width = x.shape
    inner = channels // (block * block)
    if call.attribute("mode", "DCR") == "DCR":
        grouped = x.reshape(batch, block, block, inner, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        grouped = x.reshape(batch, inner, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return grouped.reshape(batch, inner, height * block, width * block)


@onnx_op("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    block = call.required("blocksize")
    batch, channels, height, width = x.shape
    grouped = x.reshape(batch, channels, height // block, block, width // block, block)
    if call.attribute("mode", "DCR") == "DCR":
        moved = grouped.permute(0, 3, 5, 1, 2, 4)
    else:
        moved = grouped.permute(0, 1, 3, 5, 2, 4)
    return moved.reshape(batch, channels * block * block, height // block, width // block)


@onnx_op("ReverseSequence")
def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the first `lengths[b]` elements along the time axis, for each b of the batch axis."""
    time_axis, batch_axis = call.attribute("time_axis", 0), call.attribute("batch_axis", 1)
    moved = x.movedim((batch_axis, time_axis), (0, 1))  # [batch, time, …]
    steps = torch.arange(moved.shape[1])
    ends = lengths.to(torch.int64).unsqueeze(1)  # [batch, 1]
    source = torch.where(steps < ends, ends - 1 - steps, steps)  # [batch, time]
    rows = torch.arange(moved.shape[0]).unsqueeze(1)
    return moved[rows, source].movedim((0, 1), (batch_axis, time_axis))


@onnx_op("CenterCropPad", since=18, host=(1,))
def center_crop_pad(call: Call, x: Tensor, shape: Value) -> Tensor:
    targets = call.ints(shape)
    axes = call.attribute("axes", list(range(x.dim())))
    for axis, target in zip(axes, targets, strict=True):
        size = x.shape[axis]
        if target <= size:
            x = x.narrow(axis, (size - target) // 2, target)
            continue
        before = (target - size) // 2
        pads = [0, 0] * (x.dim() - 1 - axis % x.dim()) + [before, target - size - before]
        x = torch.nn.functional.pad(x, pads)
    return x


@onnx_op("Trilu", since=14, host=(1,))
def trilu(call: Call, x: Tensor, k: Value | None = None) -> Tensor:
    diagonal = 0 if k is None else call.static_ints(k, "the diagonal")[0]
    return torch.triu(x, diagonal) if call.flag("upper", True) else torch.tril(x, diagonal)


@onnx_op("Unique")
def unique(call: Call, x: Tensor) -> tuple[Tensor, ...]:
    """Distinct elements or slices, with first positions, inverse and counts."""
    call.host(x, "the size of the result") if x.numel() else None
    axis = call.attribute("axis")
    values, inverse, counts = torch.unique(
        x, sorted=True, return_inverse=True, return_counts=True, dim=axis
    )
    flat_inverse = inverse.reshape(-1)
    order = torch.arange(flat_inverse.numel()).flip(0)
    first = torch.empty_like(counts).scatter_(0, flat_inverse.flip(0), order)
    if not call.flag("sorted", True):
        by_position = torch.argsort(first)
        rank = torch.argsort(by_position)
        values = values.index_select(0 if axis is None else axis, by_position)
        first, counts, flat_inverse = first[by_position], counts[by_position], rank[flat_inverse]
    return values, first, flat_inverse, counts
