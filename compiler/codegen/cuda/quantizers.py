"""Which function of templates/cuda/include/svdq_cuda codes the rows of a quantization."""

from __future__ import annotations

from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.statements import RANGES
from svdqc.compiler.ir.rewrite import operands

HEADERS = {anchors.QUANTIZE_S4: "quantize_s4.h", anchors.QUANTIZE: "quantize_s8.h"}
"""By op. svdq::quantize is int8, a scale a row: the other encodings have no CUDA kernels (driver/precisions.py)."""


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
