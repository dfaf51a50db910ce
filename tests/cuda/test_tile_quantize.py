"""Quantization for the next linear in the kernel of the one before: the codes that a kernel of rows makes, to the bit,
and its projection within the bound of 16-bit products."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from itertools import chain

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
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.quantize.ops import linear_s4, quantize_s4
from svdqc.compiler.targets.cuda import REGISTERS_PER_SM, SM_75, SM_80, SM_90A, CudaTarget

aten = torch.ops.aten
EPS = 2.0**-24
SEED = 31
K, OUT = 64, 24


@dataclass(frozen=True)
class Case:
    """m rows of `width` features between the two linears; fused: whether tiles are coded."""

    m: int
    width: int
    group: int = 64
    rank: int = 16
    rotate: bool = False
    range: str = "signed8"
    down: torch.dtype = torch.bfloat16
    fused: bool = True


CASES = (
    Case(33, 256),
    Case(15, 384, rank=0, range="unsigned"),
    Case(16, 192, rank=0, rotate=True),
    Case(17, 128, group=128, rank=40, rotate=True, range="symmetric"),
    Case(9, 192, fused=False),  # no part of 128 columns in 192: a kernel of rows
    Case(20, 256, group=32, rank=8, down=torch.float32),
)


class Pair:
    """quantize, linear, gelu, quantize, linear."""

    def __init__(self, case: Case, number: int) -> None:
        made = torch.Generator().manual_seed(SEED + number)
        self.case, self.number = case, number
        self.x = torch.randn(case.m, K, generator=made)
        self.tensors: dict[str, Tensor] = {}
        for name, n, k, rank, group in (
            ("first", case.width, K, 0, 64),
            ("second", OUT, case.width, case.rank, case.group),
        ):
            self.tensors |= {
                f"{name}.smooth": torch.rand(k, generator=made) + 0.5,
                f"{name}.down": (torch.randn(rank, k, generator=made) / k**0.5).to(case.down),
                f"{name}.codes": torch.randint(-8, 8, (n, k), generator=made, dtype=torch.int8),
                f"{name}.scale": (0.02 * torch.randn(n, k // group, generator=made)).bfloat16(),
                f"{name}.up": torch.randn(n, rank, generator=made).bfloat16(),
            }

    def build(self, b: ProgramBuilder, x: Node) -> Node:
        case = self.case
        hidden = self.linear(b, "first", x, 64, "signed8", False)
        hidden = b.call(aten.gelu.default, hidden, approximate="tanh")
        return self.linear(b, "second", hidden, case.group, case.range, case.rotate)

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

    def bound(self, hidden: Tensor) -> Tensor:
        """How far apart two projections of the same x̂ may be, in the result: 16-bit products leave out 2^-16 of each
        (2^-17, once more for f32 weights), and sums of k come in another order."""
        x_hat = (hidden * self.tensors["second.smooth"]).abs().double()
        size = x_hat @ self.tensors["second.down"].abs().double().T
        size = size @ self.tensors["second.up"].abs().double().T
        return (2.0**-16 + EPS * 2 * (self.case.width + 3)) * size + 2**-22 * size.max()


def build(cases: tuple[Case, ...]) -> tuple[Program, ProgramBuilder, list[Pair]]:
    pairs = [Pair(case, i) for i, case in enumerate(cases)]
    b = ProgramBuilder()
    inputs = [b.input(pair.x) for pair in pairs]
    program = b.finish(*(pair.build(b, x) for pair, x in zip(pairs, inputs, strict=True)))
    materialize(program)
    return program, b, pairs


def planned(program: Program, target: CudaTarget, together: bool = True) -> Lowered:
    each = dict.fromkeys(GPU_TRAITS.column_tiled, 1)
    traits = GPU_TRAITS if together else replace(GPU_TRAITS, column_tiled=each)
    return lower(program, fuse(program, traits), backend=backend_of(target))


@pytest.mark.parametrize(
    ("target", "cases"), [(SM_75, CASES[-1:]), (SM_80, CASES[:-1])], ids=["sm_75", "sm_80"]
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
        assert not coded or region.stored == coded
    again = run(b.inputs, schedule=1)
    after = [y.double() for y in program.run(b.inputs)]
    for i, pair in enumerate(pairs):
        name = str(i)
        assert torch.equal(results[name], again[name])
        hidden = torch.nn.functional.gelu(first_linear(pair), approximate="tanh")
        bound = pair.bound(hidden)
        miss = (results[name].double() - apart[name].double()).abs()
        assert (miss <= bound).all(), (pair.case, float((miss / bound).max()))
        assert bound.max() < 2e-2 * wanted[i].abs().max()
        # The rewritten graph still computes what it did, also where an artifact keeps it.
        assert ((after[i] - wanted[i]).abs() <= bound).all()
    kept = load_graph(dump_graph(program), program.weights)
    assert all(torch.equal(y.double(), a) for y, a in zip(kept.run(b.inputs), after, strict=True))


def first_linear(pair: Pair) -> Tensor:
    given = [pair.tensors[f"first.{key}"] for key in ("smooth", "down", "codes", "scale", "up")]
    coded = quantize_s4(pair.x, *given[:2], 64, "signed8", False, 0.0)
    result: Tensor = linear_s4(*coded, *given[2:], None)
    return result


@pytest.mark.parametrize("target", [SM_80, SM_90A], ids=lambda target: target.arch)
def test_flux_width__no_spills(target: CudaTarget) -> None:
    """The first layer of FLUX.1-dev's MLP, coded for the second: gelu, groups of 64, rank 32."""
    sass.require_nvcc()
    sass.require_disassembler()
    b = ProgramBuilder()
    x = b.input(torch.zeros(4608, 3072))
    coded = b.call(quantize_s4, x, *zeros(b, "a", (3072,), (32, 3072)), 64, "signed8", False, 0.0)
    parts = [b.call(operator.getitem, coded, i) for i in (0, 1, 2)]
    weights = zeros(b, "w", (12288, 3072), (12288, 48), (12288, 32), (12288,))
    hidden = b.call(linear_s4, *parts, *weights)
    hidden = b.call(aten.gelu.default, hidden, approximate="tanh")
    smooth = zeros(b, "b", (12288,), (32, 12288))
    coded = b.call(quantize_s4, hidden, *smooth, 64, "unsigned", False, 0.25)
    parts = [b.call(operator.getitem, coded, i) for i in (0, 1, 2)]
    weights = zeros(b, "v", (3072, 12288), (3072, 192), (3072, 32), (3072,))
    program = b.finish(b.call(linear_s4, *parts, *weights))
    materialize(program)
    made = planned(program, target)
    [product] = [e for e in made.plan.kernels if "gelu_quantize" in e.name]
    assert product.name.startswith("gemm_s4_s4_f32_12288x3072_r32_gelu_quantize__128x128")
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
