"""Complex numbers become pairs of reals: no target has a complex type, and RoPE is all they are for.

A complex tensor of shape [...] is carried as a real one of shape [..., 2] (real part first), so
`view_as_complex` and `view_as_real` vanish, and shape ops act on the leading axes.

    (a + bi) * (c + di) = (ac - bd) + (ad + bc)i
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from svdqc.compiler.ir.weights import LayeredWeights, WeightSpec
from svdqc.frontends.errors import UnsupportedGraphError
from svdqc.frontends.rewriting import Emitter, add_weight_attribute, replace

aten = torch.ops.aten


def remove_complex(module: GraphModule, weights: LayeredWeights, subject: str) -> None:
    """Rewrite every complex value in place; inputs and outputs must be real."""
    nodes = list(module.graph.nodes)
    if not any(_is_complex(node) for node in nodes):
        return
    pairs = _Pairs(module, weights, subject)
    for node in nodes:
        pairs.visit(node)
    for node in reversed(nodes):
        if _is_complex(node) and not node.users:
            module.graph.erase_node(node)


def _is_complex(node: Any) -> bool:
    val = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(val, torch.Tensor) and val.is_complex()


class _Pairs:
    def __init__(self, module: GraphModule, weights: LayeredWeights, subject: str) -> None:
        self.emitter = Emitter(module)
        self.module, self.weights, self.subject = module, weights, subject
        self.pair: dict[Node, Node] = {}

    def visit(self, node: Node) -> None:
        if node.target is aten.view_as_real.default and node.args[0] in self.pair:
            replace(node, self.pair[node.args[0]])  # type: ignore[index]
            return
        touches = any(argument in self.pair for argument in node.all_input_nodes)
        if not (touches or _is_complex(node)):
            return
        if node.op == "get_attr":
            self.pair[node] = self._weight(node)
            return
        rule = RULES.get(node.target) if node.op == "call_function" else None
        if rule is None:
            what = {"placeholder": "an input", "output": "an output"}.get(node.op, str(node.target))
            raise UnsupportedGraphError(
                f"{self.subject}: {node.meta.get('source') or node.name}",
                f"{what} with complex numbers",
                "pass and compute real and imaginary parts apart (torch.view_as_real)",
            )
        result = rule(self, node)
        if _is_complex(node):
            self.pair[node] = result
        else:
            replace(node, result)

    def _weight(self, node: Node) -> Node:
        """A stored complex constant is read as real pairs: [...] complex64 → [..., 2] float32."""
        name = node.meta["weight"]
        real_name, weights = f"{name}.as_real", self.weights
        real = self.emitter.call(node, aten.view_as_real.default, node)
        if real_name not in weights:
            spec = weights.spec(name)
            weights.derive(
                real_name,
                WeightSpec((*spec.shape, 2), real.meta["val"].dtype),
                lambda: torch.view_as_real(weights.load(name)),
            )
        target = f"{node.target}_as_real"
        add_weight_attribute(self.module, target, real.meta["val"])
        with self.emitter.graph.inserting_before(node):
            pair = self.emitter.graph.create_node("get_attr", target)
        pair.meta = {**node.meta, "val": real.meta["val"], "weight": real_name}
        self.emitter.graph.erase_node(real)
        return pair

    def call(self, anchor: Node, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        return self.emitter.call(anchor, op, *args, **kwargs)

    def part(self, anchor: Node, pair: Node, index: int) -> Node:
        return self.call(anchor, aten.select.int, pair, -1, index)

    def join(self, anchor: Node, real: Node, imag: Node) -> Node:
        return self.call(anchor, aten.stack.default, [real, imag], -1)


def _from_real(pairs: _Pairs, node: Node) -> Node:
    return node.args[0]  # type: ignore[return-value]


def _mul(pairs: _Pairs, node: Node) -> Node:
    left, right = node.args[0], node.args[1]
    if left in pairs.pair and right in pairs.pair:
        a, b = (pairs.part(node, pairs.pair[left], index) for index in (0, 1))  # type: ignore[index]
        c, d = (pairs.part(node, pairs.pair[right], index) for index in (0, 1))  # type: ignore[index]
        ac, bd = pairs.call(node, aten.mul.Tensor, a, c), pairs.call(node, aten.mul.Tensor, b, d)
        ad, bc = pairs.call(node, aten.mul.Tensor, a, d), pairs.call(node, aten.mul.Tensor, b, c)
        real = pairs.call(node, aten.sub.Tensor, ac, bd)
        imag = pairs.call(node, aten.add.Tensor, ad, bc)
        return pairs.join(node, real, imag)
    scaled, factor = (left, right) if left in pairs.pair else (right, left)
    if isinstance(factor, complex):
        raise UnsupportedGraphError(
            f"{pairs.subject}: {node.meta.get('source') or node.name}",
            "a product with a complex Python number",
            "multiply by a tensor",
        )
    if isinstance(factor, Node) and isinstance(factor.meta["val"], torch.Tensor):
        factor = pairs.call(node, aten.unsqueeze.default, factor, -1)
    return pairs.call(node, aten.mul.Tensor, pairs.pair[scaled], factor)  # type: ignore[index]


def _add_or_sub(pairs: _Pairs, node: Node) -> Node:
    left, right = node.args[0], node.args[1]
    if left in pairs.pair and right in pairs.pair:
        args = (pairs.pair[left], pairs.pair[right])  # type: ignore[index]
        return pairs.call(node, node.target, *args, **node.kwargs)  # type: ignore[arg-type]
    raise UnsupportedGraphError(
        f"{pairs.subject}: {node.meta.get('source') or node.name}",
        "a sum of a complex and a real number",
        "convert both to complex first",
    )


def _negate(pairs: _Pairs, node: Node) -> Node:
    return pairs.call(node, aten.neg.default, pairs.pair[node.args[0]])  # type: ignore[index]


def _conjugate(pairs: _Pairs, node: Node) -> Node:
    pair = pairs.pair[node.args[0]]  # type: ignore[index]
    imag = pairs.call(node, aten.neg.default, pairs.part(node, pair, 1))
    return pairs.join(node, pairs.part(node, pair, 0), imag)


def _polar(pairs: _Pairs, node: Node) -> Node:
    radius, angle = node.args[0], node.args[1]
    cosine, sine = (
        pairs.call(node, aten.cos.default, angle),
        pairs.call(node, aten.sin.default, angle),
    )
    real = pairs.call(node, aten.mul.Tensor, radius, cosine)
    return pairs.join(node, real, pairs.call(node, aten.mul.Tensor, radius, sine))


def _full(pairs: _Pairs, node: Node) -> Node:
    value: Any = node.args[1]
    dtype = node.meta["val"].dtype.to_real()
    parts = (complex(value).real, complex(value).imag)
    real, imag = (
        pairs.call(node, aten.full.default, node.args[0], part, dtype=dtype) for part in parts
    )
    return pairs.join(node, real, imag)


def _complex(pairs: _Pairs, node: Node) -> Node:
    return pairs.join(node, node.args[0], node.args[1])  # type: ignore[arg-type]


def _cast(pairs: _Pairs, node: Node) -> Node:
    dtype = node.meta["val"].dtype
    real_dtype = dtype.to_real() if dtype.is_complex else dtype
    source: Any = node.args[0]
    if source in pairs.pair:
        pair = pairs.pair[source]
        kept = pair if dtype.is_complex else pairs.part(node, pair, 0)
        return pairs.call(node, aten._to_copy.default, kept, dtype=real_dtype)
    real = pairs.call(node, aten._to_copy.default, source, dtype=real_dtype)
    return pairs.join(node, real, pairs.call(node, aten.mul.Tensor, real, 0))


def _sizes_then_pair(last: int) -> Callable[[_Pairs, Node], Node]:
    """reshape(z, sizes) → reshape(pair, [*sizes, 2]); likewise expand and repeat with their last value."""

    def rule(pairs: _Pairs, node: Node) -> Node:
        sizes: Any = node.args[1]
        pair = pairs.pair[node.args[0]]  # type: ignore[index]
        return pairs.call(node, node.target, pair, [*sizes, last])  # type: ignore[arg-type]

    return rule


def _permute(pairs: _Pairs, node: Node) -> Node:
    order: Any = node.args[1]
    rank = len(order)
    axes = [*(axis % rank for axis in order), rank]
    return pairs.call(node, aten.permute.default, pairs.pair[node.args[0]], axes)  # type: ignore[index]


def _along_axis(
    position: int, *, grows: int = 0, default: int = 0
) -> Callable[[_Pairs, Node], Node]:
    """Ops with one axis argument: count it from the front, since the pair has one more axis at the end."""

    def rule(pairs: _Pairs, node: Node) -> Node:
        first: Any = node.args[0]
        many = isinstance(first, (list, tuple))
        rank = (first[0] if many else first).meta["val"].dim() + grows
        args: list[Any] = list(node.args)
        args += [default] * (position + 1 - len(args))
        axis = args[position]
        args[position] = (
            [a % rank for a in axis] if isinstance(axis, (list, tuple)) else axis % rank
        )
        args[0] = [pairs.pair[item] for item in first] if many else pairs.pair[first]
        return pairs.call(node, node.target, *args, **node.kwargs)  # type: ignore[arg-type]

    return rule


_PAD_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    aten.pad.default: ("mode", "value"),
    aten.constant_pad_nd.default: ("value",),
}


def _pad(pairs: _Pairs, node: Node) -> Node:
    """Zeros around, none around the pair; another value has an imaginary part of its own."""
    named = dict(zip(_PAD_ARGUMENTS[node.target], node.args[2:], strict=False)) | node.kwargs
    mode, value = named.get("mode", "constant"), named.get("value")
    if (value or 0) != 0 or mode != "constant":
        raise UnsupportedGraphError(
            f"{pairs.subject}: {node.meta.get('source') or node.name}",
            f"complex numbers padded with {value or mode}",
            "pad real and imaginary parts apart (torch.view_as_real)",
        )
    around: Any = node.args[1]
    pair = pairs.pair[node.args[0]]  # type: ignore[index]
    return pairs.call(node, aten.constant_pad_nd.default, pair, [0, 0, *around], 0.0)


def _where(pairs: _Pairs, node: Node) -> Node:
    condition, left, right = node.args
    if left not in pairs.pair or right not in pairs.pair:
        raise UnsupportedGraphError(
            f"{pairs.subject}: {node.meta.get('source') or node.name}",
            "a choice between a complex and a real number",
            "convert both to complex first",
        )
    flags = pairs.call(node, aten.unsqueeze.default, condition, -1)
    return pairs.call(node, aten.where.self, flags, pairs.pair[left], pairs.pair[right])  # type: ignore[index]


def _index(pairs: _Pairs, node: Node) -> Node:
    return pairs.call(node, aten.index.Tensor, pairs.pair[node.args[0]], node.args[1])  # type: ignore[index]


RULES: dict[Any, Callable[[_Pairs, Node], Node]] = {
    aten.view_as_complex.default: _from_real,
    aten.mul.Tensor: _mul,
    aten.add.Tensor: _add_or_sub,
    aten.sub.Tensor: _add_or_sub,
    aten.neg.default: _negate,
    aten._conj.default: _conjugate,
    aten._conj_physical.default: _conjugate,
    aten.conj_physical.default: _conjugate,
    aten.polar.default: _polar,
    aten.complex.default: _complex,
    aten.full.default: _full,
    aten._to_copy.default: _cast,
    aten.reshape.default: _sizes_then_pair(2),
    aten.expand.default: _sizes_then_pair(2),
    aten.repeat.default: _sizes_then_pair(1),
    aten.permute.default: _permute,
    aten.unsqueeze.default: _along_axis(1, grows=1),
    aten.squeeze.dims: _along_axis(1),
    aten.select.int: _along_axis(1),
    aten.slice.Tensor: _along_axis(1),
    aten.index_select.default: _along_axis(1),
    aten.cat.default: _along_axis(1),
    aten.stack.default: _along_axis(1, grows=1),
    aten.roll.default: _along_axis(2),
    aten.constant_pad_nd.default: _pad,
    aten.pad.default: _pad,
    aten.where.self: _where,
    aten.index.Tensor: _index,
}
