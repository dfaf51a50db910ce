"""16-bit floating activations → float32, weights as they are stored; inputs and outputs keep their types.

CPUs compute in float32. Rounding between ops is dropped, which only brings the result closer to the exact one;
weights stay 16 bit on disk and are widened by the kernels that read them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_aggregate

from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import Rewriter, aten
from svdqc.compiler.passes.base import PassReport

NARROW = (torch.bfloat16, torch.float16)


def widen(program: Program) -> PassReport:
    report, rw = PassReport(), Rewriter(program)
    outputs = next(n for n in rw.graph.nodes if n.op == "output")
    wanted = [o.meta["val"].dtype for o in outputs.args[0]]
    for node in list(rw.graph.nodes):
        if node.op in ("placeholder", "get_attr"):
            if node.meta["val"].dtype in NARROW and node.users:
                _widen_source(rw, node)
                report.changed["widened"] += 1
        elif node.op == "call_function" and "widened" not in node.meta:
            node.args = map_aggregate(node.args, _wide_dtype)
            node.kwargs = map_aggregate(node.kwargs, _wide_dtype)
            node.meta["val"] = rw.fake_value(node)
    results = []
    for value, dtype in zip(outputs.args[0], wanted, strict=True):
        with rw.before(outputs):
            narrow = value.meta["val"].dtype != dtype
            results.append(rw.call(aten._to_copy.default, value, dtype=dtype) if narrow else value)
    outputs.args = (tuple(results),)
    for node in rw.graph.nodes:
        node.meta.pop("widened", None)
    rw.finish()
    return report


def _widen_source(rw: Rewriter, node: Node) -> None:
    users = list(node.users)
    with rw.after(node):
        wide = rw.call(aten._to_copy.default, node, dtype=torch.float32)
    wide.meta["widened"] = True
    for user in users:
        user.replace_input_with(node, wide)


def _wide_dtype(value: Any) -> Any:
    return torch.float32 if value in NARROW else value
