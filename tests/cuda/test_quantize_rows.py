"""Quantization of rows on the host back end: codes and scales bit for bit, the projection within its sum's rounding."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import pytest
import torch
from tests.compiler.programs import ProgramBuilder
from tests.cuda.host_runner import PlanRunner
from torch import Tensor
from torch.fx import Node

from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.driver.variants import backend_of
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.quantize.ops import linear_s4, quantize_s4
from svdqc.compiler.quantize.ops_formats import linear_coded, quantize
from svdqc.compiler.quantize.ranges import ActivationFormat
from svdqc.compiler.quantize.reference import quantize_activation
from svdqc.compiler.targets.cuda import SM_80

EPS = 2.0**-24
SPLIT = 2.0**-15
"""A linear reads the projection as two bfloat16."""


@dataclass(frozen=True)
class Case:
    rows: int
    k: int
    group: int = 64
    rank: int = 16
    range: str = "signed8"
    rotate: bool = False
    shift: float = 0.0
    stored: torch.dtype = torch.bfloat16


CASES = [
    Case(1, 64),
    Case(7, 320, rank=5),
    Case(300, 128, rank=32, rotate=True),
    Case(9, 3072, rank=32),
    Case(20, 1056, group=32, rank=12),  # a last part of half a block
    Case(3, 2048, rank=0),
    Case(3, 96, group=32, rank=1),
    Case(4, 160, group=32, range="unsigned", shift=0.17),
    Case(5, 256, group=128, rotate=True, range="symmetric"),
    Case(6, 192, group=32, rotate=True, rank=33),
    Case(4, 128, rank=0),
    Case(4, 128, stored=torch.float32),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_quantize_rows(case: Case) -> None:
    generator = torch.Generator().manual_seed(case.rows * 1000 + case.k)
    x = torch.randn(case.rows, case.k, generator=generator)
    x[0, : case.group] = 0.0  # a group whose scale is 0
    x[-1, -1], x[-1, -2] = -9.0, 9.0  # the extreme twice, with both signs
    inv_smooth = torch.rand(case.k, generator=generator) + 0.5
    inv_smooth[-2:] = 1.0
    down = (torch.randn(case.rank, case.k, generator=generator) * 0.1).to(case.stored)
    activation = ActivationFormat(4, case.group, case.range, case.rotate, case.shift)
    codes, scale, low = quantize_activation(x, inv_smooth, down, activation)

    b = ProgramBuilder()
    coded = b.call(
        quantize_s4,
        b.input(x),
        b.weight("inv_smooth", inv_smooth),
        b.weight("down", down),
        *(case.group, case.range, case.rotate, case.shift),
    )
    items = [b.call(operator.getitem, coded, i) for i in range(3)]
    # What a quantization leaves is read by linears alone: here by one whose weight is the unit matrix, and by one
    # whose weight is 0 and whose up-projection is the unit matrix.
    decoded = _linear(b, "codes", items, torch.eye(case.k), case, torch.zeros(case.k, case.rank))
    outputs = [decoded]
    if case.rank:
        nothing = torch.zeros(case.rank, case.k)
        outputs.append(_linear(b, "low", items, nothing, case, torch.eye(case.rank)))
    program = b.finish(*outputs)
    materialize(program)
    lowered = lower(program, fuse(program, GPU_TRAITS), backend=backend_of(SM_80))
    run = PlanRunner(program, lowered)
    by_group = codes.reshape(case.rows, -1, case.group).float() * scale.unsqueeze(-1)
    x_hat = (x + case.shift) * inv_smooth
    bound = EPS * (case.k + 1) * 2 * (x_hat.abs() @ down.float().abs().T) + SPLIT * low.abs()
    for schedule in (0, 1):
        found = list(run(b.inputs, schedule).values())
        assert torch.equal(found[0], by_group.reshape(x.shape))
        if case.rank:
            assert bool(((found[1] - low).abs() <= bound).all())
            assert float(bound.max()) < 0.1 * float(low.abs().max())


@pytest.mark.parametrize(
    ("encoding", "rows", "k", "rotate"),
    [("int", 19, 320, True), ("e4m3", 5, 208, False), ("e4m3", 19, 320, True)],
)
def test_quantize_rows__8_bits(encoding: str, rows: int, k: int, rotate: bool) -> None:
    """A scale a row: codes times scales, bit for bit, by a linear whose weight is the unit matrix."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, k, generator=generator) * torch.logspace(-3, 3, rows)[:, None]
    x[0] = 0.0  # a row whose scale is 0
    inv_smooth, down = torch.rand(k, generator=generator) + 0.5, torch.zeros(0, k)
    range_name = {"int": "symmetric", "e4m3": "absmax"}[encoding]
    precision = {"int": "int8", "e4m3": "fp8"}[encoding]
    attributes = (k, range_name, rotate, 0.125, encoding, 1.0)
    codes, scale, _ = quantize(x, inv_smooth, down, *attributes)
    one = torch.tensor(1.0).to(torch.float8_e4m3fn).view(torch.uint8)
    unit = torch.eye(k).to(torch.uint8) * one if encoding == "e4m3" else torch.eye(k).to(torch.int8)
    b = ProgramBuilder()
    given = (b.weight("inv_smooth", inv_smooth), b.weight("down", down))
    coded = b.call(quantize, b.input(x), *given, *attributes)
    items = [b.call(operator.getitem, coded, i) for i in range(3)]
    weights = {"codes": unit, "scale": torch.ones(k, 1).bfloat16(), "up": torch.zeros(k, 0)}
    nodes = [b.weight(name, tensor) for name, tensor in weights.items()]
    program = b.finish(b.call(linear_coded, *items, *nodes, None, precision, 1.0))
    materialize(program)
    lowered = lower(program, fuse(program, GPU_TRAITS), backend=backend_of(SM_80))
    values = codes.view(torch.float8_e4m3fn).float() if encoding == "e4m3" else codes.float()
    assert values.unique().numel() > 100
    run = PlanRunner(program, lowered)
    for schedule in (0, 1):
        assert torch.equal(run(b.inputs, schedule)["0"], values * scale)


def _linear(
    b: ProgramBuilder, name: str, items: list[Node], w: Tensor, case: Case, up: Tensor
) -> Node:
    ones = torch.ones(len(w), case.k // case.group, dtype=torch.bfloat16)
    weights = {"codes": w.to(torch.int8), "scale": ones, "up": up.to(torch.bfloat16)}
    return b.call(
        linear_s4, *items, *(b.weight(f"{name}.{n}", t) for n, t in weights.items()), None
    )
