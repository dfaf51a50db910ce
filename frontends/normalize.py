"""One spelling per meaning: what is left of a decomposed export after the frontend.

    _assert_*, sym_constrain_range*                     erased (the dims' ranges say the same)
    clone, alias, detach, lift_fresh_copy, no-op views  x
    view, _unsafe_view                                  reshape          (no promise about strides)
    split_with_sizes, unbind + getitem                  slice, select    (one output per op)
    _to_copy(x, dtype)                                  _to_copy with a dtype only, or x
    copy(x, y)                                          y, cast and expanded to x
    full_like, scalar_tensor, empty_permuted            full
    complex numbers                                     pairs of reals   (see complex_pairs)
    device=, layout=, pin_memory=, memory_format=       dropped

The graph is functional: strides and aliasing mean nothing in it, which is why a view may become a
reshape and a clone may go.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from svdqc.compiler.ir.weights import LayeredWeights
from svdqc.frontends.complex_pairs import remove_complex
from svdqc.frontends.errors import UnsupportedGraphError
from svdqc.frontends.rewriting import Emitter, replace, same_sizes

aten = torch.ops.aten

ERASED_PREFIXES = ("aten._assert", "aten.sym_constrain_range", "aten._functional_assert")
IDENTITIES = (
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
    aten.contiguous.default,
)
PLACEMENT = ("device", "layout", "pin_memory", "memory_format", "non_blocking")
PYTHON_MODULES = ("_operator", "math", "torch.sym_", "builtins")

Rule = Callable[[Emitter, Node], Node | None]


def normalize(module: GraphModule, weights: LayeredWeights, subject: str) -> None:
    """Apply the rules above in place, then check that the graph is functional and sized by its inputs."""
    _erase_asserts(module)
    emitter = Emitter(module)
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        _drop_placement(node)
        rule = RULES.get(node.target)
        result = rule(emitter, node) if rule is not None else None
        if result is not None and result is not node:
            replace(node, result)
    module.graph.eliminate_dead_code()
    remove_complex(module, weights, subject)
    module.graph.eliminate_dead_code(
        is_impure_node=lambda node: node.op in ("placeholder", "output")
    )
    check_functional(module, subject)
    module.graph.lint()
    module.recompile()


def _erase_asserts(module: GraphModule) -> None:
    for node in reversed(list(module.graph.nodes)):
        erased = node.op == "call_function" and str(node.target).startswith(ERASED_PREFIXES)
        if erased and not node.users:
            module.graph.erase_node(node)


def _drop_placement(node: Node) -> None:
    if isinstance(node.target, OpOverload):
        node.kwargs = {key: value for key, value in node.kwargs.items() if key not in PLACEMENT}


def _input(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    return source


def _identity(emitter: Emitter, node: Node) -> Node | None:
    return _input(node)


def _reshape(emitter: Emitter, node: Node) -> Node | None:
    source = _input(node)
    if same_sizes(source.meta["val"].shape, node.meta["val"].shape):
        return source
    node.target = aten.reshape.default
    return None


def _identity_if_same_sizes(emitter: Emitter, node: Node) -> Node | None:
    source = _input(node)
    return source if same_sizes(source.meta["val"].shape, node.meta["val"].shape) else None


def _slice(emitter: Emitter, node: Node) -> Node | None:
    source = _input(node)
    step = node.args[4] if len(node.args) > 4 else node.kwargs.get("step", 1)
    if step == 1 and same_sizes(source.meta["val"].shape, node.meta["val"].shape):
        return source
    return None


def _permute(emitter: Emitter, node: Node) -> Node | None:
    order: Any = node.args[1]
    rank = len(order)
    return _input(node) if [axis % rank for axis in order] == list(range(rank)) else None


def _to_copy(emitter: Emitter, node: Node) -> Node | None:
    source = _input(node)
    dtype = node.meta["val"].dtype
    node.kwargs = {"dtype": dtype}
    return source if source.meta["val"].dtype == dtype else None


def _copy(emitter: Emitter, node: Node) -> Node | None:
    value = node.args[1]
    assert isinstance(value, Node)
    target = node.meta["val"]
    if value.meta["val"].dtype != target.dtype:
        value = emitter.call(node, aten._to_copy.default, value, dtype=target.dtype)
    if not same_sizes(value.meta["val"].shape, target.shape):
        value = emitter.call(node, aten.expand.default, value, _sizes(emitter, node, _input(node)))
    return value


def _split(emitter: Emitter, node: Node) -> Node | None:
    """split_with_sizes(x, sizes, dim)[i] → slice(x, dim, start_i, start_i + sizes_i)."""
    sizes: Any = node.args[1]
    axis: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    source = _input(node)
    if not all(isinstance(size, int) for size in sizes):
        return None
    axis %= source.meta["val"].dim()
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    for user in list(node.users):
        if user.target is not operator.getitem:
            return None
        part: Any = user.args[1]
        start, size = starts[part], sizes[part]
        replace(user, emitter.call(user, aten.slice.Tensor, source, axis, start, start + size))
    return None


def _unbind(emitter: Emitter, node: Node) -> Node | None:
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    for user in list(node.users):
        replace(user, emitter.call(user, aten.select.int, _input(node), axis, user.args[1]))
    return None


def _full(emitter: Emitter, node: Node) -> Node | None:
    """full_like(x, v) → full(shape of x, v); scalar_tensor(v) → full([], v)."""
    val = node.meta["val"]
    if node.target is aten.scalar_tensor.default:
        sizes, fill = [], node.args[0]
    else:
        sizes, fill = _sizes(emitter, node, _input(node)), node.args[1]
    return emitter.call(node, aten.full.default, sizes, fill, dtype=val.dtype)


def _empty(emitter: Emitter, node: Node) -> Node | None:
    """Memory whose contents nobody has written yet: zeros are as good, and reproducible."""
    return emitter.call(node, aten.full.default, node.args[0], 0, dtype=node.meta["val"].dtype)


def _sizes(emitter: Emitter, anchor: Node, source: Node) -> list[Any]:
    """The shape of `source` as op arguments: ints, and sym_size nodes where it is symbolic."""
    return [
        size if isinstance(size, int) else emitter.call(anchor, aten.sym_size.int, source, axis)
        for axis, size in enumerate(source.meta["val"].shape)
    ]


def _full_dtype(emitter: Emitter, node: Node) -> Node | None:
    """Spell out the dtype of `full` and `arange`, which otherwise depends on a global default."""
    node.kwargs = {**node.kwargs, "dtype": node.meta["val"].dtype}
    return None


RULES: dict[Any, Rule] = {
    **dict.fromkeys(IDENTITIES, _identity),
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.expand.default: _identity_if_same_sizes,
    aten.squeeze.dims: _identity_if_same_sizes,
    aten.repeat.default: _identity_if_same_sizes,
    aten.slice.Tensor: _slice,
    aten.permute.default: _permute,
    aten._to_copy.default: _to_copy,
    aten.copy.default: _copy,
    aten.split_with_sizes.default: _split,
    aten.unbind.int: _unbind,
    aten.full_like.default: _full,
    aten.scalar_tensor.default: _full,
    aten.empty.memory_format: _empty,
    aten.empty_permuted.default: _empty,
    aten.full.default: _full_dtype,
    aten.arange.start_step: _full_dtype,
}


def check_functional(module: GraphModule, subject: str) -> None:
    """No op writes to its arguments, none is opaque, and every size follows from the inputs' sizes."""
    for node in module.graph.nodes:
        where = f"{subject}: {node.meta.get('source') or node.name}"
        if node.op in ("call_module", "call_method"):
            raise UnsupportedGraphError(where, f"a {node.op} node", "report this model")
        if node.op != "call_function":
            continue
        if isinstance(node.target, OpOverload):
            if node.target._schema.is_mutable:
                raise UnsupportedGraphError(
                    where,
                    f"the in-place op {node.target}",
                    "write forward without in-place updates",
                )
        elif not _is_python_arithmetic(node.target):
            raise UnsupportedGraphError(
                where, f"the operator {node.target}", "rewrite it with plain tensor operations"
            )
        if _has_unbacked_size(node.meta.get("val")):
            raise UnsupportedGraphError(
                where,
                f"{node.target} makes a tensor whose size depends on the values of another",
                "pad to a fixed size and use a mask, for example with torch.where",
            )


def _is_python_arithmetic(target: Any) -> bool:
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"
    return name.startswith(PYTHON_MODULES)


def _has_unbacked_size(val: Any) -> bool:
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return isinstance(val, (torch.Tensor, torch.SymInt)) and bool(free_unbacked_symbols(val))
