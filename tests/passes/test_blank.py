"""Blank layers are planned like quantized ones: the same kernels, to the letter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.driver.compile import capture_canonical
from svdqc.compiler.driver.variants import plan_regions
from svdqc.compiler.passes.blank import blank_quantized
from svdqc.compiler.passes.linear_groups import linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups, recipes_of
from svdqc.compiler.passes.svdquant import svdquant
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import SCHEMES


class Block(nn.Module):
    """Two linears that share their input, and one of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.down = nn.Linear(64, 128), nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(torch.tanh(self.a(x)) * self.b(x))
        return y


@pytest.mark.parametrize("precision", SCHEMES)
def test_blank__kernels_are_those_of_a_quantized_model(precision: str) -> None:
    torch.manual_seed(0)
    model, inputs = Block().eval(), {"x": torch.randn(96, 64)}
    recipe = Recipe(precision=precision, rank=16, quantize=("*",))
    kernels = []
    for blank in (True, False):
        canonical = capture_canonical(model, inputs, None, recipe)
        program = canonical.program
        groups = quantized_groups(canonical.decisions, linear_groups(program))
        assert groups
        recipes = recipes_of(groups, canonical.decisions, recipe)
        if blank:
            blank_quantized(program, groups, recipes)
        else:
            svdquant(program, groups, {}, recipes)
        kernels.append(lower(program, plan_regions(program)).kernels)
    assert kernels[0] == kernels[1]
