"""Which function of templates/cuda/include/svdq_cuda codes the rows of a quantization."""

from __future__ import annotations

from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.statements import RANGES
from svdqc.compiler.ir.rewrite import operands

HEADERS = {
    anchors.QUANTIZE_S4: ["quantize_s4.h"],
    anchors.QUANTIZE_S4_PARTS: ["quantize_s4.h", "project_tile.h"],
    anchors.QUANTIZE: ["quantize_s8.h"],
}
"""By op. svdq::quantize is int8, a scale a row: the other encodings have no CUDA kernels (driver/precisions.py)."""


PART = 1024
"""Of a row that is coded in parts: more rows then share what they are projected with."""


def part_of(node: Node, in_features: int) -> int:
    """How much of a row is in shared memory at a time: all of it where its one scale needs it."""
    return min(PART, in_features) if str(node.target) == anchors.QUANTIZE_S4 else in_features


def quantized_bytes(node: Node) -> int:
    """Of shared memory, for a row of a quantization."""
    x, _, lora_down = operands(node)[:3]
    in_features, rank = int(x.meta["val"].shape[-1]), int(lora_down.meta["val"].shape[0])
    part = part_of(node, in_features)
    return 4 * (part + 20) + (4 * rank + 64 if part < in_features else 0)


def quantizer(node: Node, in_features: int, threads: int) -> tuple[str, int, int]:
    """The function with its template arguments; scales and bytes of codes of a row."""
    group, range_name, rotated = operands(node)[3:6]
    rotate = "true" if rotated else "false"
    if str(node.target) == anchors.QUANTIZE:
        assert operands(node)[7] == "int", "8-bit integer codes"
        return f"quantize_s8<{rotate}, {threads}>", 1, in_features
    kind = RANGES[str(range_name)]
    code_bytes = in_features if kind == "Symmetric127" else in_features // 2
    function = f"quantize_s4<{group}, svdq::ActRange::{kind}, {rotate}, {threads}>"
    return function, in_features // int(group), code_bytes
