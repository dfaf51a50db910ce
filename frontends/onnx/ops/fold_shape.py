"""Moving host values around: what a vector of sizes goes through on its way to a Reshape."""

from __future__ import annotations

from typing import Any

import numpy as np

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.host import SYMBOLS, Host, host_array
from svdqc.frontends.onnx.ops.shape import split_sizes
from svdqc.frontends.onnx.registry import host_op


@host_op("Concat")
def fold_concat(call: Call, *parts: Host) -> Any:
    joined = np.concatenate([part.items for part in parts], axis=call.required("axis"))
    return Host(joined, parts[0].dtype)


@host_op("Gather")
def fold_gather(call: Call, x: Host, indices: Host) -> Any:
    if not indices.is_static():
        return NotImplemented
    index = indices.items.astype(np.int64)
    return host_array(np.take(x.items, index, axis=call.attribute("axis", 0)), x.dtype)


@host_op("Slice")
def fold_slice(
    call: Call,
    x: Host,
    starts: Host,
    ends: Host,
    axes: Host | None = None,
    steps: Host | None = None,
) -> Any:
    if any(value is not None and not value.is_static() for value in (starts, ends, axes, steps)):
        return NotImplemented
    first, last = call.static_ints(starts), call.static_ints(ends)
    dims = list(range(len(first))) if axes is None else call.static_ints(axes)
    strides = [1] * len(first) if steps is None else call.static_ints(steps)
    items = x.items
    for start, end, dim, step in zip(first, last, dims, strides, strict=True):
        below = step < 0 and end < -items.shape[dim]
        picked: list[Any] = [slice(None)] * items.ndim
        picked[dim] = slice(start, None if below else end, step)
        items = items[tuple(picked)]
    return Host(items, x.dtype)


@host_op("Squeeze")
def fold_squeeze(call: Call, x: Host, axes: Host | None = None) -> Any:
    dims = call.axes("axes", axes)
    items = x.items.reshape(
        [
            size
            for axis, size in enumerate(x.shape)
            if (size != 1 if dims is None else axis not in {dim % len(x.shape) for dim in dims})
        ]
    )
    return Host(items, x.dtype)


@host_op("Unsqueeze")
def fold_unsqueeze(call: Call, x: Host, axes: Host) -> Any:
    dims = call.static_ints(axes)
    rank = len(x.shape) + len(dims)
    return Host(np.expand_dims(x.items, tuple(dim % rank for dim in dims)), x.dtype)


@host_op("Reshape")
def fold_reshape(call: Call, x: Host, shape: Host) -> Any:
    if not shape.is_static():
        return NotImplemented
    allow_zero = call.flag("allowzero")
    sizes = [
        x.shape[axis] if size == 0 and not allow_zero else size
        for axis, size in enumerate(call.static_ints(shape))
    ]
    return Host(x.items.reshape(sizes), x.dtype)


@host_op("Flatten")
def fold_flatten(call: Call, x: Host) -> Any:
    axis = call.attribute("axis", 1)
    rows = int(np.prod(x.shape[:axis])) if axis else 1
    return Host(x.items.reshape(rows, -1), x.dtype) if x.numel else NotImplemented


@host_op("Transpose")
def fold_transpose(call: Call, x: Host) -> Any:
    return Host(x.items.transpose(call.attribute("perm")), x.dtype)


@host_op("Expand")
def fold_expand(call: Call, x: Host, shape: Host) -> Any:
    if not shape.is_static() or any(size < 0 for size in call.static_ints(shape)):
        return NotImplemented
    target = np.broadcast_shapes(x.shape, tuple(call.static_ints(shape)))
    return _bounded(np.broadcast_to(x.items, target), x)


@host_op("Tile")
def fold_tile(call: Call, x: Host, repeats: Host) -> Any:
    if not repeats.is_static():
        return NotImplemented
    return _bounded(np.tile(x.items, call.static_ints(repeats)), x)


def _bounded(items: Any, like: Host, most: int = 4096) -> Any:
    """Only small results stay on the host."""
    return Host(items, like.dtype) if items.size <= most else NotImplemented


@host_op("Split")
def fold_split(call: Call, x: Host, sizes_input: Host | None = None) -> Any:
    axis = call.attribute("axis", 0)
    sizes = split_sizes(call, x.shape[axis], sizes_input)
    if any(isinstance(size, SYMBOLS) for size in sizes):
        return NotImplemented
    ends = np.cumsum(sizes)[:-1].tolist()
    return [Host(part, x.dtype) for part in np.split(x.items, ends, axis=axis)]


@host_op("ConstantOfShape")
def fold_constant_of_shape(call: Call, shape: Host) -> Any:
    """Small vectors of a known length can become part of a shape; anything larger is a tensor."""
    value = call.attribute("value")
    sizes = shape.flat()
    if value is None or len(sizes) > 1 or value.dtype.is_floating_point:
        return NotImplemented
    if not shape.is_static() or any(size > 64 for size in sizes):
        return NotImplemented
    items = np.full(tuple(sizes), None, dtype=object)
    items[...] = value.number()
    return Host(items, value.dtype)
