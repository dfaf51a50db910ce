"""Refuse a model before any work, naming everything in it that no kernel can do."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.ops.registry import rule_of
from svdqc.compiler.codegen.scalar import DTYPE_NAMES
from svdqc.compiler.ir.program import Program
from svdqc.errors import SvdqcError


class UnsupportedOps(SvdqcError):
    """The graph holds ops that have no kernel; lists all of them with where they come from."""


def unsupported_ops(program: Program) -> dict[str, list[str]]:
    """op → sources, for every op (or type of value) without a rule."""
    found: dict[str, list[str]] = defaultdict(list)
    for node in program.graph_module.graph.nodes:
        if node.op not in ("call_function", "placeholder") or _is_size(node):
            continue
        problem = _problem(node)
        if problem is not None:
            found[problem].append(node.meta.get("source") or node.name)
    return dict(found)


def check_supported(program: Program) -> None:
    found = unsupported_ops(program)
    if not found:
        return
    lines = []
    for problem, sources in sorted(found.items()):
        shown = ", ".join(dict.fromkeys(sources[:3])) + (
            f" and {len(sources) - 3} more" if len(sources) > 3 else ""
        )
        lines.append(f"  {problem}  ({len(sources)}×, in {shown})")
    raise UnsupportedOps(
        "compile",
        program.name or "model",
        "unsupported ops:\n" + "\n".join(lines) + "\n",
        "replace them in the model, or ask for the op with this list",
    )


def _problem(node: Node) -> str | None:
    values = node.meta["val"] if isinstance(node.meta["val"], (tuple, list)) else [node.meta["val"]]
    for value in values:
        if isinstance(value, torch.Tensor) and value.dtype not in DTYPE_NAMES:
            what = "an input of" if node.op == "placeholder" else f"{node.target} giving"
            return f"{what} {value.dtype}"
    if node.op == "placeholder":
        return None
    rule = rule_of(node)
    if rule is None and getattr(node.target, "__name__", "") != "getitem":
        return str(node.target)
    anchored = rule is not None and rule.kind == "anchor"
    if anchored and isinstance(values[0], torch.Tensor) and values[0].dtype != torch.float32:
        return f"{node.target} in {values[0].dtype}"
    if anchored and str(node.target) == anchors.CONVOLUTION and not _is_stored(node.args[1]):
        return f"{node.target} with a computed weight"
    return None


def _is_stored(value: object) -> bool:
    while (
        isinstance(value, Node) and value.op == "call_function" and "_to_copy" in str(value.target)
    ):
        value = value.args[0]
    return isinstance(value, Node) and value.op == "get_attr"


def _is_size(node: Node) -> bool:
    """Arithmetic on sizes is folded into the plan's expressions."""
    return isinstance(
        node.meta.get("val"), (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
    )
