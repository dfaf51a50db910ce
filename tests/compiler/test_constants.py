"""Python values among a model's inputs are compiled in: they may be given again, but not changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import svdqc


class Scaled(torch.nn.Module):
    def forward(self, x: torch.Tensor, options: dict[str, object]) -> torch.Tensor:
        doubled = x * float(options["scale"])  # type: ignore[arg-type]
        return -doubled if options["negate"] else doubled


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("constants") / "scaled.svdq"
    inputs = {"x": torch.ones(3, 5), "options": {"scale": 1.5, "negate": True}}
    svdqc.compile(Scaled(), inputs, output=path, recipe=svdqc.Recipe(precision="none"))
    return path


def test_constants__may_be_repeated_or_left_out(artifact: Path) -> None:
    model, x = svdqc.load(artifact), torch.randn(3, 5)
    for extra in ({}, {"options": {"scale": 1.5, "negate": True}}):
        assert torch.equal(next(iter(model(x=x, **extra).values())), x * -1.5)


def test_constants__rejects_another_value(artifact: Path) -> None:
    model, x = svdqc.load(artifact), torch.randn(3, 5)
    with pytest.raises(svdqc.SvdqcError, match=r"options\.scale.*2\.0.*1\.5"):
        model(x=x, options={"scale": 2.0, "negate": True})
