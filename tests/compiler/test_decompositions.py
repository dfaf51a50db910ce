"""Ops that are made of others, against PyTorch: as graphs after the passes, and as kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.compiler.decomposition_cases import FAMILIES, Case, floats
from tests.compiler.programs import canonical, run_compiled
from torch import Tensor, nn

import svdqc
from svdqc.compiler.codegen.ops import OPS
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.decompose import RULES
from svdqc.frontends.decompositions import PRESERVED
from svdqc.frontends.spec import walk

FLOAT_ULPS = 64
"""Sums of up to a hundred terms in another order, of values of size 1."""


class Functions(nn.Module):
    """Many cases as one model: inputs and outputs by the name of their case."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.functions = {case.name: case.function for case in cases}

    def forward(self, given: dict[str, tuple[Tensor, ...]]) -> dict[str, Any]:
        return {name: function(*given[name]) for name, function in self.functions.items()}


def program_of(cases: list[Case]) -> tuple[Program, dict[str, Tensor], dict[str, Tensor]]:
    """The canonical program, its inputs, and PyTorch's outputs, by name."""
    model = Functions(cases)
    given = {"given": {case.name: case.inputs for case in cases}}
    with torch.no_grad():
        wanted = {name: value for name, value in walk(model(**given)) if isinstance(value, Tensor)}
    flat = {name: value for name, value in walk(given) if isinstance(value, Tensor)}
    return canonical(model, given).program, flat, wanted


def assert_same(found: list[Tensor], wanted: dict[str, Tensor]) -> None:
    wrong = []
    assert len(found) == len(wanted)
    for got, (name, want) in zip(found, wanted.items(), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype), name
        eps = FLOAT_ULPS * torch.finfo(want.dtype).eps if want.is_floating_point() else 0.0
        if not torch.allclose(got, want, rtol=eps, atol=eps, equal_nan=True):
            wrong.append(f"{name}: {got} instead of {want}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_decompositions(family: str, tmp_path: Path) -> None:
    cases = list(FAMILIES[family]())
    assert len(cases) >= 5, "a sweep that ran no cases proves nothing"
    program, inputs, wanted = program_of(cases)
    assert_same(program.run(inputs), wanted)
    assert_same(run_compiled(program, inputs, tmp_path / "cases.svdq"), wanted)


def test_preserved_ops__each_has_a_rule() -> None:
    """What the frontend keeps whole is an op with kernels, or is decomposed here."""
    known = {*OPS, *map(str, RULES)}
    assert not [str(op) for op in PRESERVED if str(op) not in known]


class Routed(nn.Module):
    """Experts chosen per token: a dense sum over all, and the chosen ones' weights gathered."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.experts = nn.Linear(8, 4), nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.weights = nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shares, chosen = self.gate(x).softmax(-1).topk(2, -1)
        dense = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            dense = dense + expert(x) * ((chosen == number) * shares).sum(-1, keepdim=True)
        gathered = torch.einsum("td,tkdf->tkf", x, self.weights[chosen])
        return dense, (gathered * shares.unsqueeze(-1)).sum(1)


class Ordered(nn.Module):
    """Ops along an axis whose size varies."""

    def forward(self, x: Tensor, index: Tensor) -> dict[str, Any]:
        return {
            "sorted": x.sort(-1, descending=True),
            "least": x.argmin(-1),
            "running": x.cumsum(-1),
            "added": torch.zeros_like(x).scatter_add(1, index, x),
        }


@pytest.mark.parametrize(
    ("model", "sizes"), [(Routed(), (1, 5, 9)), (Ordered(), (2, 5, 16))], ids=["routed", "ordered"]
)
def test_decompositions__of_dynamic_sizes(
    model: nn.Module, sizes: tuple[int, ...], tmp_path: Path
) -> None:
    def inputs(size: int) -> dict[str, Tensor]:
        if isinstance(model, Routed):
            return {"x": floats(size, 8)}
        generator = torch.Generator().manual_seed(size)
        index = torch.randint(0, size, (3, size), generator=generator)
        return {"x": floats(3, size), "index": index}

    place = "n@x.0" if isinstance(model, Routed) else "n@x.1+index.1"
    none = svdqc.Recipe(precision="none")
    path, dims = tmp_path / "model.svdq", f"{place}={sizes[0]}:{sizes[-1]}"
    svdqc.compile(model.eval(), inputs(sizes[1]), output=path, recipe=none, dynamic=dims)
    with svdqc.load(path, threads=1) as session:
        for size in sizes:
            with torch.no_grad():
                wanted = [value for _, value in walk(model(**inputs(size)))]
            found = [torch.as_tensor(v).clone() for v in session(**inputs(size)).values()]
            assert_same(found, dict(zip(map(str, range(len(wanted))), wanted, strict=True)))
