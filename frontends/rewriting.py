"""Adding nodes to a captured graph, with the fake value and the source that every node carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg


def fake_mode_of(module: GraphModule) -> FakeTensorMode | None:
    """The mode that the graph's fake tensors belong to."""
    for node in module.graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None:
            assert isinstance(mode, FakeTensorMode)
            return mode
    return None


class Emitter:
    """Creates nodes before an anchor, computing `meta["val"]` by running the op on fake tensors."""

    def __init__(self, module: GraphModule) -> None:
        self.graph = module.graph
        self._mode = fake_mode_of(module)

    def call(self, anchor: Node, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """`op(*args, **kwargs)` just before `anchor`, with the anchor's source."""
        with self.graph.inserting_before(anchor):
            node = self.graph.call_function(op, args, kwargs)
        fake_args = map_arg(args, lambda n: n.meta["val"])
        fake_kwargs = map_arg(kwargs, lambda n: n.meta["val"])
        assert self._mode is not None, "a graph without tensors has nothing to rewrite"
        with self._mode, torch.no_grad():
            val = op(*fake_args, **fake_kwargs)
        node.meta = {"val": val, "source": anchor.meta.get("source", "")}
        return node


def add_weight_attribute(module: nn.Module, target: str, val: torch.Tensor) -> None:
    """What `get_attr` of a weight points to: a tensor without data, so that Graph.lint finds it."""
    empty = torch.empty(val.shape, dtype=val.dtype, device="meta")
    module.register_buffer(target, empty, persistent=False)


def replace(node: Node, by: Node) -> None:
    """Point the users of `node` to `by` and erase it."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def same_sizes(left: Any, right: Any) -> bool:
    """Whether two shapes are the same, symbol for symbol, without adding a guard."""
    return len(left) == len(right) and all(map(_same_size, left, right))


def _same_size(left: Any, right: Any) -> bool:
    if isinstance(left, torch.SymInt) and isinstance(right, torch.SymInt):
        return bool(left.node.expr == right.node.expr)
    return isinstance(left, int) and isinstance(right, int) and left == right
