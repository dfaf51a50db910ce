"""Whole models on the host back end, at the smallest and the largest sizes, in 32 and in 4 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.compiler.programs import canonical
from tests.compiler.test_zoo import DYNAMIC, eager, inputs, relative, wide
from tests.cuda.host_kernels import has, machine
from tests.cuda.host_runner import PlanRunner
from torch import Tensor

from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.driver.variants import backend_of, plan_regions
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.linear_groups import linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups
from svdqc.compiler.passes.svdquant import svdquant
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.targets.cuda import SM_75, SM_80, SM_90A, SM_120A, CudaTarget
from svdqc.frontends.spec import walk

FLOAT32 = 3e-5
"""Sums in another order; products of 16-bit parts leave out the smallest, 2^-22 of each."""
FLIPS = 1e-2
TARGETS = {"flux": SM_90A, "pixart": SM_80, "dit": SM_75, "unet": SM_80}


def runner(program: Program, target: CudaTarget) -> PlanRunner:
    target = machine(target)
    fusion = plan_regions(program, target)
    return PlanRunner(program, lower(program, fusion, backend=backend_of(target)))


def flat(program: Program, given: dict[str, Any]) -> dict[str, Tensor]:
    """The program's inputs among a model's arguments."""
    names = program.input_names()
    return {name: torch.as_tensor(value) for name, value in walk(given) if name in names}


def first(results: dict[str, Tensor]) -> Tensor:
    return next(iter(results.values()))


@pytest.mark.parametrize("name", DYNAMIC)
def test_float32_at_smallest_and_largest(name: str) -> None:
    trace, dims, sizes = DYNAMIC[name]
    model = wide(name)
    program = canonical(model, inputs(name, **trace), dynamic=dims).program
    run = runner(program, TARGETS[name])
    for size in sizes[:2]:
        given = inputs(name, **size)
        assert relative(first(run(flat(program, given))), eager(model, given)) <= FLOAT32, size


@pytest.mark.parametrize(
    ("name", "sizes", "precision", "target"),
    [
        ("flux", {}, "int4", SM_80),
        ("unet", {}, "int4", SM_80),
        # 4 times 16 tokens: rows enough for warpgroups.
        ("dit", {"batch": 4, "height": 8, "width": 8}, "fp8", SM_90A),
        ("dit", {}, "nvfp4", SM_120A),
    ],
)
def test_quantized(name: str, sizes: dict[str, int], precision: str, target: CudaTarget) -> None:
    """As the reference computes it, in every order of the threads."""
    if precision == "nvfp4" and not has("nvfp4"):
        pytest.skip("a GPU without tensor cores for it")
    model, given = wide(name), inputs(name, **sizes)
    recipe = Recipe(precision=precision, rank=16, modulation="keep")
    found = canonical(model, given, precision=precision, rank=16, modulation="keep")
    groups = quantized_groups(found.decisions, linear_groups(found.program))
    assert len(groups) >= 3
    svdquant(found.program, groups, {}, {group.name: recipe for group in groups})
    program, named = found.program, flat(found.program, given)
    run = runner(program, target)
    wanted = program.run(named)[0]
    result = first(run(named))
    assert relative(result, wanted) <= FLIPS < relative(wanted, eager(model, given)) * 2
    assert torch.equal(result, first(run(named, schedule=1)))
