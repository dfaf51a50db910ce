"""Artifact against reference over a whole 4-bit model, measured in the model's own sensitivity.

A float that differs in its last bit can lie on the other side of a rounding boundary and move a code by one; attention
then spreads that. So agreement over many layers has a scale of its own: how far the reference moves when its inputs
move by one unit in the last place. Layer by layer (tests/kernels) codes and integer sums are exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import svdqc
from svdqc.compiler.driver import Reference

diffusers = pytest.importorskip("diffusers")

BOUND = 1e-3
SENSITIVITY_FACTOR = 4.0
"""Two executions differ in about as many places as a perturbed one does, but not in the same ones."""


def tiny_flux() -> tuple[torch.nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        axes_dims_rope=(8, 12, 12),
    ).eval()
    inputs = {
        "hidden_states": torch.randn(2, 24, 16),
        "encoder_hidden_states": torch.randn(2, 5, 64),
        "pooled_projections": torch.randn(2, 64),
        "timestep": torch.tensor([0.9, 0.3]),
        "img_ids": torch.stack([torch.zeros(24), torch.arange(24) // 6, torch.arange(24) % 6], 1),
        "txt_ids": torch.zeros(5, 3),
    }
    return model, inputs


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("rank", [0, 16, 32])
def test_agreement__whole_model_within_its_own_sensitivity(rank: int, tmp_path: Path) -> None:
    model, inputs = tiny_flux()
    recipe = svdqc.Recipe(precision="int4", rank=rank)
    svdqc.compile(model, inputs, output=tmp_path / "flux.svdq", recipe=recipe)
    reference = Reference(tmp_path / "flux.svdq")
    artifact = svdqc.load(tmp_path / "flux.svdq", threads=2)
    wanted = reference(**inputs)["sample"]
    ulp = 1.0 + torch.finfo(torch.float32).eps
    moved = reference(**{**inputs, "hidden_states": inputs["hidden_states"] * ulp})["sample"]
    allowed = max(BOUND, SENSITIVITY_FACTOR * relative(moved, wanted))
    got = artifact(**inputs)["sample"]
    assert relative(got, wanted) <= allowed
    with torch.no_grad():
        eager = model(**inputs).sample
    assert allowed < relative(got, eager), "the bound must be smaller than the quantization error"


def test_agreement__same_bits_on_each_run_and_number_of_threads(tmp_path: Path) -> None:
    model, inputs = tiny_flux()
    svdqc.compile(model, inputs, output=tmp_path / "flux.svdq", recipe=svdqc.Recipe(rank=16))
    one = svdqc.load(tmp_path / "flux.svdq", threads=1)
    two = svdqc.load(tmp_path / "flux.svdq", threads=2)
    first = one(**inputs)["sample"]
    assert torch.equal(first, one(**inputs)["sample"])
    assert torch.equal(first, two(**inputs)["sample"])
