"""Normalizations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.dtypes import torch_dtype
from svdqc.frontends.onnx.registry import onnx_op


@onnx_op("LayerNormalization", since=17)
def layer_normalization(
    call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    axis = call.attribute("axis", -1) % x.dim()
    epsilon = call.attribute("epsilon", 1e-5)
    sizes = x.shape[axis:]
    stash = torch_dtype(call.attribute("stash_type", 1), call.node.label)
    fits = tuple(weight.shape) == tuple(sizes) and (
        bias is None or tuple(bias.shape) == tuple(sizes)
    )
    if fits and not call.wants(1) and not call.wants(2):
        return F.layer_norm(x, list(sizes), weight, bias, epsilon)
    wide = x.to(stash)
    dims = list(range(axis, x.dim()))
    mean = wide.mean(dims, keepdim=True)
    centred = wide - mean
    inverse = torch.rsqrt((centred * centred).mean(dims, keepdim=True) + epsilon)
    y = (centred * inverse).to(x.dtype) * weight
    return (y if bias is None else y + bias), mean, inverse


@onnx_op("RMSNormalization", since=23)
def rms_normalization(call: Call, x: Tensor, weight: Tensor) -> Tensor:
    axis = call.attribute("axis", -1) % x.dim()
    epsilon = call.attribute("epsilon", 1e-5)
    sizes = list(x.shape[axis:])
    stash = torch_dtype(call.attribute("stash_type", 1), call.node.label)
    if list(weight.shape) == sizes and x.dtype == weight.dtype and x.dtype.itemsize <= 4:
        return F.rms_norm(x, sizes, weight, epsilon)
    wide = x.to(stash)
    dims = list(range(axis, x.dim()))
    inverse = torch.rsqrt((wide * wide).mean(dims, keepdim=True) + epsilon)
    return (wide * inverse).to(weight.dtype) * weight


@onnx_op("GroupNormalization", since=18)
def group_normalization_per_group(call: Call, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Opset 18: one scale and bias for each group."""
    groups = call.required("num_groups")
    repeats = x.shape[1] // groups
    return F.group_norm(
        x,
        groups,
        weight.repeat_interleave(repeats),
        bias.repeat_interleave(repeats),
        call.attribute("epsilon", 1e-5),
    )


@onnx_op("GroupNormalization", since=21)
def group_normalization(call: Call, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Since opset 21: one scale and bias for each channel."""
    groups, epsilon = call.required("num_groups"), call.attribute("epsilon", 1e-5)
    return F.group_norm(x, groups, weight, bias, epsilon)


@onnx_op("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A group normalization with one channel in each group."""
    return F.group_norm(x, int(x.shape[1]), weight, bias, call.attribute("epsilon", 1e-5))


@onnx_op("BatchNormalization")
def batch_normalization(
    call: Call, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    epsilon = call.attribute("epsilon", 1e-5)
    if not call.flag("training_mode"):
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)
    momentum = call.attribute("momentum", 0.9)
    dims = [axis for axis in range(x.dim()) if axis != 1]
    batch_mean = x.mean(dims)
    batch_variance = x.var(dims, correction=0)
    y = F.batch_norm(x, batch_mean, batch_variance, weight, bias, False, 0.0, epsilon)
    return (
        y,
        mean * momentum + batch_mean * (1 - momentum),
        variance * momentum + batch_variance * (1 - momentum),
    )


@onnx_op("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """Slices of norm 0 stay 0."""
    norm = torch.linalg.vector_norm(
        x, call.attribute("p", 2), dim=call.attribute("axis", -1), keepdim=True
    )
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@onnx_op("LRN")
def local_response_normalization(call: Call, x: Tensor) -> Tensor:
    size = call.required("size")
    squares = (x * x).unsqueeze(1)  # [batch, 1, channels, …]
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    padded = F.pad(squares, [0, 0] * (x.dim() - 2) + [before, after])
    window = sum(padded.narrow(2, offset, x.shape[1]) for offset in range(size))
    assert isinstance(window, Tensor)
    alpha, beta = call.attribute("alpha", 1e-4), call.attribute("beta", 0.75)
    base = call.attribute("bias", 1.0) + alpha / size * window.squeeze(1)
    return torch.div(x, torch.pow(base, beta))


@onnx_op("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    dims = call.attribute("axes", [0, 2, 3])
    mean = x.mean(dims, keepdim=True)
    deviation = torch.sqrt((x * x).mean(dims, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)
