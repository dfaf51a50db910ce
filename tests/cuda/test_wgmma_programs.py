"""Linears with 8-bit activations as the compiler prints them, on Hopper's warpgroups and elsewhere, against the
reference ops, on the host back end."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import pytest
import torch
from tests.compiler.programs import ProgramBuilder
from tests.cuda.host_kernels import e4m3_rounding, machine
from tests.cuda.host_runner import PlanRunner
from tests.cuda.sass import compiler_remarks, disassembled
from torch import Tensor
from torch.fx import Node

from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.cuda.blocks.linear_wgmma import FEWEST_ROWS
from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.quantize.ops import linear_s4, quantize_s4
from svdqc.compiler.quantize.ops_formats import linear_coded, quantize
from svdqc.compiler.targets.cuda import SM_80, SM_89, SM_90A, SM_100A, CudaTarget

SEED = 23
NORM_EPS = 1e-6
aten = torch.ops.aten
RANGES = {"int8": ("symmetric", "int"), "fp8": ("absmax", "e4m3"), "w4a8": ("symmetric", "int")}


@dataclass(frozen=True)
class Case:
    precision: str
    m: int
    n: int
    k: int
    rank: int = 16
    rotate: bool = False
    group: int = 64  # of w4a8
    bias: bool = True
    head_dim: int = 0  # of the heads that are normalised after GELU


class Linear:
    """One coded linear with GELU behind it, perhaps norms of heads: its operands, and what the reference ops give."""

    def __init__(self, case: Case, number: int) -> None:
        made = torch.Generator().manual_seed(SEED + number)
        m, n, k, rank = case.m, case.n, case.k, case.rank
        self.case, self.number = case, number
        self.x = torch.randn(m, k, generator=made)
        codes = torch.randint(-127, 128, (n, k), generator=made, dtype=torch.int8)
        if case.precision == "w4a8":
            codes = codes >> 4
        if case.precision == "fp8":
            codes = codes.to(torch.float8_e4m3fn).view(torch.uint8)
        range_name, encoding = RANGES[case.precision]
        self.attributes = (k, range_name, case.rotate, 0.0, encoding, 1.0)
        self.tensors = {
            "inv_smooth": torch.rand(k, generator=made) + 0.5,
            "down": (torch.randn(rank, k, generator=made) / k**0.5).bfloat16(),
            "w_codes": codes,
            "w_scale": (0.01 * torch.rand(n, 1, generator=made)).bfloat16(),
            "up": torch.randn(n, rank, generator=made).bfloat16(),
        }
        if case.precision == "w4a8":
            multipliers = torch.randint(-15, 16, (n, k // case.group), generator=made)
            self.tensors["w_multiplier"] = multipliers.to(torch.int8)
        if case.bias:
            self.tensors["bias"] = torch.randn(n, generator=made)

    def build(self, b: ProgramBuilder, gelu: bool = True) -> Node:
        node = {name: b.weight(f"{name}{self.number}", t) for name, t in self.tensors.items()}
        given = (b.input(self.x), node["inv_smooth"], node["down"])
        coded = b.call(quantize, *given, *self.attributes)
        parts = [b.call(operator.getitem, coded, i) for i in range(3)]
        weights = [node.get(name) for name in ("w_codes", "w_scale", "up", "bias")]
        more = [node["w_multiplier"]] if "w_multiplier" in node else []
        y = b.call(linear_coded, *parts, *weights, self.case.precision, 1.0, *more)
        y = b.call(aten.gelu.default, y, approximate="tanh") if gelu else y
        if not self.case.head_dim:
            return y
        heads = b.call(aten.view.default, y, [self.case.m, -1, self.case.head_dim])
        mean = b.call(aten.mean.dim, b.call(aten.mul.Tensor, heads, heads), [2], True)
        root = b.call(aten.rsqrt.default, b.call(aten.add.Tensor, mean, NORM_EPS))
        y = b.call(aten.mul.Tensor, heads, root)
        return b.call(aten.view.default, y, [self.case.m, self.case.n])

    def wanted(self) -> Tensor:
        t = self.tensors
        given = quantize(self.x, t["inv_smooth"], t["down"], *self.attributes)
        of_layer = (t["w_codes"], t["w_scale"], t["up"], t.get("bias"))
        y = linear_coded(*given, *of_layer, self.case.precision, 1.0, t.get("w_multiplier"))
        y = torch.nn.functional.gelu(y, approximate="tanh")
        if not self.case.head_dim:
            return y
        heads = y.view(self.case.m, -1, self.case.head_dim)
        return (heads * (heads.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()).view(y.shape)


TWO_SMS = replace(SM_90A, num_sms=2)
"""So that a CTA computes several tiles."""
ON_WARPGROUPS = [
    Case("int8", FEWEST_ROWS, 40, 192),
    Case("int8", 200, 136, 256, rank=0, rotate=True),
    Case("fp8", FEWEST_ROWS, 40, 208, bias=False),
    Case("fp8", 200, 136, 256, rank=32, rotate=True),
    Case("int8", 70, 192, 128, head_dim=64),
    Case("fp8", 130, 384, 128, rank=0, head_dim=128),
    Case("w4a8", FEWEST_ROWS, 40, 192),
    Case("w4a8", 200, 136, 256, rank=0, group=128, rotate=True),
    Case("w4a8", 130, 129, 160, group=32, bias=False),
    Case("w4a8", 390, 384, 192, rank=32, head_dim=64),
]
ELSEWHERE = [
    Case("int8", 70, 72, 128, rotate=True),
    Case("fp8", 70, 72, 144, rank=24, bias=False),
    Case("fp8", 20, 40, 128, rank=0),
    Case("w4a8", 20, 40, 128),
    Case("w4a8", 70, 40, 160, rank=0, group=32),
    Case("w4a8", 17, 72, 256, group=128),
]


@pytest.mark.parametrize(
    ("cases", "target", "header"),
    [
        (ON_WARPGROUPS, TWO_SMS, "gemm_wgmma"),
        ([Case(p, FEWEST_ROWS - 1, 40, 128) for p in RANGES], SM_90A, "gemm_int.h"),
        (ELSEWHERE, SM_80, "gemm_int.h"),
        (ELSEWHERE[1:3], SM_89, "svdq::E4m3,"),
        (ELSEWHERE[1:3], SM_100A, "svdq::E4m3Halves,"),
    ],
    ids=["sm_90a", "sm_90a_few_rows", "sm_80", "sm_89", "sm_100a"],
)
def test_linear_coded__with_epilogue(cases: list[Case], target: CudaTarget, header: str) -> None:
    if machine(target).arch != target.arch:
        pytest.skip(f"this GPU is no {target.arch}")
    linears = [Linear(case, i) for i, case in enumerate(cases)]
    b = ProgramBuilder()
    program = b.finish(*[linear.build(b) for linear in linears])
    materialize(program)
    lowered = lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(target))
    products = [source for source in lowered.kernels.values() if "gemm_memory" in source]
    assert len(products) >= len(cases)
    assert all(header in source for source in products)
    if target is TWO_SMS:
        assert all(
            launch.num_tasks.const <= 2
            for launch in lowered.plan.launches
            if "gemm" in lowered.plan.kernels[launch.kernel].name
        )
    results = PlanRunner(program, lowered)(b.inputs)
    for i, linear in enumerate(linears):
        got, want = results[str(i)], linear.wanted()
        # Equal codes: one that flipped would move a result by 1e-3 of the largest.
        rounding = 2e-5
        if linear.case.precision == "fp8":
            rounding += e4m3_rounding(linear.case.k)
        assert (got - want).abs().max() < rounding * want.abs().max(), linear.case


def test_linear_coded__codes_for_a_4_bit_linear() -> None:
    """A slab of the warpgroups' tile is quantized where it lies, with its part of the next down-projection."""
    if machine(TWO_SMS).arch != TWO_SMS.arch:
        pytest.skip(f"this GPU is no {TWO_SMS.arch}")
    made, width, outputs, rank = torch.Generator().manual_seed(SEED), 384, 24, 16
    b = ProgramBuilder()
    smooth = b.weight("next.smooth", torch.rand(width, generator=made) + 0.5)
    down = (torch.randn(rank, width, generator=made) / width**0.5).bfloat16()
    codes = torch.randint(-8, 8, (outputs, width), generator=made, dtype=torch.int8)
    scale = (0.02 * torch.randn(outputs, width // 64, generator=made)).bfloat16()
    up = torch.randn(outputs, rank, generator=made).bfloat16()
    weights = [b.weight(f"next.{i}", t) for i, t in enumerate((down, codes, scale, up))]
    results = []
    # Sums of E4M3 may differ on GPUs, and then codes. Numbers with which no value lies on the edge between two codes.
    exact = {"int8": 0, "w4a8": 2}
    for precision, number in exact.items():
        hidden = Linear(Case(precision, 200, width, 128), number).build(b)
        coded = b.call(quantize_s4, hidden, smooth, weights[0], 64, "signed8", True, 0.0)
        parts = [b.call(operator.getitem, coded, i) for i in range(3)]
        results.append(b.call(linear_s4, *parts, *weights[1:], None))
    program = b.finish(*results)
    materialize(program)
    wanted = program.run(b.inputs)
    lowered = lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(TWO_SMS))
    products = [source for source in lowered.kernels.values() if "gemm_wgmma" in source]
    assert len(products) == len(exact)
    assert all("svdq::project_tile" in source for source in products)
    found = PlanRunner(program, lowered)(b.inputs)
    for number, want in enumerate(wanted):
        # Equal codes: one that flipped would move a result by 1e-3 of the largest.
        assert (found[str(number)] - want).abs().max() < 2e-5 * want.abs().max(), number


@pytest.mark.parametrize("precision", list(RANGES))
def test_linear_coded__sass_of_a_flux_layer(precision: str) -> None:
    """As generated, with bias, branch and activation: nothing is spilled, and ptxas has nothing to remark."""
    b = ProgramBuilder()
    linear = Linear(Case(precision, 4608, 3072, 1024, rank=32), 0)
    program = b.finish(b.call(aten.relu.default, linear.build(b, gelu=False)))
    materialize(program)
    lowered = lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(SM_90A))
    (name,) = [n for n, source in lowered.kernels.items() if "gemm_wgmma" in source]
    sass = disassembled(name, lowered.kernels[name], SM_90A)
    sass.require_opcode("QGMMA" if precision == "fp8" else "IGMMA")
    sass.require_clean(max_registers=168)
    assert not compiler_remarks(lowered.kernels[name], SM_90A)


@pytest.mark.parametrize(
    ("precision", "n", "tile"),
    [
        *(("fp8", n, "svdq::GemmTile<128, 192, 8, 1, ") for n in (3072, 9216, 1152)),
        ("fp8", 128, "svdq::GemmTile<128, 128, 8, 1, "),
        ("w4a8", 3072, "svdq::WgmmaTile<128, "),
        ("w4a8", 6144, "svdq::WgmmaTile<192, "),
    ],
)
def test_linear_wgmma_blocks__large_where_it_fills_the_multiprocessors(
    precision: str, n: int, tile: str
) -> None:
    b = ProgramBuilder()
    program = b.finish(Linear(Case(precision, 4608, n, 1024, rank=0), 0).build(b))
    materialize(program)
    lowered = lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(SM_90A))
    (source,) = [text for text in lowered.kernels.values() if "gemm_wgmma" in text]
    assert tile in source
