"""A graph as text: one line per node.

%linear      f32 [1, 77, 64]   aten.linear.default(%x, %w_up, %b_up)          blocks.0.up
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from svdqc.compiler.ir.program import Program


def dump_program(program: Program) -> str:
    """Inputs, dims, then every node with its type, its call and where it comes from."""
    lines = [f"{program.name} from {program.origin or 'nowhere'}"]
    lines += [f"dim {symbol} = {dim}" for symbol, dim in sorted(program.dims.items())]
    nodes = list(program.graph_module.graph.nodes)
    width = max((len(n.name) for n in nodes), default=0) + 1
    for node in nodes:
        value = _value(node.meta.get("val"))
        lines.append(
            f"%{node.name:<{width}} {value:<24} {_call(node):<60} {_source(node)}".rstrip()
        )
    return "\n".join(lines) + "\n"


def _call(node: Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return f"weight {node.meta.get('weight')!r}"
    if node.op == "output":
        return f"return {_argument(node.args[0])}"
    args = [_argument(a) for a in node.args]
    args += [f"{name}={_argument(a)}" for name, a in node.kwargs.items()]
    return f"{_name(node.target)}({', '.join(args)})"


def _source(node: Node) -> str:
    return str(node.meta.get("source") or "") if node.op == "call_function" else ""


def _name(target: Any) -> str:
    return str(target) if hasattr(target, "namespace") else str(getattr(target, "__name__", target))


def _argument(value: Any) -> str:
    if isinstance(value, Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_argument(v) for v in value)}]"
    return str(value)


def _value(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        shape = ", ".join(str(s) for s in value.shape)
        return f"{str(value.dtype).removeprefix('torch.')} [{shape}]"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(_value(v) for v in value)})"
    return "" if value is None else f"size {value}"
