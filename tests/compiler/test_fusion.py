"""What becomes one kernel: the regions of the patterns that diffusion models are made of."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from tests.compiler.programs import canonical
from torch import Tensor, nn
from torch.nn import functional as F

from svdqc.compiler.codegen.region import FusionPlan, Region
from svdqc.compiler.driver.variants import plan_regions
from svdqc.compiler.passes.linear_groups import linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups
from svdqc.compiler.passes.svdquant import svdquant
from svdqc.compiler.quantize.recipe import Recipe

TOKENS, WIDTH = 256, 128


def regions_of(model: nn.Module, *inputs: Tensor) -> FusionPlan:
    named = {f"x{i}": x for i, x in enumerate(inputs)}
    return plan_regions(canonical(model, named).program)


def ops(region: Region) -> list[str]:
    """Short names of what a region computes; svdq.copy is where a result lies, not work."""
    names = [str(n.target).split(".")[1] for n in region.nodes]
    return [n for n in names if n != "copy"]


def tokens(width: int = WIDTH) -> Tensor:
    return torch.zeros(1, TOKENS, width)


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x0: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(x0)))
        return y


def test_linear_gelu_linear() -> None:
    """The activation belongs to the first linear's epilogue (or the second's prologue): two kernels."""
    found = [ops(r) for r in regions_of(Feed(), tokens()).regions]
    assert sorted(found, key=len) == [["linear"], ["linear", "gelu"]]


class Modulated(nn.Module):
    """adaLN: LayerNorm without affine, then (1 + scale) * x + shift from a vector per image, into a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        shift, scale = x1.chunk(2, dim=-1)
        y: Tensor = self.linear(self.norm(x0) * (1 + scale[:, None]) + shift[:, None])
        return y


def test_modulation_fuses_into_the_linear() -> None:
    """Statistics, scale and shift are the linear's prologue; `1 + scale` is no kernel of its own."""
    (region,) = regions_of(Modulated(), tokens(), torch.zeros(1, 2 * WIDTH)).regions
    assert "mean" in ops(region)
    assert ops(region)[-1] == "linear"


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x0: Tensor, x1: Tensor, x2: Tensor) -> Tensor:
        y: Tensor = x0 + x2[:, None] * self.linear(x1)
        return y


def test_gate_and_residual_are_an_epilogue() -> None:
    (region,) = regions_of(Gated(), tokens(), tokens(), torch.zeros(1, WIDTH)).regions
    assert ops(region) == ["linear", "mul", "add"]


class SwiGlu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x0: Tensor) -> Tensor:
        value, gate = self.up(x0).chunk(2, dim=-1)
        y: Tensor = self.down(value * F.silu(gate))
        return y


def test_gated_mlp() -> None:
    """chunk, silu and product fuse with one of the linears: no pass over memory of their own."""
    found = [ops(r) for r in regions_of(SwiGlu(), tokens()).regions]
    assert len(found) == 2
    assert all("linear" in region for region in found)
    assert sum("silu" in region for region in found) == 1


class Attention(nn.Module):
    """RMSNorm of each head's q and k, rotary embedding in pairs, attention, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm_q, self.norm_k = nn.RMSNorm(32, eps=1e-6), nn.RMSNorm(32, eps=1e-6)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x0: Tensor, x1: Tensor, x2: Tensor) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (4, 32)).transpose(1, 2)

        def rotated(x: Tensor) -> Tensor:
            real, imaginary = x.unflatten(-1, (16, 2)).unbind(-1)
            turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
            return x * x1 + turned * x2

        q = rotated(self.norm_q(heads(self.q(x0))))
        k = rotated(self.norm_k(heads(self.k(x0))))
        mixed = F.scaled_dot_product_attention(q, k, heads(self.v(x0)))
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return y


def test_qk_norm_and_rope_join_the_projection() -> None:
    plan = regions_of(Attention(), tokens(), torch.zeros(TOKENS, 32), torch.zeros(TOKENS, 32))
    found = [ops(r) for r in plan.regions]
    projection = found[0]
    assert projection[0] == "linear"
    assert projection.count("rsqrt") == 2
    assert [r[0] for r in found] == ["linear", "scaled_dot_product_attention", "linear"]


def test_quantization_joins_its_producer() -> None:
    """gelu's result is quantized where it is computed; only the first layer's input needs a kernel of its own."""
    inputs = {"x0": torch.randn(1, TOKENS, WIDTH)}
    recipe = {"precision": "int4", "rank": 16, "quantize": ("*",)}
    found = canonical(Feed(), inputs, **recipe)
    groups = quantized_groups(found.decisions, linear_groups(found.program))
    assert groups, "nothing was quantized"
    svdquant(found.program, groups, {}, {g.name: Recipe(**recipe) for g in groups})
    kernels = [ops(r) for r in plan_regions(found.program).regions]
    assert kernels == [["quantize_s4"], ["linear_s4", "gelu", "quantize_s4"], ["linear_s4"]]


class Shared(nn.Module):
    """The first linear's result is read by the second and, after it, by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x0: Tensor) -> Tensor:
        h = F.silu(self.first(x0))
        y: Tensor = h + self.second(h)
        return y


MODELS = {
    "feed": (Feed(), (tokens(),)),
    "modulated": (Modulated(), (tokens(), torch.zeros(1, 2 * WIDTH))),
    "gated": (Gated(), (tokens(), tokens(), torch.zeros(1, WIDTH))),
    "swiglu": (SwiGlu(), (tokens(),)),
    "attention": (Attention(), (tokens(), torch.zeros(TOKENS, 32), torch.zeros(TOKENS, 32))),
    "shared": (Shared(), (tokens(),)),
}


@pytest.mark.parametrize("name", MODELS)
def test_no_pointwise_region_between_linears(name: str) -> None:
    model, inputs = MODELS[name]
    for region in regions_of(model, *inputs).regions:
        assert region.anchor is not None, ops(region)


@pytest.mark.parametrize("name", MODELS)
def test_regions_are_convex(name: str) -> None:
    """No path leaves a region and comes back: regions can run one after the other, in the order given."""
    model, inputs = MODELS[name]
    plan = regions_of(model, *inputs)
    number = {n: i for i, r in enumerate(plan.regions) for n in r.nodes}
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(plan.regions)))
    for node, own in number.items():
        stack = list(node.all_input_nodes)
        while stack:
            value = stack.pop()
            if value in number:
                if number[value] != own:
                    graph.add_edge(number[value], own)
            else:
                stack.extend(value.all_input_nodes)
    assert nx.is_directed_acyclic_graph(graph)
    assert all(a < b for a, b in graph.edges), "regions are not in order of execution"


@pytest.mark.parametrize("name", MODELS)
def test_every_node_is_in_one_region(name: str) -> None:
    model, inputs = MODELS[name]
    nodes = [n for r in regions_of(model, *inputs).regions for n in r.nodes]
    assert len(nodes) == len(set(nodes)) > 0


def test_few_rows_split_large_weights_along_columns() -> None:
    """One row and 4 MB of weights: an epilogue that reduces a row may not keep the columns together."""

    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm = nn.Linear(1024, 1024), nn.LayerNorm(1024)

        def forward(self, x0: Tensor) -> Tensor:
            y: Tensor = self.norm(F.silu(self.up(x0)))
            return y

    plan = regions_of(Vector(), torch.zeros(1, 1024))
    assert "mean" not in ops(next(r for r in plan.regions if r.anchor is not None))
    assert any("split along its columns" in why for _, why in plan.refused)


def test_refusals_say_why() -> None:
    refused = regions_of(Feed(), tokens()).refused
    assert ("two anchors" in {why for _, why in refused}) or refused == []
    assert all(pair and why for pair, why in refused)


def test_short_rows_are_rows() -> None:
    """Sums of 32 values a token: many tasks of short rows, not one of them all."""

    class Sums(nn.Module):
        def forward(self, x0: Tensor) -> Tensor:
            return x0.sum(1)

    (region,) = regions_of(Sums(), torch.zeros(4 * TOKENS, 6, 32)).regions
    assert region.layout.num_rows == 4 * TOKENS
