"""Which function of templates/cuda/include/svdq_cuda codes the rows of a quantization."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.packed_rows import e2m1_code_bytes, e2m1_scale_bytes, is_e2m1
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import RANGES
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.quantize.formats import E2M1_RANGES

HEADERS = {
    anchors.QUANTIZE_S4: ["quantize_s4.h"],
    anchors.QUANTIZE_S4_PARTS: ["quantize_s4.h", "project_tile.h"],
    anchors.QUANTIZE: ["quantize_s8.h"],
}
"""By op; of E2M1 codes: E2M1_HEADER."""
E2M1_HEADER = "quantize_e2m1.h"
BY_ROW = {"int": "quantize_s8", "e4m3": "quantize_e4m3"}
"""svdq::quantize with a scale a row, by encoding."""


PART = 1024
"""Of a row that is coded in parts: more rows then share what they are projected with."""


@dataclass(frozen=True)
class RowCoder:
    """function: with its template arguments, `more` what follows the arguments that all of them take; scales,
    code_bytes: of a row in memory; k that share one of either."""

    function: str
    scales: int
    code_bytes: int
    k_per_scale: int
    k_per_byte: int
    more: str = ""


def headers_of(node: Node) -> list[str]:
    """The files with the functions that code the rows of a quantization."""
    return [E2M1_HEADER] if is_e2m1(node) else HEADERS[str(node.target)]


def part_of(node: Node, in_features: int) -> int:
    """How much of a row is in shared memory at a time: all of it where its one scale needs it."""
    grouped = str(node.target) == anchors.QUANTIZE_S4 or is_e2m1(node)
    return min(PART, in_features) if grouped else in_features


def quantized_bytes(node: Node) -> int:
    """Of shared memory, for a row of a quantization."""
    x, _, lora_down = operands(node)[:3]
    in_features, rank = int(x.meta["val"].shape[-1]), int(lora_down.meta["val"].shape[0])
    part = part_of(node, in_features)
    return 4 * (part + 20) + (4 * rank + 64 if part < in_features else 0)


def quantizer(
    node: Node, in_features: int, threads: int, params: Params, runs: str = "svdq::Dense"
) -> RowCoder:
    """How the rows of a quantization are coded. runs: the svdq::Runs that they are in shared memory; int4 alone has
    other ones."""
    group, range_name, rotated = operands(node)[3:6]
    rotate = "true" if rotated else "false"
    if is_e2m1(node):
        choices = len(E2M1_RANGES[str(range_name)])
        return RowCoder(
            f"quantize_e2m1<{choices}, {rotate}, {threads}>",
            e2m1_scale_bytes(in_features),
            e2m1_code_bytes(in_features),
            int(group),
            2,
            f", {in_features}, {exponent(float(operands(node)[8]), params)}",
        )
    if str(node.target) == anchors.QUANTIZE:
        function = f"{BY_ROW[str(operands(node)[7])]}<{rotate}, {threads}>"
        return RowCoder(function, 1, in_features, in_features, 1)
    kind = RANGES[str(range_name)]
    per_byte = 1 if kind == "Symmetric127" else 2
    function = f"quantize_s4<{group}, svdq::ActRange::{kind}, {rotate}, {threads}, {runs}>"
    groups = in_features // int(group)
    return RowCoder(
        function, groups, in_features // per_byte, int(group), per_byte, f", {in_features}"
    )


def exponent(power_of_two: float, params: Params) -> str:
    """The exponent of a power of two that differs between launches of one kernel: a parameter."""
    mantissa, above = math.frexp(power_of_two)
    assert mantissa == 0.5, f"{power_of_two} is no power of two"
    assert -126 < above < 128, "the exponent of a normal number and of its inverse"
    return params.scalar(IntExpr.of(above - 1), force=True)
