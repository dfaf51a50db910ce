"""NVFP4 linears of one program, with what must come out: for tests of both kinds of block-scaled tensor cores."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tests.compiler.programs import ProgramBuilder
from tests.cuda.host_runner import PlanRunner
from tests.cuda.nvfp4_products import e2m1_rounding
from tests.cuda.test_gemm_programs import EPILOGUES
from torch import Tensor
from torch.fx import Node

from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.lower import Lowered, lower
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.quantize.formats import dequantize_groups, e4m3_from_bits, nvfp4_tensor_scale
from svdqc.compiler.quantize.ops_formats import linear_coded, quantize
from svdqc.compiler.targets.cuda import CudaTarget

SEED = 29
EPS = 2.0**-24


@dataclass(frozen=True)
class Case:
    m: int
    n: int
    k: int
    rank: int = 16
    range: str = "best_of_three"
    rotate: bool = False
    bias: bool = True
    up: torch.dtype = torch.bfloat16
    epilogue: str = "store"


class LinearNvfp4:
    """One linear of a program: its operands, and what must come out."""

    def __init__(self, case: Case, number: int) -> None:
        made = torch.Generator().manual_seed(SEED + number)
        self.case, self.number = case, number
        m, n, k, rank = case.m, case.n, case.k, case.rank
        self.x = torch.randn(m, k, generator=made)
        self.x[0, :16] = 0.0  # a group whose scale is 0
        self.other = torch.randn(m, n, generator=made)
        self.inv_smooth = torch.rand(k, generator=made) + 0.5
        self.down = (torch.randn(rank, k, generator=made) / k**0.5).bfloat16()
        self.up = torch.randn(n, rank, generator=made).to(case.up)
        values = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, -1, -2, -3, -4, -6, -8, -12])
        picked = torch.randint(0, len(values), (n, k), generator=made)
        self.w_codes = values[picked].to(torch.int8)
        scales = 448.0 * torch.rand(n, k // 16, generator=made)
        self.w_scale = scales.to(torch.float8_e4m3fn).view(torch.uint8)
        self.w_unit = 2.0 ** (-14 - number % 3)
        self.bias = torch.randn(n, generator=made) if case.bias else None
        # Too small by half for some: their scales saturate.
        self.unit = nvfp4_tensor_scale(float(self.x.abs().max())) / (1 + number % 2)

    @property
    def format(self) -> tuple[object, ...]:
        """The last operands of svdq::quantize."""
        return 16, self.case.range, self.case.rotate, 0.25, "e2m1", self.unit

    def build(self, b: ProgramBuilder, x: Node, other: Node) -> Node:
        def weight(name: str) -> Node:
            return b.weight(f"{name}{self.number}", getattr(self, name))

        coded = b.call(quantize, x, weight("inv_smooth"), weight("down"), *self.format)
        parts = [b.call(operator.getitem, coded, i) for i in range(3)]
        bias = None if self.bias is None else weight("bias")
        weights = [weight(name) for name in ("w_codes", "w_scale", "up")]
        y = b.call(linear_coded, *parts, *weights, bias, "nvfp4", self.w_unit)
        return EPILOGUES[self.case.epilogue].nodes(b, y, other)

    def check(self, got: Tensor) -> None:
        """Codes and scales as the reference has them, so only sums may differ, by their roundings."""
        case = self.case
        codes, scale, _ = quantize(self.x, self.inv_smooth, self.down, *self.format)
        x = dequantize_groups(codes, scale).double()
        w = dequantize_groups(self.w_codes, e4m3_from_bits(self.w_scale) * self.w_unit).double()
        x_hat = ((self.x + 0.25) * self.inv_smooth).double()
        down, up = self.down.double(), self.up.double()
        added = torch.zeros(case.n).double() if self.bias is None else self.bias.double()
        want = x @ w.T + (x_hat @ down.T) @ up.T + added
        branch = (x_hat.abs() @ down.abs().T) @ up.abs().T
        size = x.abs() @ w.abs().T + branch + added.abs()
        # Beside the products a rounding for each of the branch (of two halves) and the bias.
        sums = (2 * case.rank + 3) * size + (case.k + 3) * branch
        epilogue = EPILOGUES[case.epilogue]
        bound = epilogue.slope * (e2m1_rounding(case.k) * size + EPS * sums + 2.0**-16 * branch)
        want = epilogue.tensors(want, self.other.double())
        bound += 8 * EPS * (want.abs() + size)
        miss = (got.double() - want).abs()
        assert (miss <= bound).all(), (SEED, case, float(miss.max()), float((miss / bound).max()))
        assert bound.max() < 2e-2 * want.abs().max()


def lowered_linears(
    cases: Sequence[Case], target: CudaTarget
) -> tuple[list[LinearNvfp4], ProgramBuilder, Program, Lowered]:
    """All cases as one program, so that the headers are read once."""
    linears = [LinearNvfp4(case, i) for i, case in enumerate(cases)]
    b = ProgramBuilder()
    inputs = [(b.input(linear.x), b.input(linear.other)) for linear in linears]
    built = [linear.build(b, *given) for linear, given in zip(linears, inputs, strict=True)]
    program = b.finish(*built)
    materialize(program)
    lowered = lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(target))
    return linears, b, program, lowered


def check(cases: Sequence[Case], target: CudaTarget) -> Lowered:
    linears, b, program, lowered = lowered_linears(cases, target)
    run = PlanRunner(program, lowered)
    results = run(b.inputs)
    for i, linear in enumerate(linears):
        linear.check(results[str(i)])
    again = run(b.inputs, schedule=1)  # threads in another order: the same bits
    assert all(torch.equal(again[name], results[name]) for name in results)
    return lowered
