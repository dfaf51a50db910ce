"""Every element rule, view and reduction as a CUDA kernel, on the host back end, against PyTorch."""

from __future__ import annotations

import pytest
from tests.compiler import decomposition_cases
from tests.compiler.programs import program_of_calls
from tests.compiler.test_decompositions import assert_same, program_of
from tests.compiler.test_element_rules import FAMILIES, difference
from tests.cuda.host_runner import PlanRunner

from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.driver.variants import plan_regions
from svdqc.compiler.passes.fuse import fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.targets.cuda import SM_80


@pytest.mark.parametrize("family", FAMILIES)
def test_element_rules(family: str) -> None:
    cases = list(FAMILIES[family]())
    assert len(cases) > 10, "a sweep that ran no cases proves nothing"
    program, inputs = program_of_calls(cases)
    materialize(program)
    run = PlanRunner(program, lower(program, fuse(program), backend=CudaBackend(SM_80)))
    for schedule in (0, 1):
        results = run(inputs, schedule)
        ordered = [results[spec.name] for spec in program.outputs]
        problems = {c.name: difference(c, r) for c, r in zip(cases, ordered, strict=True)}
        wrong = {name: problem for name, problem in problems.items() if problem is not None}
        assert not wrong, "\n".join(f"{name}: {problem}" for name, problem in wrong.items())


@pytest.mark.parametrize("family", ["order", "scattering", "writing", "windows"])
def test_decompositions(family: str) -> None:
    program, inputs, wanted = program_of(list(decomposition_cases.FAMILIES[family]()))
    fusion = plan_regions(program, SM_80)
    run = PlanRunner(program, lower(program, fusion, backend=CudaBackend(SM_80)))
    results = run(inputs)
    assert_same([results[spec.name] for spec in program.outputs], wanted)
