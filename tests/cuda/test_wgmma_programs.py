"""int8 linears on Hopper's warpgroups as the compiler prints them, against the reference ops, on the host back end."""

from __future__ import annotations

import operator

import pytest
import torch
from tests.compiler.programs import ProgramBuilder
from tests.cuda.host_runner import PlanRunner
from torch import Tensor

from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.cuda.blocks.linear_wgmma import FEWEST_ROWS
from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.quantize.ops_formats import linear_coded, quantize
from svdqc.compiler.targets.cuda import SM_80, SM_90A, CudaTarget

SEED = 23
aten = torch.ops.aten


def _int8_linear(
    m: int,
    n: int,
    k: int,
    rank: int,
    rotate: bool = False,
    target: CudaTarget = SM_90A,
    head_dim: int = 0,
) -> tuple[Tensor, Tensor]:
    """An int8 linear with GELU behind it, its heads normalised; what the kernels give, and the reference ops."""
    made = torch.Generator().manual_seed(SEED)
    x = torch.randn(m, k, generator=made)
    tensors = {
        "inv_smooth": torch.rand(k, generator=made) + 0.5,
        "down": (torch.randn(rank, k, generator=made) / k**0.5).bfloat16(),
        "w_codes": torch.randint(-127, 128, (n, k), generator=made, dtype=torch.int8),
        "w_scale": (0.01 * torch.rand(n, 1, generator=made)).bfloat16(),
        "up": torch.randn(n, rank, generator=made).bfloat16(),
        "bias": torch.randn(n, generator=made),
    }
    quantized = ("symmetric", rotate, 0.0, "int", 1.0)
    b = ProgramBuilder()
    node = {name: b.weight(name, value) for name, value in tensors.items()}
    coded = b.call(quantize, b.input(x), node["inv_smooth"], node["down"], k, *quantized)
    parts = [b.call(operator.getitem, coded, i) for i in range(3)]
    weights = [node[name] for name in ("w_codes", "w_scale", "up", "bias")]
    y = b.call(linear_coded, *parts, *weights, "int8", 1.0)
    y = b.call(aten.gelu.default, y, approximate="tanh")
    if head_dim:
        heads = b.call(aten.view.default, y, [m, n // head_dim, head_dim])
        mean = b.call(aten.mean.dim, b.call(aten.mul.Tensor, heads, heads), [2], True)
        root = b.call(aten.rsqrt.default, b.call(aten.add.Tensor, mean, 1e-6))
        y = b.call(aten.view.default, b.call(aten.mul.Tensor, heads, root), [m, n])
    program = b.finish(y)
    materialize(program)
    lowered = lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(target))
    assert len(lowered.plan.launches) == 2
    on_warpgroups = any("gemm_wgmma.h" in source for source in lowered.kernels.values())
    assert on_warpgroups == (target is SM_90A and m >= FEWEST_ROWS)
    given = quantize(x, tensors["inv_smooth"], tensors["down"], k, *quantized)
    of_layer = [tensors[name] for name in ("w_codes", "w_scale", "up", "bias")]
    want = torch.nn.functional.gelu(
        linear_coded(*given, *of_layer, "int8", 1.0), approximate="tanh"
    )
    if head_dim:
        heads = want.view(m, -1, head_dim)
        want = (heads * (heads.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).view(m, n)
    return PlanRunner(program, lowered)(b.inputs)["0"], want


@pytest.mark.parametrize(
    ("m", "n", "k", "rank", "rotate", "target"),
    [
        (64, 40, 192, 16, False, SM_90A),
        (200, 136, 256, 0, True, SM_90A),
        (20, 40, 80, 16, False, SM_90A),
        (70, 72, 128, 16, True, SM_80),
    ],
)
def test_linear_int8__with_epilogue(
    m: int, n: int, k: int, rank: int, rotate: bool, target: CudaTarget
) -> None:
    got, want = _int8_linear(m, n, k, rank, rotate, target)
    # Equal codes: one that flipped would move a result by 1e-3 of the largest.
    assert (got - want).abs().max() < 2e-5 * want.abs().max()


def test_linear_int8__heads() -> None:
    """A norm of each head in the tile of two warpgroups, whose ninth warp copies."""
    got, want = _int8_linear(70, 192, 128, 16, head_dim=64)
    assert (got - want).abs().max() < 2e-5 * want.abs().max()
