"""The runtime's arithmetic over dims against the compiler's, through a kernel that hands its scalars out."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tests.artifact.test_plan import DIMS, SYMBOLS, random_expr
from tests.runtime import tiny

from svdqc.compiler.artifact.format import Variant
from svdqc.compiler.artifact.write import write_artifact
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.plan.errors import PlanRangeError
from svdqc.compiler.plan.records import Buffer, BufferArg, KernelEntry, Launch, Plan, TensorPort
from svdqc.compiler.plan.verify import verify_plan
from svdqc.runtime import load

NUM_SCALARS = 300
KERNEL = r"""
#include "svdq_kernel.h"
extern "C" {
extern SVDQ_KERNEL_EXPORT const uint32_t svdq_code_abi;
const uint32_t svdq_code_abi = SVDQ_KERNEL_ABI;
SVDQ_KERNEL_EXPORT void give(const svdq_kernel_args* a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) ((int64_t*)a->buffers[0])[i] = a->scalars[i];
}
}
"""


def plan_of(scalars: tuple[IntExpr, ...]) -> Plan:
    h, w, batch = SYMBOLS
    size, zero = IntExpr.of(8 * len(scalars)), IntExpr.of(0)
    return Plan(
        dims=DIMS,
        inputs=(TensorPort("x", "u8", (batch, h, w)),),
        outputs=(TensorPort("values", "i64", (IntExpr.of(len(scalars)),)),),
        buffers=(Buffer("output", size, 0),),
        kernels=(KernelEntry("give"),),
        launches=(
            Launch(0, (BufferArg(0, zero, size, "write"),), scalars, IntExpr.of(len(scalars)), zero, ""),
        ),
        arena_bytes=0,
    )  # fmt: skip


def provable(expr: IntExpr) -> bool:
    try:
        verify_plan(plan_of((expr,)))
    except PlanRangeError:
        return False
    return True


@pytest.mark.parametrize("seed", [1, 2])
def test_expressions__mean_the_same(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    drawn = (random_expr(rng, rng.randint(0, 4)) for _ in range(10 * NUM_SCALARS))
    scalars = tuple(expr for expr in drawn if provable(expr))[:NUM_SCALARS]
    assert len(scalars) == NUM_SCALARS
    write_artifact(
        tmp_path / "e.svdq",
        name="expressions",
        producer="svdqc tests",
        tensors=[],
        variants=[
            Variant("cpu:portable", (), tiny.compile_code(tmp_path, KERNEL), plan_of(scalars))
        ],
        graph=b"",
        quantization={},
        source_digest="",
        meta={},
    )
    model = load(tmp_path / "e.svdq", trust=True)
    for _ in range(10):
        dims = {d.name: rng.randrange(d.lo, d.hi + 1, d.multiple) for d in DIMS}
        values = model(x=np.zeros((dims["batch"], dims["h"], dims["w"]), np.uint8))["values"]
        for expr, value in zip(scalars, values, strict=True):
            assert expr.evaluate(dims) == value, (expr, dims)
