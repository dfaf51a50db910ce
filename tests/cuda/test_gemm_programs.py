"""Linears on tensor cores as the compiler prints them, with every kind of epilogue: on the host back end, against the
reference ops; integer parts exact, floats within the bound of their sums."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from tests.compiler.programs import ProgramBuilder
from tests.cuda.host_runner import PlanRunner
from torch import Tensor
from torch.fx import Node

from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.lower import Lowered, lower
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.quantize.ops import linear_s4, quantize_s4
from svdqc.compiler.quantize.ranges import ActivationFormat
from svdqc.compiler.quantize.reference import quantize_activation
from svdqc.compiler.targets.cuda import SM_80, CudaTarget

SEED = 9
EPS = 2.0**-24
aten = torch.ops.aten


@dataclass(frozen=True)
class Epilogue:
    """What follows the linear: on nodes, on tensors, and how much it may enlarge an error."""

    nodes: Callable[[ProgramBuilder, Node, Node], Node]
    tensors: Callable[[Tensor, Tensor], Tensor]
    slope: float = 1.0


def _gated(b: ProgramBuilder, y: Node, other: Node) -> Node:
    gate = b.weight("gate", torch.full((int(y.meta["val"].shape[-1]),), 0.5))
    return b.call(aten.add.Tensor, b.call(aten.mul.Tensor, y, gate), other)


EPILOGUES = {
    "store": Epilogue(lambda b, y, _: y, lambda y, _: y),
    "gelu": Epilogue(
        lambda b, y, _: b.call(aten.gelu.default, y, approximate="tanh"),
        lambda y, _: torch.nn.functional.gelu(y, approximate="tanh"),
        1.2,
    ),
    "silu": Epilogue(
        lambda b, y, _: b.call(aten.silu.default, y), lambda y, _: torch.nn.functional.silu(y), 1.2
    ),
    "relu": Epilogue(lambda b, y, _: b.call(aten.relu.default, y), lambda y, _: y.relu()),
    "gate_residual": Epilogue(_gated, lambda y, other: 0.5 * y + other),
    "multiply": Epilogue(
        lambda b, y, other: b.call(aten.mul.Tensor, y, other), lambda y, other: y * other, 5.0
    ),
}


def _lowered(program: Program, target: CudaTarget) -> Lowered:
    materialize(program)
    return lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(target))


@dataclass(frozen=True)
class Case:
    m: int
    n: int
    k: int
    group: int = 64
    rank: int = 16
    range: str = "signed8"
    bias: bool = True
    up: torch.dtype = torch.bfloat16


def run_linear_s4(
    case: Case, epilogue: Epilogue, target: CudaTarget
) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernels give, what is right (f64) and the bound: [m, n] each."""
    made = torch.Generator().manual_seed(
        hash((SEED, case.m, case.n, case.k, case.rank)) % (1 << 31)
    )
    x = torch.randn(case.m, case.k, generator=made)
    if case.range == "unsigned":
        x = x.abs()
    other = torch.randn(case.m, case.n, generator=made)
    down = (torch.randn(case.rank, case.k, generator=made) / case.k**0.5).bfloat16()
    up = torch.randn(case.n, case.rank, generator=made).to(case.up)
    w_codes = torch.randint(-8, 8, (case.n, case.k), generator=made, dtype=torch.int8)
    w_scale = (0.02 * torch.randn(case.n, case.k // case.group, generator=made)).bfloat16()
    bias = torch.randn(case.n, generator=made) if case.bias else None
    inv_smooth = torch.rand(case.k, generator=made) + 0.5

    b = ProgramBuilder()
    x_node, other_node = b.input(x), b.input(other)
    coded = b.call(
        quantize_s4, x_node, b.weight("inv_smooth", inv_smooth), b.weight("down", down),
        case.group, case.range, False, 0.0,
    )  # fmt: skip
    parts = [b.call(operator.getitem, coded, i) for i in range(3)]
    y = b.call(
        linear_s4, *parts, b.weight("w_codes", w_codes), b.weight("w_scale", w_scale),
        b.weight("up", up), None if bias is None else b.weight("bias", bias),
    )  # fmt: skip
    program = b.finish(epilogue.nodes(b, y, other_node))
    got = PlanRunner(program, _lowered(program, target))(b.inputs)["0"]

    activation = ActivationFormat(group_size=case.group, range=case.range)
    codes, scale, _ = quantize_activation(x, inv_smooth, down, activation)
    groups = case.k // case.group
    terms = torch.einsum(
        "mgk,ngk,mg,ng->gmn",
        codes.double().reshape(case.m, groups, -1),
        w_codes.double().reshape(case.n, groups, -1),
        scale.double(),
        w_scale.double(),
    )
    x_hat, down, up = (x * inv_smooth).double(), down.double(), up.double()
    added = torch.zeros(case.n).double() if bias is None else bias.double()
    want = terms.sum(0) + (x_hat @ down.T) @ up.T + added
    branch = (x_hat.abs() @ down.abs().T) @ up.abs().T
    size = terms.abs().sum(0) + branch + added.abs()
    bound = EPS * ((groups + 2 * case.rank + 3) * size + (case.k + 3) * branch) + 2.0**-16 * branch
    result = epilogue.tensors(want, other.double())
    return got.double(), result, epilogue.slope * bound + 8 * EPS * (result.abs() + size)


def check(case: Case, epilogue: str = "store", target: CudaTarget = SM_80) -> None:
    got, want, bound = run_linear_s4(case, EPILOGUES[epilogue], target)
    miss = (got - want).abs()
    assert (miss <= bound).all(), (SEED, float(miss.max()), float((miss / bound).max()))
    assert bound.max() < 2e-2 * want.abs().max()


@pytest.mark.parametrize("epilogue", list(EPILOGUES))
def test_linear_s4__epilogues(epilogue: str) -> None:
    check(Case(33, 72, 192), epilogue)
