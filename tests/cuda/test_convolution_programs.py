"""Convolutions on tensor cores as the compiler prints them, against PyTorch in f64, on the host back end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from tests.compiler.programs import ProgramBuilder
from tests.cuda.host_runner import PlanRunner
from tests.cuda.sass import disassembled
from torch import Tensor
from torch.fx import Node

from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.lower import Lowered, lower
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.targets.cuda import SM_75, SM_80, CudaTarget
from svdqc.compiler.targets.layouts import REGISTERED

SEED = 31
EPS = 2.0**-24
SPLIT = 2.0**-16
"""What a product of two floats loses to their 16-bit halves (gemm_float_math.h), Turing's f16 less."""
aten = torch.ops.aten


@dataclass(frozen=True)
class Case:
    """x [batch, channels, *size]; kernel, stride, padding and dilation per axis."""

    channels: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    batch: int = 1
    dtype: torch.dtype = torch.bfloat16
    bias: bool = True


CASES = {
    "3x3": Case(8, 40, (9, 7), (3, 3), padding=1, batch=2),
    "1x1": Case(20, 33, (5, 13), (1, 1)),
    "channels_not_of_four": Case(3, 16, (10, 10), (3, 3), padding=1),
    "patches": Case(4, 64, (16, 16), (2, 2), stride=2, bias=False),
    "stride_and_dilation": Case(16, 24, (17, 12), (3, 2), stride=2, padding=2, dilation=2),
    "one_axis": Case(12, 32, (70,), (5,), padding=2),
    "three_axes": Case(4, 32, (4, 5, 6), (3, 3, 3), padding=1),
    "f32": Case(8, 32, (8, 8), (3, 3), padding=1, dtype=torch.float32),
    "f16": Case(8, 32, (8, 8), (3, 3), padding=1, dtype=torch.float16),
    "many_channels": Case(72, 32, (3, 3), (3, 3), padding=1),
}


class Problem:
    def __init__(self, case: Case) -> None:
        made = torch.Generator().manual_seed(hash((SEED, case)) % (1 << 31))
        self.case, axes = case, len(case.size)
        self.x = torch.randn(case.batch, case.channels, *case.size, generator=made)
        weight = torch.randn(case.outputs, case.channels, *case.kernel, generator=made)
        self.weight = weight.to(case.dtype)
        self.bias = torch.randn(case.outputs, generator=made) if case.bias else None
        self.numbers = ([case.stride] * axes, [case.padding] * axes, [case.dilation] * axes)

    def node(self, b: ProgramBuilder, x: Node) -> Node:
        bias = None if self.bias is None else b.weight("bias", self.bias)
        weight = b.weight("weight", self.weight)
        if self.case.dtype != torch.float32:
            weight = b.call(aten._to_copy.default, weight, dtype=torch.float32)
        axes = len(self.case.size)
        return b.call(
            aten.convolution.default, x, weight, bias, *self.numbers, False, [0] * axes, 1
        )

    def expected(self) -> tuple[Tensor, Tensor]:
        """The result in f64 and the bound of its error."""
        axes, k = len(self.case.size), self.weight[0].numel()
        x, weight = self.x.double(), self.weight.double()
        bias = torch.zeros(self.case.outputs).double() if self.bias is None else self.bias.double()
        rest = (*self.numbers, False, [0] * axes, 1)
        want = aten.convolution.default(x, weight, bias, *rest)
        size = aten.convolution.default(x.abs(), weight.abs(), bias.abs(), *rest)
        return want, ((3 * k + 2) * EPS + SPLIT) * size


def _lowered(b: ProgramBuilder, y: Node, target: CudaTarget) -> tuple[object, Lowered]:
    program = b.finish(y)
    materialize(program)
    return program, lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(target))


def check(
    case: Case,
    target: CudaTarget = SM_80,
    after: Callable[[ProgramBuilder, Node], Node] = lambda b, y: y,
    expected: Callable[[Tensor], Tensor] = lambda y: y,
) -> Lowered:
    problem, b = Problem(case), ProgramBuilder()
    y = problem.node(b, b.input(problem.x))
    program, lowered = _lowered(b, after(b, y), target)
    got = PlanRunner(program, lowered)(b.inputs)["0"].double()  # type: ignore[arg-type]
    want, bound = problem.expected()
    miss = (got - expected(want)).abs()
    assert (miss <= 1.2 * bound + 1e-6).all(), (SEED, float(miss.max()))
    assert bound.max() < 2e-2 * want.abs().max()
    assert any("conv_rows.h" in source for source in lowered.kernels.values())
    return lowered


@pytest.mark.parametrize("name", list(CASES))
def test_convolution__cases(name: str) -> None:
    check(CASES[name])


def test_convolution__turing() -> None:
    check(CASES["3x3"], SM_75)


def test_convolution__epilogue() -> None:
    check(
        CASES["3x3"],
        after=lambda b, y: b.call(aten.silu.default, y),
        expected=torch.nn.functional.silu,
    )


def test_convolution__one_after_another_copies_16_bytes() -> None:
    """A convolution leaves channels innermost, so the next one loads four at a time."""
    first = Problem(Case(4, 16, (6, 6), (3, 3), padding=1, dtype=torch.float32))
    second = Problem(Case(16, 8, (6, 6), (3, 3), padding=1, dtype=torch.float32, bias=False))
    b = ProgramBuilder()
    between = first.node(b, b.input(first.x))
    weight = b.weight("second", second.weight)
    y = b.call(aten.convolution.default, between, weight, None, *second.numbers, False, [0, 0], 1)
    program, lowered = _lowered(b, y, SM_80)
    got = PlanRunner(program, lowered)(b.inputs)["0"].double()  # type: ignore[arg-type]
    want = torch.nn.functional.conv2d(first.expected()[0], second.weight.double(), padding=1)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    assert any("Tile::kThreads, 4>" in source for source in lowered.kernels.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_conv_layout__round_trip(dtype: torch.dtype) -> None:
    name = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    layout = REGISTERED[f"conv_{name}_mma"]
    for shape in ((33, 5, 3, 3), (8, 16, 1, 1), (40, 7, 5), (4, 3, 2, 2, 2)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(SEED)).to(dtype)
        packed = layout.pack(weight)
        flat = packed.reshape(-1).view(torch.uint8)
        assert flat.numel() == layout.num_bytes(shape)
        assert torch.equal(layout.unpack(flat, shape), weight)


@pytest.mark.parametrize(("target", "opcode"), [(SM_75, "HMMA.1688"), (SM_80, "HMMA.16816")])
def test_convolution__sass(target: CudaTarget, opcode: str) -> None:
    case = Case(64, 128, (32, 32), (3, 3), padding=1)
    problem, b = Problem(case), ProgramBuilder()
    _, lowered = _lowered(b, problem.node(b, b.input(problem.x)), target)
    name, source = next(kernel for kernel in lowered.kernels.items() if "conv_rows.h" in kernel[1])
    sass = disassembled(name, source, target)
    sass.require_opcode(opcode)
    sass.require_clean()
