"""Every kernel generated for a model, compiled for two kinds of GPU: no spills, and it fits the machine.

Products on tensor cores have gates of their own, by opcode and by instructions per operation (test_gemm_sass.py).
"""

from __future__ import annotations

from functools import cache

import pytest
from tests.compiler.programs import canonical
from tests.compiler.test_zoo import inputs, wide
from tests.cuda import sass

from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.driver.variants import backend_of, plan_regions
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.linear_groups import linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups
from svdqc.compiler.passes.svdquant import svdquant
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.targets.cuda import (
    REGISTERS_PER_SM,
    SM_80,
    SM_90A,
    CudaTarget,
)

TARGETS = (SM_80, SM_90A)
SINE_STACK = 40
"""Bytes by which CUDA's sine and cosine reduce arguments of 105,615 and more: never taken, but reserved."""
ASIDE = 8
"""Bytes that ptxas may lay aside around a loop of a row kernel (sm_90a: one register), so that more CTAs fit."""


@cache
def quantized() -> Program:
    """A small FLUX in 4 bits: every family of kernels."""
    recipe = Recipe(precision="int4", rank=16, modulation="keep")
    given = inputs("flux")
    found = canonical(wide("flux"), given, precision="int4", rank=16, modulation="keep")
    groups = quantized_groups(found.decisions, linear_groups(found.program))
    svdquant(found.program, groups, {}, {group.name: recipe for group in groups})
    return found.program


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.arch)
def test_kernels_of_a_model(target: CudaTarget) -> None:
    sass.require_nvcc()
    sass.require_disassembler()
    program = quantized().copy()
    lowered = lower(program, plan_regions(program, target), backend=backend_of(target))
    entries = [e for e in lowered.plan.kernels if not e.name.startswith("gemm")]
    assert len(entries) >= 8
    for entry in entries:
        kernel = sass.disassembled(entry.name, lowered.kernels[entry.name], target)
        where = f"{entry.name} {target.arch}: {kernel.stack_bytes} bytes of stack"
        allowed = SINE_STACK if "_sin_" in entry.name else ASIDE
        assert kernel.stack_bytes <= (0 if uses_tensor_cores(kernel) else allowed), where
        assert kernel.local_bytes == 0, where
        assert kernel.registers * entry.threads <= REGISTERS_PER_SM, where
        assert entry.shared_bytes <= target.shared_bytes_per_cta, where
        assert target.max_ctas(entry.threads, entry.shared_bytes, kernel.registers) >= 1, where


def uses_tensor_cores(kernel: sass.Sass) -> bool:
    return any(i.opcode.startswith(("HMMA", "IMMA", "QMMA")) for i in kernel.instructions)
