"""Quantization for the next linear in the kernel of the one before: the codes that a kernel of rows makes, to the bit,
and its projection within the bound of 16-bit products."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import pytest
import torch
from tests.compiler.programs import ProgramBuilder
from tests.cuda import sass
from tests.cuda.host_runner import PlanRunner
from torch import Tensor
from torch.fx import Node

from svdqc.compiler.artifact.graph import dump_graph, load_graph
from svdqc.compiler.codegen.lower import Lowered, lower
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.driver.variants import backend_of
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.interleave_halves import interleave_halves
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.quantize.ops import linear_s4, quantize_s4
from svdqc.compiler.targets.cuda import REGISTERS_PER_SM, SM_75, SM_80, SM_90A, CudaTarget

aten = torch.ops.aten
EPS = 2.0**-24
SEED = 31
K, OUT = 64, 24


@dataclass(frozen=True)
class Case:
    """m rows of `width` features between the two linears; fused: whether tiles are coded.

    gated   the features are halves of the first linear's columns, the one times GELU of the other
    beside  so many columns of it come before, and are a result of the program
    branch  of the second linear: without it, equal codes give equal bits
    """

    m: int
    width: int
    group: int = 64
    rank: int = 16
    rotate: bool = False
    range: str = "signed8"
    down: torch.dtype = torch.bfloat16
    gated: bool = False
    beside: int = 0
    branch: bool = True
    fused: bool = True


CASES = (
    Case(33, 256),
    Case(15, 384, rank=0, range="unsigned"),
    Case(16, 192, rank=0, rotate=True),
    Case(17, 128, group=128, rank=40, rotate=True, range="symmetric"),
    Case(9, 192, fused=False),  # no part of 128 columns in 192: a kernel of rows
    Case(20, 256, group=32, rank=8, down=torch.float32),
)
GATED = (
    Case(33, 256, rank=40, gated=True),
    Case(18, 192, rank=8, gated=True, branch=False),  # parts of 64
    Case(21, 192, group=32, rank=0, gated=True),
    Case(16, 128, rank=0, rotate=True, range="symmetric", gated=True),
    Case(9, 128, group=128, rank=0, gated=True, fused=False),  # a group is 256 columns
    Case(9, 128, rank=72, gated=True, fused=False),  # parts are more than what they are made of
)
SLICES = (
    Case(17, 256, rank=16, beside=128),
    Case(15, 128, rank=0, beside=64),
    Case(12, 96, group=32, rank=0, gated=True, beside=64),
    Case(10, 64, rank=24, gated=True, beside=384, branch=False),
    Case(9, 128, rank=0, beside=32, fused=False),  # tiles have groups of 64 from 32 on
)


class Pair:
    """quantize, linear, gelu, quantize, linear."""

    def __init__(self, case: Case, number: int) -> None:
        made = torch.Generator().manual_seed(SEED + number)
        self.case, self.number = case, number
        self.columns = case.width * (2 if case.gated else 1) + case.beside
        self.x = torch.randn(case.m, K, generator=made)
        self.tensors: dict[str, Tensor] = {}
        for name, n, k, rank, group in (
            ("first", self.columns, K, 0, 64),
            ("second", OUT, case.width, case.rank, case.group),
        ):
            self.tensors |= {
                f"{name}.smooth": torch.rand(k, generator=made) + 0.5,
                f"{name}.down": (torch.randn(rank, k, generator=made) / k**0.5).to(case.down),
                f"{name}.codes": torch.randint(-8, 8, (n, k), generator=made, dtype=torch.int8),
                f"{name}.scale": (0.02 * torch.randn(n, k // group, generator=made)).bfloat16(),
                f"{name}.up": torch.randn(n, rank, generator=made).bfloat16(),
            }
        if not case.branch:
            self.tensors["second.up"].zero_()

    def build(self, b: ProgramBuilder, x: Node) -> list[Node]:
        """The result, and the columns beside."""
        case = self.case
        y = self.linear(b, "first", x, 64, "signed8", False)
        bounds = [0, case.beside, self.columns] if case.beside else [0, self.columns]
        if case.gated:
            bounds.insert(-1, case.beside + case.width)
        parts = [
            b.call(aten.slice.Tensor, y, 1, *ends) if ends != (0, self.columns) else y
            for ends in pairwise(bounds)
        ]
        beside = [b.call(aten.neg.default, parts.pop(0))] if case.beside else []
        hidden = b.call(aten.gelu.default, parts[-1], approximate="tanh")
        if case.gated:
            hidden = b.call(aten.mul.Tensor, parts[0], hidden)
        return [self.linear(b, "second", hidden, case.group, case.range, case.rotate), *beside]

    def linear(
        self, b: ProgramBuilder, name: str, x: Node, group: int, range: str, rotate: bool
    ) -> Node:
        weights = {
            key.split(".")[1]: b.weight(f"{self.number}.{key}", tensor)
            for key, tensor in self.tensors.items()
            if key.startswith(name)
        }
        shift = 0.25 if range == "unsigned" else 0.0
        coded = b.call(
            quantize_s4, x, weights["smooth"], weights["down"], group, range, rotate, shift
        )
        parts = [b.call(operator.getitem, coded, i) for i in (0, 1, 2)]
        own = [weights[key] for key in ("codes", "scale", "up")]
        return b.call(linear_s4, *parts, *own, None)

    def hidden(self) -> Tensor:
        """What is coded for the second linear."""
        given = [self.tensors[f"first.{key}"] for key in ("smooth", "down", "codes", "scale", "up")]
        coded = quantize_s4(self.x, *given[:2], 64, "signed8", False, 0.0)
        y = linear_s4(*coded, *given[2:], None)[:, self.case.beside :]
        value, gate = y.chunk(2, -1) if self.case.gated else (1.0, y)
        result: Tensor = value * torch.nn.functional.gelu(gate, approximate="tanh")
        return result

    def bound(self) -> Tensor:
        """How far apart two projections of the same x̂ may be, in the result: 16-bit products leave out 2^-16 of each
        (2^-17, once more for f32 weights), and sums of k come in another order."""
        x_hat = (self.hidden() * self.tensors["second.smooth"]).abs().double()
        size = x_hat @ self.tensors["second.down"].abs().double().T
        size = size @ self.tensors["second.up"].abs().double().T
        return (2.0**-16 + EPS * 2 * (self.case.width + 3)) * size + 2**-22 * size.max()


def build(cases: tuple[Case, ...]) -> tuple[Program, ProgramBuilder, list[Pair]]:
    pairs = [Pair(case, i) for i, case in enumerate(cases)]
    b = ProgramBuilder()
    inputs = [b.input(pair.x) for pair in pairs]
    results = [pair.build(b, x) for pair, x in zip(pairs, inputs, strict=True)]
    program = b.finish(*(own[0] for own in results), *(own[1] for own in results if own[1:]))
    interleave_halves(program)
    materialize(program)
    return program, b, pairs


def planned(program: Program, target: CudaTarget, together: bool = True) -> Lowered:
    each = dict.fromkeys(GPU_TRAITS.column_tiled, 1)
    traits = GPU_TRAITS if together else replace(GPU_TRAITS, column_tiled=each)
    return lower(program, fuse(program, traits), backend=backend_of(target))


@pytest.mark.parametrize(
    ("target", "cases"),
    [(SM_75, CASES[-1:]), (SM_80, CASES[:-1]), (SM_80, GATED), (SM_80, SLICES)],
    ids=["sm_75", "sm_80", "gated", "slices"],
)
def test_codes_of_tiles(target: CudaTarget, cases: tuple[Case, ...]) -> None:
    program, b, pairs = build(cases)
    apart = PlanRunner(program, planned(program, target, together=False))(b.inputs)
    wanted = [y.double() for y in program.run(b.inputs)]
    lowered = planned(program, target)
    run = PlanRunner(program, lowered)
    results = run(b.inputs)
    fused = [name for name in lowered.kernels if name.startswith("gemm") and "quantize" in name]
    assert len(fused) == sum(case.fused for case in cases)
    for region in chain(*lowered.launches):  # what is coded is not stored besides
        coded = [n for n in region.nodes if str(n.target) in anchors.QUANTIZERS]
        assert not coded or not any(n in region.stored for n in coded[0].all_input_nodes)
    again = run(b.inputs, schedule=1)
    after = [y.double() for y in program.run(b.inputs)]
    for i, pair in enumerate(pairs):
        name, bound = str(i), pair.bound()
        miss = (results[name].double() - apart[name].double()).abs()
        assert (miss <= bound).all(), (pair.case, float((miss / bound).max()))
        assert bound.max() < 2e-2 * wanted[i].abs().max()
        # The rewritten graph still computes what it did, also where an artifact keeps it.
        assert ((after[i] - wanted[i]).abs() <= bound).all()
    for name, found in results.items():
        assert torch.equal(found, again[name])
        if int(name) >= len(pairs):  # columns beside
            assert torch.equal(found, apart[name])
    kept = load_graph(dump_graph(program), program.weights)
    assert all(torch.equal(y.double(), a) for y, a in zip(kept.run(b.inputs), after, strict=True))


@pytest.mark.parametrize("target", [SM_80, SM_90A], ids=lambda target: target.arch)
@pytest.mark.parametrize(("width", "gated"), [(12288, False), (10240, True)], ids=["flux", "z"])
def test_widths_of_models__no_spills(target: CudaTarget, width: int, gated: bool) -> None:
    """The first layer of an MLP, coded for the second: FLUX.1-dev's GELU and Z-Image's SwiGLU, rank 32."""
    sass.require_nvcc()
    sass.require_disassembler()
    inner, columns = (3840, 2 * width) if gated else (3072, width)
    b = ProgramBuilder()
    x = b.input(torch.zeros(4608, inner))
    coded = b.call(quantize_s4, x, *zeros(b, "a", (inner,), (32, inner)), 64, "signed8", False, 0.0)
    parts = [b.call(operator.getitem, coded, i) for i in (0, 1, 2)]
    shapes = (columns, inner), (columns, inner // 64), (columns, 32), (columns,)
    hidden = b.call(linear_s4, *parts, *zeros(b, "w", *shapes))
    if gated:
        halves = [b.call(aten.slice.Tensor, hidden, 1, i * width, (i + 1) * width) for i in (0, 1)]
        hidden = b.call(aten.mul.Tensor, b.call(aten.silu.default, halves[0]), halves[1])
    else:
        hidden = b.call(aten.gelu.default, hidden, approximate="tanh")
    smooth = zeros(b, "b", (width,), (32, width))
    form = (64, "signed8", False, 0.0) if gated else (64, "unsigned", False, 0.25)
    coded = b.call(quantize_s4, hidden, *smooth, *form)
    parts = [b.call(operator.getitem, coded, i) for i in (0, 1, 2)]
    weights = zeros(b, "v", (inner, width), (inner, width // 64), (inner, 32), (inner,))
    program = b.finish(b.call(linear_s4, *parts, *weights))
    interleave_halves(program)
    materialize(program)
    made = planned(program, target)
    [product] = [e for e in made.plan.kernels if e.name.startswith(f"gemm_s4_s4_f32_{columns}x")]
    activation = "silu" if gated else "gelu"
    assert f"_r32_{activation}_quantize__128x128" in product.name
    kernel = sass.disassembled(product.name, made.kernels[product.name], target)
    assert (kernel.stack_bytes, kernel.local_bytes) == (0, 0)
    assert kernel.registers * product.threads <= REGISTERS_PER_SM
    assert target.max_ctas(product.threads, product.shared_bytes, kernel.registers) >= 1


def zeros(b: ProgramBuilder, name: str, *shapes: tuple[int, ...]) -> list[Node]:
    """Weights without values: vectors are f32, the widest matrix is one of codes, the others bf16."""
    made = []
    for i, shape in enumerate(shapes):
        codes = len(shape) == 2 and len(shapes) == 4 and i == 0
        dtype = torch.int8 if codes else torch.float32 if len(shape) == 1 else torch.bfloat16
        made.append(b.weight(f"{name}{i}", torch.zeros(shape, dtype=dtype)))
    return made
