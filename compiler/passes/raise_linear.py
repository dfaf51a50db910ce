"""Products with stored weights → linear ops with their biases, named after the module they belong to."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from svdqc.compiler.ir.rewrite import Rewriter, aten, is_call, is_tensor, operands
from svdqc.compiler.ir.weights import WeightSpec

_MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
MOST_ONES = 1 << 16
"""A vector this long is read to see whether it is all ones."""


def matmul_of_weight(rw: Rewriter, node: Node) -> Node | None:
    """x @ w → linear(x, wᵀ) for a stored matrix w."""
    if not is_call(node, aten.matmul.default, aten.mm.default):
        return None
    x, weight = operands(node)[:2]
    if not is_tensor(x) or x.meta["val"].dim() < 2 or not _is_stored(weight, 2):
        return None
    return rw.call(aten.linear.default, x, _transposed_weight(rw, weight))


def addmm_of_weight(rw: Rewriter, node: Node) -> Node | None:
    """b + x @ w → linear(x, wᵀ, b) for a stored matrix w and a stored vector b."""
    if not is_call(node, aten.addmm.default) or not _is_stored(node.args[2], 2):
        return None
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
        return None
    weight = node.args[2]
    bias = _as_vector(rw, node.args[0], int(weight.meta["val"].shape[1]))  # type: ignore[union-attr]
    if bias is None:
        return None
    return rw.call(aten.linear.default, node.args[1], _transposed_weight(rw, weight), bias)  # type: ignore[arg-type]


def bias_into_linear(rw: Rewriter, node: Node) -> Node | None:
    """linear(x, w) + b → linear(x, w, b) for a stored vector b."""
    if not is_call(node, aten.add.Tensor) or node.kwargs.get("alpha", 1) != 1:
        return None
    for product, bias in (node.args[:2], reversed(node.args[:2])):
        if not is_call(product, aten.linear.default) or len(product.users) != 1:  # type: ignore[union-attr]
            continue
        if len(product.args) > 2 and product.args[2] is not None:  # type: ignore[union-attr]
            continue
        x, weight = product.args[:2]  # type: ignore[union-attr]
        vector = _as_vector(rw, bias, int(product.meta["val"].shape[-1]))  # type: ignore[union-attr]
        if vector is None or node.meta["val"].dim() != product.meta["val"].dim():  # type: ignore[union-attr]
            continue
        if vector.meta["val"].dtype == product.meta["val"].dtype:  # type: ignore[union-attr]
            return rw.call(aten.linear.default, x, weight, vector)
    return None


def name_after_module(rw: Rewriter, node: Node) -> Node | None:
    """The weight of a linear, where an exporter folded and renamed it, is called `<module>.weight` again."""
    if not is_call(node, aten.linear.default) or not _is_stored(node.args[1], 2):
        return None
    weight, module = node.args[1], module_of(node.meta.get("source", ""))
    name = weight.meta["weight"]  # type: ignore[union-attr]
    if not module or "." in name.partition("~")[0] or len(weight.users) != 1:  # type: ignore[union-attr]
        return None
    renamed = _derive(rw, f"{module}.weight", weight, lambda w: w)  # type: ignore[arg-type]
    return rw.call(aten.linear.default, node.args[0], renamed, *node.args[2:], **node.kwargs)


def module_of(source: str) -> str:
    """`blocks.0.attn.to_q` from itself, and from a node name such as `/blocks.0/attn/to_q/MatMul`."""
    if source.startswith("/"):
        source = ".".join(source.strip("/").split("/")[:-1])
    if not _MODULE.fullmatch(source) or source.startswith("node_"):
        return ""
    return source if "." in source or source[0].islower() else ""  # MatMul_12 is no module


def drop_unit_scale(rw: Rewriter, node: Node) -> Node | None:
    """layer_norm(x, ones, b) → layer_norm(x, None, b): formats that demand a scale get one of ones."""
    if not is_call(node, aten.layer_norm.default) or len(node.args) < 3:
        return None
    weight = node.args[2]
    if not (isinstance(weight, Node) and weight.op == "get_attr"):
        return None
    if weight.meta["val"].numel() > MOST_ONES:
        return None
    if not bool((rw.program.weights.load(weight.meta["weight"]) == 1).all()):
        return None
    return rw.call(aten.layer_norm.default, *node.args[:2], None, *node.args[3:])


def _is_stored(value: Any, rank: int) -> bool:
    return isinstance(value, Node) and value.op == "get_attr" and value.meta["val"].dim() == rank


def _as_vector(rw: Rewriter, value: Any, size: int) -> Node | None:
    """A stored [size], or [1, …, 1, size] as one."""
    if not (isinstance(value, Node) and value.op == "get_attr"):
        return None
    shape = list(value.meta["val"].shape)
    if not shape or shape[-1] != size or value.meta["val"].numel() != size:
        return None
    if len(shape) == 1:
        return value
    return _derive(rw, value.meta["weight"], value, lambda b: b.reshape(-1))


def _transposed_weight(rw: Rewriter, weight: Node) -> Node:
    return _derive(rw, weight.meta["weight"], weight, lambda w: w.t().contiguous())


def _derive(
    rw: Rewriter, name: str, weight: Node, change: Callable[[torch.Tensor], torch.Tensor]
) -> Node:
    """A weight computed from a stored one when it is needed, under a name of its own."""
    store, old = rw.program.weights, weight.meta["weight"]
    spec = store.spec(old)
    shape = tuple(change(torch.empty(spec.shape, dtype=spec.dtype, device="meta")).shape)
    unique, count = name if name not in store else f"{name}~raised", 0
    while unique in store:
        count += 1
        unique = f"{name}~raised.{count}"
    store.derive(unique, WeightSpec(shape, spec.dtype), lambda: change(store.load(old)))
    return rw.weight(unique)
