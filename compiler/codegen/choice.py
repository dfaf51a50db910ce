"""The seam through which a kernel's block is chosen: by the analytic model, or by what was measured.

A back end lists the blocks that a region can have, the analytic model's choice first (`Backend.blocks`); a chooser
takes one of them, told what it is for. Choosers are arguments of `lower`: nothing is remembered between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.printing.backend import Block
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.scalar import DTYPE_NAMES
from svdqc.compiler.ir.rewrite import is_weight_cast


@dataclass(frozen=True)
class Problem:
    """What a block is chosen for. Regions that differ in nothing here take the same time for the same block.

    op, format   the anchor, and how its weight is stored: ("linear_s4", "s4"), ("linear", "bf16"); "rows", ""
    n, k         output and input features of the anchor (attention: value and query width); 0 where it has none
    group, rank  of a quantized linear, else 0
    rows         of the region, for the largest dims
    body         its ops in order, with their dtype and the number of elements in a row
    sources      of `Kernel.sources`: the templates and headers that the kernel is made of
    """

    op: str
    format: str
    n: int
    k: int
    group: int
    rank: int
    rows: int
    body: str
    sources: str


class Chooser(Protocol):
    """Decides the block of a kernel."""

    def choose(self, problem: Problem, blocks: Sequence[Block]) -> Block:
        """One of `blocks`, of which the first is the analytic model's choice."""


class Analytic:
    """Takes what the analytic model likes best."""

    def choose(self, problem: Problem, blocks: Sequence[Block]) -> Block:
        return blocks[0]


ANALYTIC = Analytic()


def problem_of(region: Region, sources: str) -> Problem:
    op, stored, n, k, group, rank = _anchor_facts(region.anchor)
    parts = []
    for node in region.nodes:
        name = str(node.target).split(".")[1]
        width = region.layout.inner_elements(node).upper() if node in region.layout.axes else 0
        parts.append(f"{name}:{_dtype(node)}:{width}")
    rows = region.layout.num_rows.upper()
    return Problem(op, stored, n, k, group, rank, rows, " ".join(parts), sources)


def _anchor_facts(anchor: Node | None) -> tuple[str, str, int, int, int, int]:
    """op, format, n, k, group, rank."""
    if anchor is None:
        return "rows", "", 0, 0, 0, 0
    target = str(anchor.target)
    op = target.split(".")[1]
    if target == anchors.BMM:
        return op, "f32", _last(anchor.args[1]), _last(anchor.args[0]), 0, 0
    if target == anchors.ATTENTION:
        return op, "f32", _last(anchor.args[2]), _last(anchor.args[0]), 0, 0
    position = anchors.WEIGHT_OPERAND.get(target, 1)
    weight = anchor.args[position]
    assert isinstance(weight, Node)
    shape = [int(size) for size in weight.meta["val"].shape]
    n, k = shape[0], 1
    for size in shape[1:]:
        k *= size
    if target in (anchors.LINEAR, anchors.CONVOLUTION):
        source = weight.args[0] if is_weight_cast(weight) else weight
        assert isinstance(source, Node)
        return op, _dtype(source), n, k, 0, 0
    group = k // _last(anchor.args[position + 1])
    if target == anchors.LINEAR_W:
        return op, str(anchor.args[4]), n, k, group, 0
    stored = "s4" if target == anchors.LINEAR_S4 else str(anchor.args[7])
    return op, stored, n, k, group, _last(anchor.args[2])


def _last(operand: object) -> int:
    """The size of the last axis; 0 where it depends on dims."""
    assert isinstance(operand, Node)
    size = operand.meta["val"].shape[-1]
    return size if isinstance(size, int) else 0


def _dtype(node: Node) -> str:
    value = node.meta["val"]
    first = value[0] if isinstance(value, list | tuple) else value
    return DTYPE_NAMES[first.dtype] if isinstance(first, Tensor) else ""
