"""Launches of several regions, on the host back end: the same bits as alone, at the edges of every member's tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from tests.compiler.programs import ProgramBuilder, canonical
from tests.cuda.host_kernels import machine
from tests.cuda.host_runner import PlanRunner
from tests.cuda.sass import compiler_remarks, disassembled
from tests.cuda.test_wgmma_programs import RANGES, TWO_SMS, Case, Linear
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.lower import Lowered, lower
from svdqc.compiler.driver.variants import plan_regions
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.targets.cuda import SM_80, SM_90A

K, WIDTH = 64, 192
EPS = 2.0**-24


@dataclass(frozen=True)
class Alone(CudaBackend):
    """Launches regions one by one."""

    param_words = 0


# ---- one CTA for a task


class Streams(nn.Module):
    """A linear, a norm of rows too wide for its epilogue, and a gated residual, in each of three streams."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(K, WIDTH) for _ in range(3))
        self.norm = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(WIDTH, K) for _ in range(3))
        self.gate = nn.Linear(K, 3 * K)

    def forward(
        self, image: Tensor, text: Tensor, mask: Tensor, vector: Tensor
    ) -> tuple[Tensor, ...]:
        results = []
        gates = self.gate(vector).chunk(3, -1)
        for i, x in enumerate((image, text, mask)):
            hidden = self.norm[i](F.gelu(self.up[i](x)))
            results.append(x + gates[i] * self.down[i](hidden))
        return tuple(results)


LARGEST = (130, 66, 34)
DIMS = ",".join(f"{n}@{n}.1=1:{m}" for n, m in zip(("image", "text", "mask"), LARGEST, strict=True))
SIZES = (LARGEST, (31, 1, 32), (32, 31, 1), (33, 32, 2), (63, 33, 31), (64, 65, 33), (1, 1, 1))


def example(image: int, text: int, mask: int) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(100 * image + text)
    tokens = {"image": image, "text": text, "mask": mask, "vector": 1}
    return {name: torch.randn(1, m, K, generator=made) for name, m in tokens.items()}


def test_three_streams__same_bits_as_alone() -> None:
    """Members of 1 row, and of tile - 1, tile and tile + 1; none of which the code knows."""
    torch.manual_seed(3)
    model = Streams().eval()
    program = canonical(model, example(*LARGEST), dynamic=DIMS).program
    target = machine(SM_80)
    fusion = plan_regions(program, target)
    together = lower(program, fusion, backend=CudaBackend(target))
    alone = lower(program, fusion, backend=Alone(target))
    assert sorted(map(len, together.launches)) == [1, 3, 3, 3]
    assert sum("group3" in name for name in together.kernels) == 3
    assert all(len(regions) == 1 for regions in alone.launches)
    assert len(alone.launches) == 1 + 9
    run, run_alone = PlanRunner(program, together), PlanRunner(program, alone)
    for size in SIZES:
        given = example(*size)
        results, wanted = run(given), run_alone(given)
        assert all(torch.equal(results[name], wanted[name]) for name in wanted), size
        again = run(given, schedule=1)
        assert all(torch.equal(results[name], again[name]) for name in wanted), size
        with torch.no_grad():
            exact = model.double()(*(x.double() for x in given.values()))
            model.float()
        for found, want in zip(results.values(), exact, strict=True):
            # Sums of up to WIDTH products of 16-bit halves, behind a norm: values of a few units.
            bound = 2 * (WIDTH * EPS + 2.0**-16) * WIDTH
            assert (found.double() - want).abs().max() < bound < 0.05 * want.abs().max()


# ---- persistent CTAs


ROWS = (300, 5, 64, 129)


def of_layers(
    precision: str, rows: tuple[int, ...], n: int, k: int, rank: int = 16
) -> list[Linear]:
    return [Linear(Case(precision, m, n, k, rank=rank), i) for i, m in enumerate(rows)]


Epilogue = Callable[[ProgramBuilder, Linear], Node]


def gelu(b: ProgramBuilder, linear: Linear) -> Node:
    return linear.build(b)


def relu(b: ProgramBuilder, linear: Linear) -> Node:
    """Without a division, which is a call."""
    return b.call(torch.ops.aten.relu.default, linear.build(b, gelu=False))


def lowered(
    linears: list[Linear], backend: CudaBackend, epilogue: Epilogue = gelu
) -> tuple[Program, Lowered, dict[str, Tensor]]:
    b = ProgramBuilder()
    program = b.finish(*[epilogue(b, linear) for linear in linears])
    materialize(program)
    return program, lower(program, fuse(program, GPU_TRAITS), backend=backend), b.inputs


@pytest.mark.parametrize("precision", list(RANGES))
def test_warpgroups__tiles_of_several_products(precision: str) -> None:
    """Seven rows of tiles by two columns on two multiprocessors: each CTA goes from member to member, and one member
    has fewer rows than a warpgroup."""
    if machine(TWO_SMS).arch != TWO_SMS.arch:
        pytest.skip(f"this GPU is no {TWO_SMS.arch}")
    linears = of_layers(precision, ROWS, 200, 256)
    program, together, given = lowered(linears, CudaBackend(TWO_SMS))
    assert [len(regions) for regions in together.launches] == [4, 4]
    product = together.plan.launches[1]
    assert product.num_tasks.const == 2 < product.scalars[-1].const
    (source,) = [text for text in together.kernels.values() if "gemm_memory" in text]
    assert "gemm_wgmma" in source
    results = PlanRunner(program, together)(given)
    again = PlanRunner(program, together)(given, schedule=1)
    program, alone, given = lowered(linears, Alone(TWO_SMS))
    assert len(alone.launches) == 8
    apart = PlanRunner(program, alone)(given)
    for i, linear in enumerate(linears):
        found, want = results[str(i)], linear.wanted()
        assert torch.equal(found, again[str(i)]), linear.case
        if linear.case.m >= 64:  # alone on warpgroups too
            assert torch.equal(found, apart[str(i)]), linear.case
        assert (found - want).abs().max() < 5e-5 * want.abs().max(), linear.case


@pytest.mark.parametrize("precision", list(RANGES))
def test_warpgroups__sass_of_two_streams(precision: str) -> None:
    """The layer of both streams of FLUX: operands change from tile to tile, and nothing is spilled."""
    linears = of_layers(precision, (4096, 512), 3072, 1024, rank=32)
    _, found, _ = lowered(linears, CudaBackend(SM_90A), relu)
    (name,) = [n for n, source in found.kernels.items() if "gemm_wgmma" in source]
    assert "_group2__" in name
    sass = disassembled(name, found.kernels[name], SM_90A)
    sass.require_opcode("QGMMA" if precision == "fp8" else "IGMMA")
    sass.require_clean(max_registers=168)
    assert not compiler_remarks(found.kernels[name], SM_90A)
