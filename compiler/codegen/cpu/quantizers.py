"""Which function of templates/cpu/include/svdq_cpu codes the rows of a quantization."""

from __future__ import annotations

import math

from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import RANGES
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.quantize.formats import E2M1_RANGES

E2M1_TABLES = {
    "six": "svdq::kE2m1Six",
    "four_over_six": "svdq::kE2m1FourOverSix",
    "best_of_three": "svdq::kE2m1BestOfThree",
}


def quantizer(node: Node, params: Params) -> tuple[str, str]:
    """The function with its template arguments, and what follows the arguments that all of them take."""
    group, range_name, rotated = operands(node)[3:6]
    rotate = "true" if rotated else "false"
    if str(node.target) == anchors.QUANTIZE_S4:
        return f"quantize_s4<{group}, svdq::ActRange::{RANGES[str(range_name)]}, {rotate}>", ""
    encoding, tensor_scale = operands(node)[7:9]
    if encoding != "e2m1":
        return f"quantize_{ {'int': 's8', 'e4m3': 'e4m3'}[str(encoding)] }<{rotate}>", ""
    count = len(E2M1_RANGES[str(range_name)])
    unit = power_of_two(float(tensor_scale), params)
    return f"quantize_e2m1<{rotate}>", f", {E2M1_TABLES[str(range_name)]}, {count}, {unit}"


def power_of_two(value: float, params: Params) -> str:
    """The text of a power of two that differs between launches of one kernel: its exponent is a parameter."""
    mantissa, exponent = math.frexp(value)
    assert mantissa == 0.5, f"{value} is no power of two"
    text = params.scalar(IntExpr.of(exponent - 1), force=True)
    return f"__builtin_ldexpf(1.0f, static_cast<int>({text}))"
