"""Linears on tensor cores as the compiler prints them, with every kind of epilogue: on the host back end, against the
reference ops; integer parts exact, floats within the bound of their sums."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from tests.compiler.programs import ProgramBuilder
from tests.cuda.host_kernels import machine
from tests.cuda.host_runner import PlanRunner
from torch import Tensor
from torch.fx import Node

from svdqc.compiler.codegen.choice import ANALYTIC, Chooser, Problem
from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.cuda.tiles import STAGES, TILES, Coded, Tile
from svdqc.compiler.codegen.lower import Lowered, lower
from svdqc.compiler.codegen.printing.backend import Block
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.quantize.ops import linear_s4, quantize_s4
from svdqc.compiler.quantize.ops_formats import linear_w
from svdqc.compiler.quantize.ranges import ActivationFormat
from svdqc.compiler.quantize.reference import decode_weight, quantize_activation
from svdqc.compiler.targets.cuda import SM_75, SM_80, SM_86, SM_90A, CudaTarget

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


def _lowered(program: Program, target: CudaTarget, chooser: Chooser = ANALYTIC) -> Lowered:
    materialize(program)
    backend = CudaBackend(machine(target))
    return lower(program, fuse(program, GPU_TRAITS), backend=backend, chooser=chooser)


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


class LinearS4:
    """One 4-bit linear of a program: its operands, and what must come out."""

    def __init__(self, case: Case, epilogue: str, number: int) -> None:
        made = torch.Generator().manual_seed(
            hash((SEED, number, case.m, case.n, case.k)) % (1 << 31)
        )
        self.case, self.epilogue, self.number = case, EPILOGUES[epilogue], number
        m, n, k, rank = case.m, case.n, case.k, case.rank
        self.x = torch.randn(m, k, generator=made)
        if case.range == "unsigned":
            self.x = self.x.abs()
        self.other = torch.randn(m, n, generator=made)
        self.down = (torch.randn(rank, k, generator=made) / k**0.5).bfloat16()
        self.up = torch.randn(n, rank, generator=made).to(case.up)
        self.w_codes = torch.randint(-8, 8, (n, k), generator=made, dtype=torch.int8)
        self.w_scale = (0.02 * torch.randn(n, k // case.group, generator=made)).bfloat16()
        self.bias = torch.randn(n, generator=made) if case.bias else None
        self.inv_smooth = torch.rand(k, generator=made) + 0.5

    def build(self, b: ProgramBuilder, x: Node, other: Node) -> Node:
        case = self.case

        def weight(name: str) -> Node:
            return b.weight(f"{name}{self.number}", getattr(self, name))

        coded = b.call(
            quantize_s4, x, weight("inv_smooth"), weight("down"), case.group, case.range, False, 0.0
        )
        parts = [b.call(operator.getitem, coded, i) for i in range(3)]
        bias = None if self.bias is None else weight("bias")
        y = b.call(linear_s4, *parts, weight("w_codes"), weight("w_scale"), weight("up"), bias)
        return self.epilogue.nodes(b, y, other)

    def check(self, got: Tensor) -> None:
        case = self.case
        activation = ActivationFormat(group_size=case.group, range=case.range)
        codes, scale, _ = quantize_activation(self.x, self.inv_smooth, self.down, activation)
        groups = case.k // case.group
        terms = torch.einsum(
            "mgk,ngk,mg,ng->gmn",
            codes.double().reshape(case.m, groups, -1),
            self.w_codes.double().reshape(case.n, groups, -1),
            scale.double(),
            self.w_scale.double(),
        )
        x_hat, down, up = (self.x * self.inv_smooth).double(), self.down.double(), self.up.double()
        added = torch.zeros(case.n).double() if self.bias is None else self.bias.double()
        want = terms.sum(0) + (x_hat @ down.T) @ up.T + added
        branch = (x_hat.abs() @ down.abs().T) @ up.abs().T
        size = terms.abs().sum(0) + branch + added.abs()
        sums = (groups + 2 * case.rank + 3) * size + (case.k + 3) * branch
        bound = self.epilogue.slope * (EPS * sums + 2.0**-16 * branch)
        want = self.epilogue.tensors(want, self.other.double())
        bound += 8 * EPS * (want.abs() + size)
        miss = (got.double() - want).abs()
        assert (miss <= bound).all(), (SEED, case, float(miss.max()), float((miss / bound).max()))
        assert bound.max() < 2e-2 * want.abs().max()


def check(
    cases: Sequence[tuple[Case, str]], target: CudaTarget, chooser: Chooser = ANALYTIC
) -> None:
    """All cases as one program, so that the headers are read once."""
    linears = [LinearS4(case, epilogue, i) for i, (case, epilogue) in enumerate(cases)]
    b = ProgramBuilder()
    inputs = [(b.input(linear.x), b.input(linear.other)) for linear in linears]
    built = [linear.build(b, *given) for linear, given in zip(linears, inputs, strict=True)]
    program = b.finish(*built)
    run = PlanRunner(program, _lowered(program, target, chooser))
    results = run(b.inputs)
    for i, linear in enumerate(linears):
        linear.check(results[str(i)])
    again = run(b.inputs, schedule=1)  # threads in another order: the same bits
    assert all(torch.equal(again[name], results[name]) for name in results)


def test_linear_s4__epilogues() -> None:
    check([(Case(33, 72, 192), epilogue) for epilogue in EPILOGUES], SM_80)


@pytest.mark.parametrize("target", [SM_75, SM_90A], ids=lambda target: target.arch)
def test_linear_s4__ranges_and_branches(target: CudaTarget) -> None:
    cases = [
        Case(17, 40, 128, range="unsigned"),
        Case(17, 40, 128, range="symmetric", rank=0),
        Case(17, 40, 64, rank=24, bias=False, up=torch.float32),
        Case(17, 40, 96, group=32, rank=8, up=torch.float16),
        Case(17, 40, 256, group=128, rank=0, bias=False),
    ]
    check([(case, "store") for case in cases], target)


def test_linear_s4__model_widths() -> None:
    """FLUX, PixArt and SDXL."""
    cases = [
        (Case(9, 3072, 3072, rank=32), "gate_residual"),
        (Case(33, 4608, 1152, rank=32), "gelu"),
        (Case(17, 1280, 5120, rank=32), "store"),
    ]
    check(cases, SM_86)


@dataclass
class ByShape:
    """Chooses the tile of each 4-bit linear by its rows and output features."""

    tiles: dict[tuple[int, int], Tile]

    def choose(self, problem: Problem, blocks: Sequence[Block]) -> Block:
        wanted = self.tiles.get((problem.rows, problem.n)) if problem.op == "linear_s4" else None
        return blocks[0] if wanted is None else next(b for b in blocks if b.tile == wanted)


def test_linear_s4__tiles() -> None:
    """Each tile that products of 4-bit codes may have, one row and column less and more than it has; and what tuning
    may choose, the fewest and the most stages."""
    product = Coded(4, 4, 64, True)
    tiles: dict[tuple[int, int], Tile] = {}
    cases = []
    for tile in (*TILES, *(replace(TILES[3], stages=s) for s in (min(STAGES), max(STAGES)))):
        if not product.fits(tile, SM_80):
            continue
        for case in (
            Case(tile.rows + 1, tile.columns - 1, 128),
            Case(tile.rows - 1, tile.columns + 1, 192, rank=0),
        ):
            while (case.m, case.n) in tiles:
                case = replace(case, n=case.n + tile.columns)
            tiles[case.m, case.n] = tile
            cases.append((case, "store"))
    assert len(cases) >= 12
    check(cases, SM_80, ByShape(tiles))


@pytest.mark.parametrize("target", [SM_75, SM_80], ids=lambda target: target.arch)
def test_linear__stored_weights_and_views(target: CudaTarget) -> None:
    """Float weights of every type, of rows in memory and through a view."""
    made = torch.Generator().manual_seed(SEED)
    shapes = [
        (33, 70, 100, torch.bfloat16, False),
        (33, 70, 100, torch.float16, False),
        (33, 70, 101, torch.float32, False),
        (17, 40, 48, torch.bfloat16, True),
    ]
    b = ProgramBuilder()
    operands = []
    for m, n, k, stored, _ in shapes:
        w = torch.randn(n, k, generator=made).to(stored)
        operands.append((torch.randn(m, k, generator=made), w, torch.randn(n, generator=made)))
    inputs = [
        b.input(x.T.contiguous() if s[4] else x)
        for (x, _, _), s in zip(operands, shapes, strict=True)
    ]
    built = []
    for i, ((_, w, bias), shape, rows) in enumerate(zip(operands, shapes, inputs, strict=True)):
        weight = b.weight(f"w{i}", w)
        if w.dtype is not torch.float32:
            weight = b.call(aten._to_copy.default, weight, dtype=torch.float32)
        if shape[4]:
            rows = b.call(aten.permute.default, rows, [1, 0])
        y = b.call(aten.linear.default, rows, weight, b.weight(f"bias{i}", bias))
        built.append(b.call(aten.relu.default, y))
    program = b.finish(*built)
    results = PlanRunner(program, _lowered(program, target))(b.inputs)
    for i, (x, w, bias) in enumerate(operands):
        got, k = results[str(i)].double(), x.shape[1]
        want = (x.double() @ w.double().T + bias.double()).relu()
        size = x.double().abs() @ w.double().abs().T + bias.double().abs()
        bound = (EPS * (3 * k + 3) + 2.0**-16) * size
        if target is SM_75:  # relative to the largest of 16 k
            bound += 2.0**-20 * k * x.double().abs().amax() * w.double().abs().amax()
        miss = (got - want).abs()
        assert (miss <= bound).all(), (SEED, shapes[i], float((miss / bound).max()))
        assert bound.max() < 2e-2 * want.abs().max()


@pytest.mark.parametrize(("form", "m"), [("s4", 1), ("nf4", 20)])
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
