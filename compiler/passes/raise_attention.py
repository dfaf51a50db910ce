"""softmax(q · kᵀ · scale + mask) · v → scaled_dot_product_attention(q, k, v, mask, scale)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from svdqc.compiler.ir.rewrite import Rewriter, aten, is_call, is_tensor, operands

_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SOFTMAX = (aten.softmax.int, aten._softmax.default)
_RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


@dataclass
class _Scores:
    """product: q · kᵀ; scale: its factors outside of q and k; mask: what is added, or a bool tensor of what is kept."""

    product: Node
    scale: float
    mask: Node | None


def attention(rw: Rewriter, node: Node) -> Node | str | None:
    """matmul(softmax(matmul(q, kᵀ) · scale + mask), v) → attention; q and k may each be scaled."""
    if not is_call(node, *_PRODUCTS):
        return None
    weights, v = operands(node)[:2]
    softmax = _softmax_of(weights)
    if softmax is None or not is_tensor(v):
        return None
    axis = int(softmax.args[1])  # type: ignore[arg-type]
    if axis not in (-1, softmax.meta["val"].dim() - 1):
        return "the softmax is not over the keys"
    scores = _scores(rw, softmax.args[0])
    if isinstance(scores, str):
        return scores
    q, scale = _unscaled(scores.product.args[0], scores.scale)
    transposed, scale = _unscaled(scores.product.args[1], scale)
    if not (is_tensor(q) and is_tensor(transposed)):
        return "its operands are not tensors"
    q, k, v = (without_cast(x) for x in (q, _transpose_of(rw, transposed), v))
    values = [x.meta["val"] for x in (q, k, v)]
    if len({str(x.shape[:-2]) for x in values}) != 1 or values[0].dim() < 3:
        return "the batches of q, k and v differ"
    if not all(isinstance(x.shape[-1], int) for x in values):
        return "the size of a head varies"
    if len({x.dtype for x in values}) != 1:
        return "q, k and v have different types"
    mask = scores.mask
    if mask is not None:
        if mask.meta["val"].dim() < 2:
            mask = rw.call(aten.unsqueeze.default, mask, 0)
        if mask.meta["val"].dtype not in (torch.bool, values[0].dtype):
            mask = rw.call(aten._to_copy.default, mask, dtype=values[0].dtype)
    result = rw.call(
        aten.scaled_dot_product_attention.default, q, k, v, mask, 0.0, False, scale=scale
    )
    if result.meta["val"].dtype != node.meta["val"].dtype:
        result = rw.call(aten._to_copy.default, result, dtype=node.meta["val"].dtype)
    return result


def without_cast(node: Node) -> Node:
    """The value before casts between floating types: all are float32 in the end."""
    while is_call(node, aten._to_copy.default):
        source = operands(node)[0]
        if not (is_tensor(source) and _is_float(source) and _is_float(node)):
            break
        node = source
    return node


def _is_float(node: Node) -> bool:
    return bool(node.meta["val"].dtype.is_floating_point)


def _softmax_of(weights: object) -> Node | None:
    """The softmax behind attention weights, also where its rows of NaN are set to 0.

    Such rows have nothing to attend to; attention gives 0 for them by itself.
    """
    if not is_tensor(weights):
        return None
    node = without_cast(weights)  # type: ignore[arg-type]
    if is_call(node, aten.where.self, aten.where.ScalarSelf) and is_call(
        node.args[0], aten.isnan.default
    ):
        probabilities = node.args[2]
        if node.args[0].args[0] is not probabilities or not is_tensor(probabilities):  # type: ignore[union-attr]
            return None
        node = without_cast(probabilities)  # type: ignore[arg-type]
    return node if is_call(node, *_SOFTMAX) else None


def _scores(rw: Rewriter, value: object) -> _Scores | str:
    """Take scores apart, from the softmax up to the product."""
    scale, mask = 1.0, None
    while True:
        if not is_tensor(value):
            return "its scores are no product"
        node = without_cast(value)  # type: ignore[arg-type]
        if is_call(node, *_PRODUCTS):
            return _Scores(node, scale, mask)
        if (factor := _factor(node)) is not None:
            scale, value = scale * factor, node.args[0]
            continue
        parts = _masked(rw, node)
        if parts is None:
            return "its scores are neither scaled nor masked products"
        if scale != 1.0:
            return "the mask is scaled"
        value, more = parts
        if mask is None:
            mask = more
        elif torch.bool in (mask.meta["val"].dtype, more.meta["val"].dtype):
            return "masks of two kinds"
        else:
            mask = rw.call(aten.add.Tensor, mask, more)


def _factor(node: Node) -> float | None:
    """c for x * c and x / (1 / c)."""
    if not is_call(node, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        return None
    number = node.args[1]
    if not isinstance(number, (int, float)) or number == 0 or not is_tensor(node.args[0]):
        return None
    return 1.0 / number if "div" in str(node.target) else float(number)


def _masked(rw: Rewriter, node: Node) -> tuple[Node, Node] | None:
    """(scores, mask) of scores + mask, where(mask, scores, -inf) and masked_fill(scores, ~mask, -inf)."""
    if is_call(node, aten.add.Tensor) and node.kwargs.get("alpha", 1) == 1:
        both = [a for a in node.args if is_tensor(a)]
        found = [a for a in both if _leads_to_product(a)]
        if len(both) == 2 and len(found) == 1:
            mask = both[1] if found[0] is both[0] else both[0]
            return found[0], mask  # type: ignore[return-value]
    if is_call(node, aten.where.self, aten.where.ScalarOther) and _is_minus_infinity(node.args[2]):
        return node.args[1], node.args[0]  # type: ignore[return-value]
    if is_call(node, aten.where.self, aten.where.ScalarSelf) and _is_minus_infinity(node.args[1]):
        return node.args[2], rw.call(aten.logical_not.default, node.args[0])  # type: ignore[return-value]
    if is_call(node, aten.masked_fill.Scalar) and _is_minus_infinity(node.args[2]):
        return node.args[0], rw.call(aten.logical_not.default, node.args[1])  # type: ignore[return-value]
    return None


def _leads_to_product(value: object) -> bool:
    for _ in range(8):
        if not is_tensor(value):
            return False
        node = without_cast(value)  # type: ignore[arg-type]
        if is_call(node, *_PRODUCTS):
            return True
        if _factor(node) is not None:
            value = node.args[0]
        elif is_call(node, aten.add.Tensor):
            return any(_leads_to_product(a) for a in node.args)
        elif is_call(node, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf):
            value = node.args[2 if _is_minus_infinity(node.args[1]) else 1]
        elif is_call(node, aten.masked_fill.Scalar):
            value = node.args[0]
        else:
            return False
    return False


def _is_minus_infinity(value: Any) -> bool:
    if is_call(value, aten.full.default, aten.scalar_tensor.default):
        value = value.args[1 if value.target is aten.full.default else 0]
    return isinstance(value, float) and value == -math.inf


def _unscaled(value: object, scale: float) -> tuple[Node, float]:
    """The value before multiplications with numbers, and `scale` times these."""
    node: Node = value  # type: ignore[assignment]
    while is_tensor(node):
        node = without_cast(node)
        factor = _factor(node)
        if factor is None:
            break
        node, scale = node.args[0], scale * factor  # type: ignore[assignment]
    return node, scale


def _transpose_of(rw: Rewriter, transposed: Node) -> Node:
    """k for kᵀ: what was transposed, also through a batch that was flattened for it."""
    shape = transposed.meta["val"].shape
    if (source := _transposed(transposed)) is not None:
        return source
    if is_call(transposed, *_RESHAPES) and is_tensor(transposed.args[0]):
        flat = transposed.args[0]
        same = str(flat.meta["val"].shape[-2:]) == str(shape[-2:])  # type: ignore[union-attr]
        source = _transposed(flat) if same else None  # type: ignore[arg-type]
        if source is not None and is_call(source, *_RESHAPES) and is_tensor(source.args[0]):
            k: Node = source.args[0]  # type: ignore[assignment]
            wanted = [*shape[:-2], shape[-1], shape[-2]]
            if str(list(k.meta["val"].shape)) == str(wanted):
                return k
    rank = len(shape)
    return rw.call(aten.permute.default, transposed, [*range(rank - 2), rank - 1, rank - 2])


def _transposed(node: Node) -> Node | None:
    """x where node exchanges the last two axes of x."""
    rank = node.meta["val"].dim()
    source = node.args[0] if node.args else None
    if not is_tensor(source):
        return None
    if is_call(node, aten.permute.default):
        order = [int(a) % rank for a in node.args[1]]  # type: ignore[union-attr,arg-type]
        if order == [*range(rank - 2), rank - 1, rank - 2]:
            return source  # type: ignore[return-value]
    if not is_call(node, aten.transpose.int):
        return None
    exchanged = {int(a) % rank for a in node.args[1:3]}  # type: ignore[arg-type]
    return source if exchanged == {rank - 2, rank - 1} else None  # type: ignore[return-value]
