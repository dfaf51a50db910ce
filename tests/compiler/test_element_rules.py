"""Every element rule against PyTorch: each family of ops is compiled into one library and run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.compiler.element_cases import FAMILIES
from tests.compiler.programs import Call, program_of_calls, run_compiled
from torch import Tensor

from svdqc.compiler.codegen.ops import OPS

WITHOUT_A_CASE = {
    "aten.contiguous.default": "same rule as clone; the op itself returns its operand, which no graph holds twice",
    "aten.empty.memory_format": "its values are undefined",
}

FLOAT_ULPS = 16
"""Vector functions are within 4 ulp (tests/kernels/test_vec_math.py); a case has up to two in a row, and sums."""


def tolerance(want: Tensor) -> dict[str, float]:
    eps = torch.finfo(want.dtype).eps
    if want.dtype in (torch.bfloat16, torch.float16):
        return {"rtol": eps, "atol": eps * 1e-2}  # computed in f32, rounded once, as PyTorch does
    # Of values between 0.01 and 100: an absolute term for results near a zero crossing.
    return {"rtol": FLOAT_ULPS * max(eps, 1e-15), "atol": 8 * max(eps, 1e-15)}


def difference(case: Call, got: Tensor) -> str | None:
    want = case.expected()
    if want.shape != got.shape or want.dtype != got.dtype:
        return f"{list(want.shape)} {want.dtype} expected, got {list(got.shape)} {got.dtype}"
    exact = not want.is_floating_point()
    equal = got == want if exact else torch.isclose(got, want, equal_nan=True, **tolerance(want))
    if bool(equal.all()):
        return None
    first = (~equal).nonzero()[0].tolist()
    values = f"got {got[~equal][0]}, expected {want[~equal][0]}"
    return f"{int((~equal).sum())} of {equal.numel()} differ, first at {first}: {values}"


@pytest.mark.parametrize("family", FAMILIES)
def test_element_rules(family: str, tmp_path: Path) -> None:
    cases = list(FAMILIES[family]())
    assert len(cases) > 10, "a sweep that ran no cases proves nothing"
    program, inputs = program_of_calls(cases)
    results = run_compiled(program, inputs, tmp_path / "cases.svdq")
    problems = {c.name: difference(c, r) for c, r in zip(cases, results, strict=True)}
    wrong = {name: problem for name, problem in problems.items() if problem is not None}
    assert not wrong, "\n".join(f"{name}: {problem}" for name, problem in wrong.items())


def test_every_rule_has_a_case() -> None:
    covered = {case.target for family in FAMILIES.values() for case in family()}
    kinds = ("view", "pointwise", "creation", "reduce")
    rules = {target for target, rule in OPS.items() if rule.kind in kinds}
    missing = sorted(rules - covered - set(WITHOUT_A_CASE))
    assert not missing, f"rules without a case in the element_*.py beside: {missing}"


def test_every_rule_names_an_op_that_exists() -> None:
    unknown = []
    for target in OPS:
        namespace, packet, overload = target.split(".")
        space = getattr(torch.ops, namespace)
        if not hasattr(space, packet) or overload not in getattr(space, packet).overloads():
            unknown.append(target)
    assert not unknown


def test_case_names_are_unique() -> None:
    names = [case.name for family in FAMILIES.values() for case in family()]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})
