"""layer_norm, rms_norm, group_norm, instance_norm, batch_norm, softmax, variances → means and pointwise ops."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from svdqc.compiler.ir.rewrite import Rewriter, argument, aten, operands
from svdqc.compiler.passes.rules import Rules, shape_of

NORM_RULES = Rules()


def _affine(rw: Rewriter, x: Node, weight: Any, bias: Any) -> Node:
    if weight is not None:
        x = rw.call(aten.mul.Tensor, x, weight)
    if bias is not None:
        x = rw.call(aten.add.Tensor, x, bias)
    return x


def _standardize(rw: Rewriter, x: Node, axes: list[int], eps: float) -> Node:
    """(x - mean) / sqrt(var + eps), the variance from centred values."""
    mean = rw.call(aten.mean.dim, x, axes, True)
    centred = rw.call(aten.sub.Tensor, x, mean)
    square = rw.call(aten.mul.Tensor, centred, centred)
    variance = rw.call(aten.mean.dim, square, axes, True)
    inverse = rw.call(aten.rsqrt.default, rw.call(aten.add.Tensor, variance, eps))
    return rw.call(aten.mul.Tensor, centred, inverse)


@NORM_RULES.of(aten.layer_norm.default)
def _layer_norm(rw: Rewriter, node: Node) -> Node:
    axes = [-1 - a for a in range(len(node.args[1]))]  # type: ignore[arg-type]
    x = _standardize(rw, node.args[0], axes, argument(node, 4, "eps", 1e-5))  # type: ignore[arg-type]
    return _affine(rw, x, argument(node, 2, "weight"), argument(node, 3, "bias"))


@NORM_RULES.of(aten.native_layer_norm.default)
def _native_layer_norm(rw: Rewriter, node: Node) -> Node | None:
    if any(not _is_item(user, 0) for user in node.users):
        return None
    axes = [-1 - a for a in range(len(node.args[1]))]  # type: ignore[arg-type]
    x = _standardize(rw, node.args[0], axes, node.args[4])  # type: ignore[arg-type]
    result = _affine(rw, x, node.args[2], node.args[3])
    for user in list(node.users):
        rw.replace(user, result)
    return result


def _is_item(node: Node, index: int) -> bool:
    return getattr(node.target, "__name__", "") == "getitem" and bool(node.args[1] == index)


@NORM_RULES.of(aten.rms_norm.default)
def _rms_norm(rw: Rewriter, node: Node) -> Node:
    x = node.args[0]
    axes = [-1 - a for a in range(len(node.args[1]))]  # type: ignore[arg-type]
    eps = argument(node, 3, "eps")
    if eps is None:
        eps = torch.finfo(x.meta["val"].dtype).eps  # type: ignore[union-attr]
    mean_square = rw.call(aten.mean.dim, rw.call(aten.mul.Tensor, x, x), axes, True)
    inverse = rw.call(aten.rsqrt.default, rw.call(aten.add.Tensor, mean_square, eps))
    return _affine(rw, rw.call(aten.mul.Tensor, x, inverse), argument(node, 2, "weight"), None)


@NORM_RULES.of(aten.group_norm.default)
def _group_norm(rw: Rewriter, node: Node) -> Node:
    """Groups become an axis of their own: [N, C, …] → [N, groups, C / groups, …]."""
    x, groups = node.args[0], int(node.args[1])  # type: ignore[arg-type]
    weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias")
    eps = argument(node, 4, "eps", 1e-5)
    batch, channels, *space = rw.sizes(x)  # type: ignore[arg-type]
    width = int(channels) // groups
    grouped = rw.call(aten.reshape.default, x, [batch, groups, width, *space])
    normal = _standardize(rw, grouped, list(range(2, 3 + len(space))), eps)

    def per_channel(vector: Any) -> Any:
        return (
            None
            if vector is None
            else rw.call(aten.reshape.default, vector, [groups, width, *[1] * len(space)])
        )

    normal = _affine(rw, normal, per_channel(weight), per_channel(bias))
    return rw.call(aten.reshape.default, normal, [batch, channels, *space])


@NORM_RULES.of(aten.instance_norm.default)
def _instance_norm(rw: Rewriter, node: Node) -> Node:
    """The statistics of each picture and channel, or stored ones as in batch_norm."""
    x, weight, bias, mean, variance, own_statistics, momentum, eps = node.args[:8]
    if not own_statistics:
        stored = (x, weight, bias, mean, variance, False, momentum, eps, False)
        return rw.call(aten.batch_norm.default, *stored)
    space = range(2, len(shape_of(x)))  # type: ignore[arg-type]

    def per_channel(vector: Any) -> Any:
        shape = [-1, *[1 for _ in space]]
        return None if vector is None else rw.call(aten.reshape.default, vector, shape)

    normal = _standardize(rw, x, list(space), eps)  # type: ignore[arg-type]
    return _affine(rw, normal, per_channel(weight), per_channel(bias))


@NORM_RULES.of(aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
def _batch_norm(rw: Rewriter, node: Node) -> Node | None:
    """Inference: x * (w / sqrt(var + eps)) + (b - mean * w / sqrt(var + eps))."""
    x, weight, bias, mean, variance = node.args[:5]
    legit = node.target is not aten.batch_norm.default
    eps = node.args[6] if legit else node.args[7]
    rank = len(shape_of(x))  # type: ignore[arg-type]

    def per_channel(vector: Any) -> Node:
        return rw.call(aten.reshape.default, vector, [-1, *[1] * (rank - 2)])

    inverse = rw.call(aten.rsqrt.default, rw.call(aten.add.Tensor, per_channel(variance), eps))
    result = rw.call(aten.mul.Tensor, rw.call(aten.sub.Tensor, x, per_channel(mean)), inverse)
    result = _affine(
        rw,
        result,
        None if weight is None else per_channel(weight),
        None if bias is None else per_channel(bias),
    )
    if legit:
        for user in list(node.users):
            rw.replace(user, result)
    return result


@NORM_RULES.of(
    aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default
)
def _softmax(rw: Rewriter, node: Node) -> Node:
    x, axis = node.args[0], [int(node.args[1])]  # type: ignore[arg-type]
    dtype = argument(node, 2, "dtype") if "int" in str(node.target) else None
    if dtype is not None:
        x = rw.call(aten._to_copy.default, x, dtype=dtype)
    shifted = rw.call(aten.sub.Tensor, x, rw.call(aten.amax.default, x, axis, True))
    exponential = rw.call(aten.exp.default, shifted)
    total = rw.call(aten.sum.dim_IntList, exponential, axis, True)
    if "log" in str(node.target):
        return rw.call(aten.sub.Tensor, shifted, rw.call(aten.log.default, total))
    return rw.call(aten.div.Tensor, exponential, total)


@NORM_RULES.of(aten.var_mean.correction, aten.std_mean.correction)
def _variance_and_mean(rw: Rewriter, node: Node) -> Node | None:
    """var_mean(x) → (var(x), mean(x)), for those that are read."""
    x, axes = operands(node)[0], argument(node, 1, "dim")
    keepdim = bool(node.kwargs.get("keepdim", False))
    axes = list(range(len(shape_of(x)))) if axes is None else list(axes)
    spread = aten.std if node.target is aten.std_mean.correction else aten.var
    for item in list(node.users):
        if item.args[1] == 0:
            result = rw.call(spread.correction, x, axes, **node.kwargs)
        else:
            result = rw.call(aten.mean.dim, x, axes, keepdim)
        rw.replace(item, result)
    return None


@NORM_RULES.of(aten.var.correction, aten.std.correction)
def _var(rw: Rewriter, node: Node) -> Node | None:
    x, axes = operands(node)[0], argument(node, 1, "dim")
    correction: Any = node.kwargs.get("correction", 1)
    keepdim = bool(node.kwargs.get("keepdim", False))
    axes = list(range(len(shape_of(x)))) if axes is None else list(axes)
    count = math.prod(shape_of(x)[a] for a in axes)
    if not isinstance(count, int):
        return None
    mean = rw.call(aten.mean.dim, x, axes, True)
    centred = rw.call(aten.sub.Tensor, x, mean)
    total = rw.call(aten.sum.dim_IntList, rw.call(aten.mul.Tensor, centred, centred), axes, keepdim)
    correction = 1 if correction is None else correction
    variance = rw.call(aten.mul.Tensor, total, 1.0 / max(count - correction, 1e-300))
    return rw.call(aten.sqrt.default, variance) if "std" in str(node.target) else variance
