"""Attention as the compiler prints it: strides, masks, epilogues; against PyTorch, on the host back end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.compiler.programs import ProgramBuilder
from tests.cuda.host_runner import PlanRunner
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.cuda.blocks.attention import attention_tile
from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.targets.cuda import CUDA_TARGETS, SM_80, CudaTarget

SEED = 21
ERROR = 2.0**-16
"""A few times attention_mma.h's bound, whose factors are near 10 for normal random numbers."""
aten = torch.ops.aten


def run(build: Callable[[ProgramBuilder], object]) -> Tensor:
    b = ProgramBuilder()
    program = b.finish(build(b))
    materialize(program)
    lowered = lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(SM_80))
    assert any("attention_mma.h" in source for source in lowered.kernels.values())
    return PlanRunner(program, lowered)(b.inputs)["0"]


def normal(*shape: int) -> Tensor:
    made = torch.Generator().manual_seed(hash((SEED, shape)) % (1 << 31))
    return torch.randn(*shape, generator=made)


def test_attention__tokens_before_heads() -> None:
    q, k, v = normal(2, 33, 3, 40), normal(2, 19, 3, 40) + 1, normal(2, 19, 3, 40) - 1

    def build(b: ProgramBuilder) -> object:
        heads = [b.call(aten.permute.default, b.input(x), [0, 2, 1, 3]) for x in (q, k, v)]
        y = b.call(aten.scaled_dot_product_attention.default, *heads)
        return b.call(aten.permute.default, y, [0, 2, 1, 3])

    want = scaled_dot_product_attention(*(x.transpose(1, 2).double() for x in (q, k, v)))
    assert (run(build) - want.transpose(1, 2)).abs().max() < ERROR * 10


@pytest.mark.parametrize("kind", ["bool", "f32", "causal"])
def test_attention__masks(kind: str) -> None:
    q, k, v = normal(1, 2, 20, 16), normal(1, 2, 37, 16), normal(1, 2, 37, 32)
    seen = normal(1, 1, 20, 37) > 0
    mask = {"bool": seen, "f32": torch.where(seen, 0.5, -10.0), "causal": None}[kind]

    def build(b: ProgramBuilder) -> object:
        given = None if mask is None else b.input(mask)
        return b.call(
            aten.scaled_dot_product_attention.default,
            *map(b.input, (q, k, v)),
            given,
            0.0,
            mask is None,
        )

    of_f64 = mask.double() if kind == "f32" and mask is not None else mask
    want = scaled_dot_product_attention(
        q.double(), k.double(), v.double(), of_f64, is_causal=mask is None
    )
    assert (run(build) - want).abs().max() < ERROR * 10


def test_attention__epilogue() -> None:
    q, k, v, gate = (
        normal(1, 2, 70, 64),
        normal(1, 2, 40, 64),
        normal(1, 2, 40, 64),
        normal(1, 2, 70, 64),
    )

    def build(b: ProgramBuilder) -> object:
        y = b.call(aten.scaled_dot_product_attention.default, *map(b.input, (q, k, v)))
        return b.call(aten.mul.Tensor, b.call(aten.silu.default, y), b.input(gate))

    want = scaled_dot_product_attention(q.double(), k.double(), v.double())
    want = torch.nn.functional.silu(want) * gate.double()
    assert (run(build) - want).abs().max() < ERROR * 40


@pytest.mark.parametrize("target", CUDA_TARGETS, ids=lambda target: target.arch)
def test_attention_tile__heads_that_fit(target: CudaTarget) -> None:
    widest = 192 if target.arch == "sm_75" else 256  # Turing has 64 KiB
    for head_dim in range(8, widest + 1, 8):
        assert attention_tile(target, head_dim, head_dim) is not None
    assert attention_tile(target, 264, 64) is None
