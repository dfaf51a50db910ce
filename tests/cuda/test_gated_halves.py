"""Gated activations in the kernel of their linear: its columns alternate, so that gate and value lie in one tile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.compiler.programs import canonical
from tests.cuda.host_runner import PlanRunner
from torch import Tensor, nn
from torch.nn import functional as F

from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.driver.variants import backend_of, plan_regions
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.linear_groups import linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups
from svdqc.compiler.passes.svdquant import svdquant
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.targets.cuda import SM_80

K = 64
EPS = 2.0**-24


class Chunked(nn.Module):
    """One linear, whose halves are value and gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(K, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class Separate(nn.Module):
    """Two linears of one input, which are one product, beside a third."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(K, width), nn.Linear(K, width, bias=False)
        self.other = nn.Linear(K, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.silu(self.gate(x)) * self.value(x), self.other(x)


class Modulated(nn.Module):
    """Halves that scale and shift something larger: they stay as they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(K, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.up(x[:, :1]).chunk(2, dim=-1)
        return x[..., :1] * (1 + scale) + shift


class Block(nn.Module):
    """A norm, SwiGLU and a residual, as transformers have them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.down = nn.RMSNorm(K, eps=1e-6), nn.Linear(width, K, bias=False)
        self.gate, self.value = nn.Linear(K, width, bias=False), nn.Linear(K, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.value(y))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Chunked(96), Chunked(64), Chunked(72)])
        self.separate, self.modulated = Separate(96), Modulated(96)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        gated = [block(x) for block in self.blocks]
        return (*gated, *self.separate(x), self.modulated(x))


def test_gate_and_value_in_one_kernel() -> None:
    """Chunks of a linear and of merged ones, also beside another part; halves of 72 columns are multiplied by a kernel
    of their own, and what modulates stays in order."""
    torch.manual_seed(6)
    model, x = Gated().eval(), torch.randn(2, 33, K)
    program = canonical(model, {"x": x}).program
    lowered = lower(program, plan_regions(program, SM_80), backend=backend_of(SM_80))
    regions = [region for launch in lowered.launches for region in launch]
    names = [[str(n.target).split(".")[1] for n in region.nodes] for region in regions]
    assert sum("mul" in ops and "linear" in ops for ops in names) == 3, names
    assert len(names) == 3 + 2 + 2, names
    run = PlanRunner(program, lowered)
    results = run({"x": x})
    with torch.no_grad():
        wanted = model(x)
        again = program.run({"x": x})
    # Products leave out 2^-16 of terms below 4 / 8 and sums below 64 EPS of them; gates are below 4, slopes below 1.2.
    bound = 64 * (2.0**-16 + 64 * EPS) * (4 / 8) * 2 * 4 * 1.2 / 8
    for found, want, kept in zip(results.values(), wanted, again, strict=True):
        torch.testing.assert_close(found, want, rtol=0.0, atol=bound)
        torch.testing.assert_close(kept, want, rtol=0.0, atol=bound)
        assert bound < 2e-2 * want.abs().max()
    assert all(torch.equal(v, results[k]) for k, v in run({"x": x}, schedule=1).items())


def quantized(model: nn.Module, x: Tensor, rank: int) -> Program:
    """In 4 bits, every linear."""
    recipe: dict[str, Any] = {"precision": "int4", "rank": rank, "quantize": ("*",)}
    found = canonical(model.eval(), {"x": x}, **recipe)
    groups = quantized_groups(found.decisions, linear_groups(found.program))
    svdquant(found.program, groups, {}, {group.name: Recipe(**recipe) for group in groups})
    return found.program


def test_gate_and_value__int4() -> None:
    """Codes, scales, up-projection and bias in the new order."""
    torch.manual_seed(7)
    x = torch.randn(40, K)
    program = quantized(Chunked(96), x, 16)
    [wanted] = program.run({"x": x})
    lowered = lower(program, plan_regions(program, SM_80), backend=backend_of(SM_80))
    assert [[len(region.nodes) for region in launch] for launch in lowered.launches] == [[1], [4]]
    [result] = PlanRunner(program, lowered)({"x": x}).values()
    # Equal codes; a branch in 16-bit products, a tenth of the result at most.
    torch.testing.assert_close(result, wanted, rtol=0.0, atol=2e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("rank", [0, 16])
def test_swiglu_block__coded_where_it_is_computed(rank: int) -> None:
    """Codes, scales and parts of the projection leave the first product, which a kernel of rows adds up; the gated
    activations do not."""
    torch.manual_seed(8)
    program = quantized(Block(256), torch.randn(40, K), rank)
    regions = plan_regions(program, SM_80).regions
    names = [[str(n.target).split(".")[1] for n in region.nodes] for region in regions]
    parts = [["sum"]] if rank else []
    coded = "quantize_s4_parts" if rank else "quantize_s4"
    assert names[1:] == [["linear_s4", "silu", "mul", coded], *parts, ["linear_s4", "add", "copy"]]
    assert names[0][-1] == "quantize_s4"
    assert [str(n.target).split(".")[1] for n in regions[1].stored] == [coded]
