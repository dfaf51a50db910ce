"""A linear of few rows is split along its columns: what follows must not read another column of the tile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import svdqc

EPILOGUES: dict[str, Callable[[Tensor], Tensor]] = {
    "own": lambda y: y.sigmoid() * y,
    "reversed": lambda y: y + y.flip(-1),
    "neighbours": lambda y: y[..., 1:] - y[..., :-1],
}


class Model(nn.Module):
    def __init__(self, epilogue: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.epilogue = nn.Linear(1024, 1024), epilogue

    def forward(self, x: Tensor) -> Tensor:
        return self.epilogue(self.linear(x))


@pytest.mark.parametrize("name", EPILOGUES)
def test_few_rows(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, x = Model(EPILOGUES[name]).eval(), torch.randn(4, 1024)
    path = tmp_path / "model.svdq"
    svdqc.compile(model, {"x": x}, output=path, recipe=svdqc.Recipe(precision="none"))
    [found] = svdqc.load(path, threads=1)(x=x).values()
    with torch.no_grad():
        torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)
