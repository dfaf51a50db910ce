"""The three stages of a graph, and which calls are legal in each.

captured    ATen, prims and svdq ops, as a frontend yields them
canonical   ops with a rule or a kernel; activations are float32 (or integer, bool, float64)
lowered     canonical, and whatever must lie in memory is an svdq.copy: outputs, parts of concatenations
"""

from __future__ import annotations

import torch
from torch.fx import Node

from svdqc.compiler.codegen.ops.registry import rule_of
from svdqc.compiler.codegen.scalar import DTYPE_NAMES
from svdqc.compiler.ir import ops
from svdqc.compiler.ir.dialect import Dialect
from svdqc.compiler.ir.rewrite import aten, is_call

NAMESPACES = ("aten", "prims", "svdq")
NARROW = (torch.bfloat16, torch.float16)
_MOVES = (aten._to_copy.default, ops.copy)
"""Calls that may give a 16-bit value: the narrowing of an output, and its place in memory."""


def _captured_call(node: Node) -> str | None:
    if _is_item(node) or getattr(node.target, "namespace", None) in NAMESPACES:
        return None
    return f"{node.target} is no op of {', '.join(NAMESPACES)}"


def _canonical_call(node: Node) -> str | None:
    if not _is_item(node) and rule_of(node) is None:
        return f"{node.target} has neither a rule nor a kernel"
    value = node.meta["val"]
    for tensor in value if isinstance(value, (tuple, list)) else [value]:
        if tensor.dtype not in DTYPE_NAMES:
            return f"{node.target} gives {tensor.dtype}, which no kernel computes"
        if tensor.dtype in NARROW and not is_call(node, *_MOVES) and not _is_view(node):
            return f"{node.target} gives {tensor.dtype}: activations are float32 here"
    return None


def _lowered_call(node: Node) -> str | None:
    if is_call(node, ops.concat):
        (parts, *_) = node.args
        loose = [p for p in parts if not is_call(p, ops.copy)]  # type: ignore[union-attr]
        if loose:
            return f"its part {loose[0]} has no memory of its own (svdq.copy)"
        return None
    return _canonical_call(node)


def _lowered_output(node: Node) -> str | None:
    loose = [v for v in node.args[0] if not is_call(v, ops.copy)]  # type: ignore[union-attr]
    return f"output {loose[0]} has no memory of its own (svdq.copy)" if loose else None


def _is_item(node: Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _is_view(node: Node) -> bool:
    rule = rule_of(node)
    return rule is not None and rule.kind == "view"


CAPTURED = Dialect("captured", _captured_call)
CANONICAL = Dialect("canonical", _canonical_call)
LOWERED = Dialect("lowered", _lowered_call, _lowered_output)
