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
from svdqc.compiler.quantize.ops_formats import linear_w
from svdqc.compiler.quantize.ranges import ActivationFormat
from svdqc.compiler.quantize.reference import decode_weight, quantize_activation
from svdqc.compiler.targets.cuda import SM_75, SM_80, CudaTarget

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


def run_linear(
    m: int, n: int, k: int, stored: torch.dtype, target: CudaTarget, view: bool = False
) -> None:
    """A linear with float weights, of rows in memory or (view) of a product that its kernel computes."""
    made = torch.Generator().manual_seed(hash((SEED, m, n, k)) % (1 << 31))
    x = torch.randn(m, k, generator=made)
    w, bias = torch.randn(n, k, generator=made).to(stored), torch.randn(n, generator=made)
    b = ProgramBuilder()
    rows = b.input(x.T.contiguous() if view else x)
    if view:
        rows = b.call(aten.permute.default, rows, [1, 0])
    weight = b.weight("w", w)
    if stored is not torch.float32:
        weight = b.call(aten._to_copy.default, weight, dtype=torch.float32)
    y = b.call(aten.linear.default, rows, weight, b.weight("bias", bias))
    program = b.finish(b.call(aten.relu.default, y))
    got = PlanRunner(program, _lowered(program, target))(b.inputs)["0"].double()
    want = (x.double() @ w.double().T + bias.double()).relu()
    size = x.double().abs() @ w.double().abs().T + bias.double().abs()
    bound = (EPS * (3 * k + 3) + 2.0**-16) * size
    if target is SM_75:  # relative to the largest of 16 k
        bound += 2.0**-20 * k * x.double().abs().amax() * w.double().abs().amax()
    assert ((got - want).abs() <= bound).all(), (SEED, float(((got - want).abs() / bound).max()))
    assert bound.max() < 2e-2 * want.abs().max()


@pytest.mark.parametrize("target", [SM_75, SM_80], ids=lambda target: target.arch)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_linear__stored_weights(stored: torch.dtype, target: CudaTarget) -> None:
    run_linear(33, 70, 100, stored, target)


def test_linear__reads_through_a_view() -> None:
    run_linear(17, 40, 48, torch.bfloat16, SM_80, view=True)


@pytest.mark.parametrize("form", ["s4", "nf4"])
@pytest.mark.parametrize("m", [1, 20])
def test_linear_w__silu_before_and_after(form: str, m: int) -> None:
    n, k = 72, 192
    made = torch.Generator().manual_seed(SEED)
    lo, hi = (0, 15) if form == "nf4" else (-8, 7)
    codes = torch.randint(lo, hi + 1, (n, k), generator=made, dtype=torch.int8)
    scale = (0.1 * torch.randn(n, k // 64, generator=made)).bfloat16()
    x, bias = torch.randn(m, k, generator=made), torch.randn(n, generator=made)
    b = ProgramBuilder()
    inner = b.call(aten.silu.default, b.input(x))
    y = b.call(
        linear_w, inner, b.weight("codes", codes), b.weight("scale", scale), b.weight("bias", bias), form
    )  # fmt: skip
    program = b.finish(b.call(aten.silu.default, y))
    got = PlanRunner(program, _lowered(program, SM_80))(b.inputs)["0"].double()
    rows = torch.nn.functional.silu(x.double())
    w = decode_weight(codes, scale, form).double()
    want = torch.nn.functional.silu(rows @ w.T + bias.double())
    size = rows.abs() @ w.abs().T + bias.double().abs()
    bound = 1.2 * (EPS * (3 * k + 20) + 2.0**-16) * size
    assert ((got - want).abs() <= bound).all(), (SEED, float(((got - want).abs() / bound).max()))
    assert bound.max() < 2e-2 * want.abs().max()
