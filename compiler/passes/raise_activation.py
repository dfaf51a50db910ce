"""Activation functions written with erf, tanh and sigmoid → gelu and silu.

A formula is recognized by what it computes: as a polynomial in x and t, where t is erf(u), tanh(u)
or sigmoid(u) and u a polynomial in x. How its factors are ordered and grouped makes no difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from svdqc.compiler.ir.rewrite import Rewriter, aten, is_call, is_tensor, operands
from svdqc.compiler.passes.raise_attention import without_cast

Polynomial = dict[tuple[int, int], float]
"""(power of x, power of t) → coefficient."""

_TOLERANCE = 1e-5
"""Constants were rounded to float32, some of them twice."""
_DEPTH = 6
_X: Polynomial = {(1, 0): 1.0}
_T: Polynomial = {(0, 1): 1.0}
_HALF_SUM: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
_TANH_ARGUMENT: Polynomial = {
    (1, 0): math.sqrt(2 / math.pi),
    (3, 0): 0.044715 * math.sqrt(2 / math.pi),
}


def gelu_erf(rw: Rewriter, node: Node) -> Node | None:
    """x · (1 + erf(x / √2)) / 2 → gelu(x)."""
    x = _match(node, aten.erf.default, {(1, 0): math.sqrt(0.5)}, _HALF_SUM)
    return None if x is None else rw.call(aten.gelu.default, x)


def gelu_tanh(rw: Rewriter, node: Node) -> Node | None:
    """x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2 → gelu(x, approximate="tanh")."""
    x = _match(node, aten.tanh.default, _TANH_ARGUMENT, _HALF_SUM)
    return None if x is None else rw.call(aten.gelu.default, x, approximate="tanh")


def silu(rw: Rewriter, node: Node) -> Node | None:
    """x · sigmoid(x) → silu(x)."""
    x = _match(node, aten.sigmoid.default, _X, {(1, 1): 1.0})
    return None if x is None else rw.call(aten.silu.default, x)


def _match(node: Node, function: Any, argument: Polynomial, whole: Polynomial) -> Node | None:
    """x such that node = whole(x, t) and t = function(argument(x))."""
    if not is_call(node, aten.mul.Tensor, aten.div.Tensor):
        return None
    for t in _within(node, _DEPTH):
        if not is_call(t, function):
            continue
        for x in _within(t.args[0], _DEPTH):
            if x.meta["val"].dtype != node.meta["val"].dtype:
                continue
            if not _equal(_polynomial(t.args[0], {x: _X}, _DEPTH), argument):
                continue
            if _equal(_polynomial(node, {x: _X, t: _T}, _DEPTH), whole):
                return x
    return None


def _within(value: Any, depth: int) -> list[Node]:
    """The tensors that go into a value through arithmetic, itself first."""
    if not is_tensor(value):
        return []
    found = [value]
    arithmetic = (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.pow.Tensor_Scalar)
    if depth > 0 and is_call(value, *arithmetic, aten._to_copy.default):
        for operand in value.args[:2]:
            found += _within(operand, depth - 1)
    return list(dict.fromkeys(found))


def _polynomial(value: Any, known: Mapping[Node, Polynomial], depth: int) -> Polynomial | None:
    """`value` as a polynomial in the known nodes, or None."""
    if isinstance(value, (int, float)):
        return {(0, 0): float(value)}
    if not is_tensor(value) or depth < 0:
        return None
    if value in known:
        return known[value]
    bare = without_cast(value)
    if bare is not value:
        return _polynomial(bare, known, depth)
    if is_call(value, aten.pow.Tensor_Scalar) and value.args[1] in (2, 3):
        base = _polynomial(value.args[0], known, depth - 1)
        power = base
        for _ in range(int(operands(value)[1]) - 1):
            power = _times(power, base)
        return power
    if not is_call(value, aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor):
        return None
    lhs, rhs = (_polynomial(a, known, depth - 1) for a in value.args[:2])
    if value.target is aten.mul.Tensor:
        return _times(lhs, rhs)
    if value.target is aten.div.Tensor:
        divisor = rhs.get((0, 0), 0.0) if rhs is not None and len(rhs) == 1 else 0.0
        return _times(lhs, {(0, 0): 1 / divisor}) if divisor else None
    if lhs is None or rhs is None or value.kwargs.get("alpha", 1) != 1:
        return None
    return {k: lhs.get(k, 0.0) + rhs.get(k, 0.0) for k in {**lhs, **rhs}}


def _times(lhs: Polynomial | None, rhs: Polynomial | None) -> Polynomial | None:
    if lhs is None or rhs is None:
        return None
    product: Polynomial = {}
    for (a, b), c in lhs.items():
        for (d, e), f in rhs.items():
            product[a + d, b + e] = product.get((a + d, b + e), 0.0) + c * f
    return product


def _equal(found: Polynomial | None, wanted: Polynomial) -> bool:
    return found is not None and all(
        math.isclose(found.get(k, 0.0), wanted.get(k, 0.0), rel_tol=_TOLERANCE)
        for k in {**found, **wanted}
    )
