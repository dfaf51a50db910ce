"""Compiling twice gives the same bytes, however many jobs compile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import svdqc
from svdqc.compiler.targets import toolchain


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(F.gelu(self.up(x)))
        return y


def compiled(folder: Path, jobs: int, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """With an empty kernel cache, so that everything is compiled."""
    folder.mkdir()
    monkeypatch.setattr(toolchain, "cache_folder", lambda: folder / "cache")
    recipe = svdqc.Recipe(rank=16, quantize=("*",))
    inputs = {"x": torch.ones(1, 8, 64)}
    artifact = svdqc.compile(
        Tiny().eval(), inputs, output=folder / "tiny.svdq", recipe=recipe, jobs=jobs
    )
    return Path(artifact.path).read_bytes()


def test_two_compilations_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = compiled(tmp_path / "one", 1, monkeypatch)
    two = compiled(tmp_path / "two", 2, monkeypatch)
    assert len(one) > 10_000
    assert one == two
