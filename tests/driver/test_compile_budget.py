"""A budget from the recipe to the artifact: what was chosen is what is stored, and it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import svdqc


class Model(nn.Module):
    """Two residual blocks between an embedder and a projection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(16, 64)
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.out = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + nn.functional.silu(block(x))
        y: Tensor = self.out(x)
        return y


def test_compile__mixed_precisions_within_a_budget(tmp_path: Path) -> None:
    model, dice = Model().eval(), torch.Generator().manual_seed(1)
    calls = [{"x": torch.randn(1, 64, 16, generator=dice)} for _ in range(6)]
    artifact = svdqc.compile(
        model,
        calls[0],
        output=tmp_path / "model.svdq",
        target="cpu:portable",
        recipe=svdqc.Recipe(precision="auto", budget="23KB", quantize=("blocks.*",)),
        calibration=calls,
        jobs=1,
    )
    allocation = artifact.report["allocation"]
    assert allocation["spent_bytes"] <= allocation["budget_bytes"] == 23_000
    assert artifact.report["weight_bytes"] == allocation["spent_bytes"]
    told = svdqc.inspect(tmp_path / "model.svdq")
    stored = {r["layers"][0]: (r["precision"], r["rank"]) for r in told["quantization"]["layers"]}
    chosen = {c["name"]: (c["precision"], c["rank"]) for c in allocation["choices"]}
    assert stored == {n: c for n, c in chosen.items() if c[0] != "none"}
    assert len(chosen) == 3
    assert told["meta"]["report"]["allocation"]["choices"] == allocation["choices"]
    answer = np.asarray(svdqc.load(tmp_path / "model.svdq")(x=calls[0]["x"].numpy())["0"])
    with torch.no_grad():
        wanted = model(**calls[0]).numpy()
    assert np.linalg.norm(answer - wanted) < 0.05 * np.linalg.norm(wanted)
