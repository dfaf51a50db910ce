"""Operators that make tensors from sizes and numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.dtypes import torch_dtype
from svdqc.frontends.onnx.host import MOST_HOST_ELEMENTS, SYMBOLS, Host, Value, host_vector
from svdqc.frontends.onnx.registry import onnx_op


@onnx_op("ConstantOfShape", host="all")
def constant_of_shape(call: Call, shape: Value) -> Tensor:
    value = call.attribute("value")
    sizes = call.ints(shape)
    if value is None:
        return torch.zeros(sizes, dtype=torch.float32)
    return torch.full(sizes, value.number(), dtype=value.dtype)


@onnx_op("Range", host="all")
def range_(call: Call, start: Value, limit: Value, delta: Value) -> Value:
    first, last, step = (
        call.host(value, "the length of the result").number() for value in (start, limit, delta)
    )
    dtype = start.dtype
    if dtype in (torch.float16, torch.bfloat16):
        return torch.arange(first, last, step, dtype=torch.float32).to(dtype)

    def tensor() -> Tensor:
        return torch.arange(first, last, step, dtype=dtype)

    numbers = (first, last, step)
    if dtype in (torch.int64, torch.int32) and not any(isinstance(n, SYMBOLS) for n in numbers):
        values = range(first, last, step)
        if len(values) <= MOST_HOST_ELEMENTS:
            return Host(host_vector(values, dtype).items, dtype, tensor)
    return tensor()


@onnx_op("EyeLike")
def eye_like(call: Call, x: Tensor) -> Tensor:
    code = call.attribute("dtype")
    dtype = x.dtype if code is None else torch_dtype(code, call.node.label)
    rows = torch.arange(x.shape[0]).unsqueeze(1)
    columns = torch.arange(x.shape[1]).unsqueeze(0)
    return torch.eq(columns - rows, call.attribute("k", 0)).to(dtype)


@onnx_op("OneHot", host=(1,))
def one_hot(call: Call, indices: Tensor, depth: Value, values: Tensor) -> Tensor:
    """values[1] where a class matches the index (negative ones count from the end), else values[0]."""
    count = int(call.static_ints(depth, "the depth")[0])
    axis = call.attribute("axis", -1)
    index = indices.to(torch.int64)
    index = torch.where(index < 0, index + count, index)
    rank = indices.dim() + 1
    axis = axis % rank
    classes = torch.arange(count).reshape([count if a == axis else 1 for a in range(rank)])
    return torch.where(index.unsqueeze(axis) == classes, values[1], values[0])
