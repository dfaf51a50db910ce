"""How rows of 4-bit activations lie in memory on GPUs, which read them two a byte.

    int4   codes  in_features / 2 bytes;  scales f32, one a group
    nvfp4  codes  in_features / 2 bytes, rounded up to 32: the 64 k that tensor cores take at once
           scales E4M3, one a 16 k, rounded up to 16: what an asynchronous copy takes at once

Codes go from a quantization to linears and nowhere else.
"""

from __future__ import annotations

from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.ir.rewrite import operands

CODES, SCALES = 0, 1
E2M1_GROUP = 16


def is_e2m1(node: Node) -> bool:
    """Whether a quantization's codes are E2M1."""
    return str(node.target) == anchors.QUANTIZE and operands(node)[7] == "e2m1"


def e2m1_code_bytes(in_features: int) -> int:
    """Of a row's codes."""
    return -(-in_features // 64) * 32


def e2m1_scale_bytes(in_features: int) -> int:
    """Of a row's scales."""
    return -(-in_features // (16 * E2M1_GROUP)) * 16


def packed_row(node: Node) -> tuple[IntExpr, str] | None:
    """Elements of a stored row and their type, of codes and scales that are packed; None of any other value."""
    source = node.args[0] if getattr(node.target, "__name__", "") == "getitem" else None
    if not isinstance(source, Node):
        return None
    if str(source.target) in anchors.S4_QUANTIZERS and node.args[1] == CODES:
        return IntExpr.of(_in_features(source) // 2), "i8"
    if is_e2m1(source) and node.args[1] == CODES:
        return IntExpr.of(e2m1_code_bytes(_in_features(source))), "u8"
    if is_e2m1(source) and node.args[1] == SCALES:
        return IntExpr.of(e2m1_scale_bytes(_in_features(source))), "u8"
    return None


def _in_features(quantization: Node) -> int:
    return int(quantization.meta["val"][CODES].shape[-1])
