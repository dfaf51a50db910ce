"""Gathering and scattering."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svdqc.frontends.onnx.call import Call, require_tensor
from svdqc.frontends.onnx.host import Host, Value
from svdqc.frontends.onnx.registry import onnx_op

# ONNX calls it reduction, torch reduce.
REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@onnx_op("Gather", host=(1,))
def gather(call: Call, x: Tensor, indices: Value) -> Tensor:
    axis = call.attribute("axis", 0) % x.dim()
    if isinstance(indices, Host) and indices.shape == ():
        return torch.select(x, axis, indices.number())
    index = require_tensor(indices)
    if axis == 0 and x.dim() == 2 and _is_table(call):
        return torch.nn.functional.embedding(_wrapped(index, x.shape[0]), x)
    flat = _wrapped(index, x.shape[axis]).reshape(-1)
    picked = torch.index_select(x, axis, flat)
    if index.dim() == 1:
        return picked
    return picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _is_table(call: Call) -> bool:
    """Whether rows of a weight are looked up: what PyTorch calls an embedding."""
    return 0 in call.node.constant_inputs and 1 not in call.node.constant_inputs


def _wrapped(index: Tensor, size: Any) -> Tensor:
    """Negative indices count from the end."""
    wide = index.to(torch.int64)
    return torch.where(wide < 0, wide + size, wide)


@onnx_op("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.attribute("axis", 0)
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


@onnx_op("GatherND")
def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Each last-axis tuple of `indices` addresses a slice of x, behind the shared batch dims."""
    batch_dims = call.attribute("batch_dims", 0)
    depth = indices.shape[-1]
    batch = [
        torch.arange(x.shape[axis]).reshape(
            [-1 if a == axis else 1 for a in range(indices.dim() - 1)]
        )
        for axis in range(batch_dims)
    ]
    columns = [
        _wrapped(indices[..., column], x.shape[batch_dims + column]) for column in range(depth)
    ]
    return x[(*batch, *columns)]


@onnx_op("ScatterElements")
def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = call.attribute("axis", 0)
    index = _wrapped(indices, x.shape[axis])
    reduction = call.attribute("reduction", "none")
    if reduction == "none":
        return torch.scatter(x, axis, index, updates)
    return torch.scatter_reduce(x, axis, index, updates, REDUCTIONS[reduction])


@onnx_op("ScatterND")
def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Write slices of `updates` where the last-axis tuples of `indices` point."""
    depth = indices.shape[-1]
    columns = tuple(_wrapped(indices[..., column], x.shape[column]) for column in range(depth))
    reduction = call.attribute("reduction", "none")
    if reduction == "none":
        return torch.index_put(x, columns, updates)
    if reduction == "add":
        return torch.index_put(x, columns, updates, accumulate=True)
    # Linear positions of the slices, so that repeated ones reduce into each other.
    position = torch.zeros_like(columns[0])
    for column, index in enumerate(columns):
        position = position * x.shape[column] + index
    tail = list(x.shape[depth:])
    rows = 1
    for size in x.shape[:depth]:
        rows = rows * size
    flat = x.reshape([rows, *tail])
    source = updates.reshape([-1, *tail])
    target = position.reshape([-1] + [1] * len(tail)).expand_as(source)
    reduced = torch.scatter_reduce(flat, 0, target, source, REDUCTIONS[reduction])
    return reduced.reshape(x.shape)


@onnx_op("TensorScatter", since=24)
def tensor_scatter(
    call: Call, cache: Tensor, update: Tensor, write_indices: Tensor | None = None
) -> Tensor:
    """Write `update` into `cache` along `axis`, per batch row from its own position on."""
    axis = call.attribute("axis", -2) % cache.dim()
    length, size = update.shape[axis], cache.shape[axis]
    steps = torch.arange(length)  # [length]
    if write_indices is None:
        positions = steps.unsqueeze(0).expand(cache.shape[0], length)
    else:
        positions = write_indices.to(torch.int64).unsqueeze(1) + steps  # [batch, length]
    if call.attribute("mode", "linear") == "circular":
        positions = torch.remainder(positions, size)
    view = [1] * cache.dim()
    view[0], view[axis] = cache.shape[0], length
    return torch.scatter(cache, axis, positions.reshape(view).expand_as(update), update)


@onnx_op("Compress")
def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    chosen = call.ints(condition, "the size of the result")
    positions = torch.tensor([i for i, keep in enumerate(chosen) if keep], dtype=torch.int64)
    axis = call.attribute("axis")
    return torch.index_select(x.reshape(-1) if axis is None else x, axis or 0, positions)


@onnx_op("NonZero")
def non_zero(call: Call, x: Tensor) -> Tensor:
    call.host(x, "the size of the result")
    return torch.nonzero(x).t()
