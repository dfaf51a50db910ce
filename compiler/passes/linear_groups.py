"""Which linears read the same input in the same block: they share one product, smoothing, codes and down-projection."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from torch.fx import Node

from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import aten, is_call


@dataclass(frozen=True)
class LinearGroup:
    """linears in graph order; `name` is the first one's, `names` all of them."""

    linears: tuple[Node, ...]
    names: tuple[str, ...]

    @property
    def x(self) -> Node:
        return self.linears[0].args[0]  # type: ignore[return-value]

    @property
    def name(self) -> str:
        return self.names[0]


def weight_node(linear: Node) -> Node | None:
    """The get_attr of a linear's weight, through a cast; None if the weight is computed."""
    weight = linear.args[1]
    if is_call(weight, aten._to_copy.default):
        weight = weight.args[0]  # type: ignore[union-attr]
    return weight if isinstance(weight, Node) and weight.op == "get_attr" else None


def layer_name(linear: Node) -> str:
    """`transformer_blocks.0.attn.to_q` for the weight of that name; the op's source for an unnamed one."""
    weight = weight_node(linear)
    name: str = (
        weight.meta["weight"] if weight is not None else linear.meta.get("source", linear.name)
    )
    name = name.split("~")[0]
    return name[: -len(".weight")] if name.endswith(".weight") else name


def block_name(name: str) -> str:
    """The repeated block a layer belongs to: its path up to the first number; "" outside of blocks."""
    match = re.match(r"^(.*?\.\d+)\.", name)
    return match.group(1) if match else ""


def linear_groups(program: Program) -> list[LinearGroup]:
    """Every linear with a stored weight, grouped by input and block, in graph order."""
    found: dict[tuple[object, ...], list[Node]] = defaultdict(list)
    for node in program.graph_module.graph.nodes:
        if is_call(node, aten.linear.default) and weight_node(node) is not None:
            found[(node.args[0], block_name(layer_name(node)))].append(node)
    return [
        LinearGroup(tuple(nodes), tuple(layer_name(n) for n in nodes)) for nodes in found.values()
    ]
