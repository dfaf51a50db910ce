"""Epilogues that mix the columns of a head: RMSNorm of q and k and rotary embeddings in their projection's kernel."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import Any

import diffusers
import pytest
import torch
from tests.compiler.programs import ProgramBuilder, canonical
from tests.compiler.test_zoo import inputs
from tests.cuda import sass
from tests.cuda.host_runner import PlanRunner
from tests.frontends.zoo import SMALL
from torch import Tensor, nn
from torch.fx import Node

from svdqc.compiler.codegen.lower import Lowered, label_of, label_of_launch, lower
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.driver.variants import backend_of, plan_regions
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.linear_groups import linear_groups
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.passes.select_layers import quantized_groups
from svdqc.compiler.passes.svdquant import svdquant
from svdqc.compiler.quantize.ops import linear_s4, quantize_s4
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.targets.cuda import REGISTERS_PER_SM, SM_80, SM_90A, CudaTarget

aten = torch.ops.aten
WIDTH = 40
"""Of the input: k is not what these tests are about."""
EPS = 2.0**-24
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Heads:
    """q_heads, k_heads (and as many of v) of `dim` features; rope: "pairs" or "halves"."""

    dim: int
    q_heads: int
    k_heads: int
    rope: str = "pairs"


class Projection(nn.Module):
    """What stands before an attention: q, k and v of one input, q and k normalised and turned."""

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(WIDTH, heads.q_heads * heads.dim)
        self.k = nn.Linear(WIDTH, heads.k_heads * heads.dim)
        self.v = nn.Linear(WIDTH, heads.k_heads * heads.dim)
        self.norm_q = nn.RMSNorm(heads.dim, eps=NORM_EPS)
        self.norm_k = nn.RMSNorm(heads.dim, eps=NORM_EPS)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cos, sin = cos[..., : self.heads.dim], sin[..., : self.heads.dim]
        q, k, v = (self.split(y) for y in (self.q(x), self.k(x), self.v(x)))
        return self.turned(self.norm_q(q), cos, sin), self.turned(self.norm_k(k), cos, sin), v

    def split(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (-1, self.heads.dim)).transpose(1, 2)

    def turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.heads.rope == "pairs":
            real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
            other = torch.stack([-imaginary, real], dim=-1).flatten(3)
        else:
            first, second = x.chunk(2, dim=-1)
            other = torch.cat([-second, first], dim=-1)
        return x * cos + other * sin


class Projections(nn.Module):
    def __init__(self, *heads: Heads) -> None:
        super().__init__()
        self.each = nn.ModuleList(Projection(one) for one in heads)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return tuple(y for one in self.each for y in one(x, cos, sin))


# Head dims that lie in a tile, odd numbers of heads, k of fewer heads than q; and a dim that no tile holds whole.
IN_A_TILE = (
    Heads(128, 3, 1),
    Heads(64, 3, 3, "halves"),
    Heads(32, 5, 2),
)
BETWEEN_TILES = (Heads(96, 2, 2),)
TOKENS = 66


def example(tokens: int) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(tokens)
    angles = torch.randn(tokens, 64, generator=made).repeat_interleave(2, -1)
    x = torch.randn(1, tokens, WIDTH, generator=made)
    return {"x": x, "cos": angles.cos(), "sin": angles.sin()}


@cache
def projections() -> Projections:
    torch.manual_seed(4)
    found = Projections(*IN_A_TILE, *BETWEEN_TILES).eval()
    with torch.no_grad():
        for one in found.each:
            for norm in (one.norm_q, one.norm_k):
                norm.weight.copy_(torch.rand(one.heads.dim) + 0.5)
    return found


REGIONS = len(IN_A_TILE) + 3 * len(BETWEEN_TILES)
SIZES = (1, 31, 32, 33, 63, 64, 65, TOKENS)
"""Tiles have 16, 32 and 64 rows here."""


@cache
def program() -> Program:
    found = canonical(projections(), example(TOKENS), dynamic=f"tokens@x.1+cos.0+sin.0=1:{TOKENS}")
    plan_regions(found.program, SM_80)  # lowers it, in place
    return found.program


def lowered(mixed: bool) -> Lowered:
    """With the norms in the projections' kernels, or each in one of its own."""
    each = dict.fromkeys(GPU_TRAITS.column_tiled, 1)
    traits = GPU_TRAITS if mixed else replace(GPU_TRAITS, column_tiled=each)
    return lower(program(), fuse(program(), traits), backend=backend_of(SM_80))


def exact(one: Projection, given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """q, k and v in float64, and a bound of what float32 may miss of each."""
    double = copy.deepcopy(one).double()
    x, cos, sin = (given[name].double() for name in ("x", "cos", "sin"))
    found = list(double(x, cos, sin))
    bounds = []
    for linear, norm in ((double.q, double.norm_q), (double.k, double.norm_k), (double.v, None)):
        size = x.abs() @ linear.weight.abs().T + linear.bias.abs()
        miss = double.split((EPS * (3 * WIDTH + 3) + 2.0**-16) * size)
        if norm is not None:
            # y / rms(y) moves with y, and with rms(y), which moves by at most the largest move of y.
            y = double.split(linear(x))
            rms = (y.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()
            largest = miss.amax(-1, keepdim=True)
            miss = norm.weight * (miss + y.abs() / rms * largest) / rms
            miss = miss + 16 * EPS * y.abs() / rms * norm.weight
            miss = 2 * miss.amax(-1, keepdim=True).expand_as(miss)  # of two, by a sine and a cosine
        bounds.append(miss)
    return list(zip(found, bounds, strict=True))


def test_norms_and_rotations__in_tiles_and_between() -> None:
    """At tiles' edges; in another order of threads, and with the norms in kernels of their own, the same bits."""
    together, apart = lowered(mixed=True), lowered(mixed=False)
    assert sum(map(len, together.launches)) == REGIONS
    assert sum(map(len, apart.launches)) == 3 * len(projections().each)
    run, run_apart = (PlanRunner(program(), one) for one in (together, apart))
    for tokens in SIZES:
        given = example(tokens)
        results = run(given)
        with torch.no_grad():
            wanted = [pair for one in projections().each for pair in exact(one, given)]
        assert len(wanted) == len(results) == 12
        for found, (want, bound) in zip(results.values(), wanted, strict=True):
            miss = (found.double() - want).abs()
            assert (miss <= bound).all(), (tokens, float((miss / bound).max()))
            assert bound.max() < 2e-2 * want.abs().max()
        if tokens in (33, TOKENS):
            again, other = run(given, schedule=1), run_apart(given)
            assert all(torch.equal(results[name], again[name]) for name in results)
            assert all(torch.equal(results[name], other[name]) for name in results)


# ---- a FLUX


HEAD_DIM, NUM_HEADS = 64, 4
RECIPE: dict[str, Any] = {"precision": "int4", "rank": 16, "modulation": "keep"}


def flux() -> Program:
    """One double and one single block in 4 bits, their heads as wide as half a tile; tokens enough for real layouts."""
    class_name, config = SMALL["flux"]
    config = {**config, "num_attention_heads": NUM_HEADS, "attention_head_dim": HEAD_DIM}
    found = getattr(diffusers, class_name)(**{**config, "axes_dims_rope": (16, 24, 24)}).eval()
    made = canonical(found, inputs("flux", height=32, width=64, text=256), **RECIPE)
    groups = quantized_groups(made.decisions, linear_groups(made.program))
    svdquant(made.program, groups, {}, {group.name: Recipe(**RECIPE) for group in groups})
    return made.program


def test_launches_of_flux() -> None:
    """Of a double block four products and the coding of their inputs, each for image and text together, and one
    attention."""
    made = flux()
    plan = plan_regions(made, SM_80)
    launches = lower(made, plan, backend=backend_of(SM_80)).launches
    for block, regions, wanted in (
        ("transformer_blocks.0.", 17, 9),
        ("single_transformer_blocks.0.", 5, 5),
    ):
        found = [own for launch in launches if (own := [r for r in launch if is_of(block, r)])]
        assert len(found) == wanted, [label_of_launch(launch) for launch in found]
        own = list(chain(*found))
        assert len(own) == regions
        normed = [r for r in own if r.anchor is not None and "rsqrt" in ops(r)]
        assert [ops(r).count("rsqrt") for r in normed] == ([2, 2] if regions == 17 else [2])
        # None of them is stored whole: q, k, v and what a single block's MLP makes of the rest are.
        assert all(r.anchor not in r.stored for r in normed)


def is_of(block: str, region: Region) -> bool:
    """Of a block, its modulation (of one row) aside."""
    label = label_of(region)
    return label.startswith(block) and ".norm" not in label


def ops(region: Region) -> list[str]:
    return [str(n.target).split(".")[1] for n in region.nodes]


@pytest.mark.parametrize("target", [SM_80, SM_90A], ids=lambda target: target.arch)
def test_flux_width__no_spills(target: CudaTarget) -> None:
    """q, k and v of FLUX.1-dev: 24 heads of 128, norms and rotations beside a whole tile of sums."""
    sass.require_nvcc()
    sass.require_disassembler()
    b = ProgramBuilder()
    given = [b.input(torch.zeros(size)) for size in ((4608, 3072), (4608, 128), (4608, 128))]
    program = b.finish(*projected(b, *given, heads=24, dim=128))
    materialize(program)
    made = lower(program, fuse(program, GPU_TRAITS), backend=backend_of(target))
    [_, product] = made.plan.kernels
    assert product.name.startswith("gemm_s4_s4_f32_9216x3072_r32_norm__128x128")
    kernel = sass.disassembled(product.name, made.kernels[product.name], target)
    assert (kernel.stack_bytes, kernel.local_bytes) == (0, 0)
    assert kernel.registers * product.threads <= REGISTERS_PER_SM
    assert target.max_ctas(product.threads, product.shared_bytes, kernel.registers) >= 1


def projected(
    b: ProgramBuilder, x: Node, cos: Node, sin: Node, heads: int, dim: int
) -> tuple[Node, Node, Node]:
    """q, k and v [heads, tokens, dim] of a 4-bit linear without values."""
    (tokens, k), n = x.meta["val"].shape, 3 * heads * dim

    def weight(name: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Node:
        return b.weight(name, torch.zeros(shape, dtype=dtype))

    smooth = weight("inv_smooth", k, dtype=torch.float32)
    coded = b.call(quantize_s4, x, smooth, weight("down", 32, k), 64, "signed8", False, 0.0)
    parts = [b.call(operator.getitem, coded, i) for i in range(3)]
    codes = weight("codes", n, k, dtype=torch.int8)
    y = b.call(linear_s4, *parts, codes, weight("scale", n, k // 64), weight("up", n, 32), None)

    def part(number: int) -> Node:
        first = number * heads * dim
        own = b.call(aten.slice.Tensor, y, 1, first, first + heads * dim)
        own = b.call(aten.view.default, own, [tokens, heads, dim])
        return b.call(aten.permute.default, own, [1, 0, 2])

    def turned(q: Node) -> Node:
        mean = b.call(aten.mean.dim, b.call(aten.mul.Tensor, q, q), [2], True)
        root = b.call(aten.rsqrt.default, b.call(aten.add.Tensor, mean, NORM_EPS))
        q = b.call(aten.mul.Tensor, q, root)
        pairs = b.call(aten.view.default, q, [heads, tokens, dim // 2, 2])
        left, right = (b.call(aten.select.int, pairs, 3, i) for i in range(2))
        swapped = b.call(aten.stack.default, [b.call(aten.neg.default, right), left], 3)
        swapped = b.call(aten.view.default, swapped, [heads, tokens, dim])
        straight = b.call(aten.mul.Tensor, q, cos)
        return b.call(aten.add.Tensor, straight, b.call(aten.mul.Tensor, swapped, sin))

    return turned(part(0)), turned(part(1)), part(2)
