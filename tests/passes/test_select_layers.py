"""Which layers are quantized and to what: modulation layers are their own case."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from svdqc.compiler.driver.compile import capture_canonical
from svdqc.compiler.passes.linear_groups import linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups, recipes_of
from svdqc.compiler.quantize.recipe import Recipe

WIDTH = 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mod = nn.Linear(WIDTH, 3 * WIDTH)
        self.up = nn.Linear(WIDTH, 128)
        self.down = nn.Linear(128, WIDTH)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        shift, scale, gate = self.mod(nn.functional.silu(vector)).chunk(3, -1)
        y = self.up(x * (1 + scale[:, None]) + shift[:, None])
        return x + gate[:, None] * self.down(nn.functional.relu(y))


class Model(nn.Module):
    """Two modulated blocks between an embedder and a projection, and an embedder of the vector."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.time_embed = nn.Sequential(nn.Linear(16, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm_out = nn.ModuleDict({"linear": nn.Linear(WIDTH, 2 * WIDTH)})
        self.out = nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        vector, x = self.time_embed(time), self.embed(x)
        for block in self.blocks:
            x = block(x, vector)
        shift, scale = self.norm_out["linear"](vector).chunk(2, -1)
        return self.out(x * (1 + scale[:, None]) + shift[:, None])


def chosen(recipe: Recipe) -> dict[str, str]:
    """Precision by layer, the kept ones left out; the groups' recipes agree."""
    inputs = {"x": torch.randn(1, 40, 8), "time": torch.randn(1, 16)}
    found = capture_canonical(Model().eval(), inputs, None, recipe)
    groups = quantized_groups(found.decisions, linear_groups(found.program))
    recipes = recipes_of(groups, found.decisions, recipe)
    precisions = {d.layer: d.precision for d in found.decisions if d.quantized}
    assert {n: recipes[g.name].precision for g in groups for n in g.names} == precisions
    return precisions


LINEARS = {f"blocks.{i}.{name}": "int4" for i in range(2) for name in ("up", "down")}
MODULATION = {"blocks.0.mod", "blocks.1.mod", "norm_out.linear"}


def test_modulation_layers_have_their_weights_coded_alone() -> None:
    assert chosen(Recipe()) == {**LINEARS, **dict.fromkeys(MODULATION, "w4a16")}


def test_modulation_layers_may_be_kept() -> None:
    assert chosen(Recipe(modulation="keep")) == LINEARS


def test_precision_none_keeps_modulation_layers_too() -> None:
    assert chosen(Recipe(precision="none")) == {}


def test_patterns_override_the_rule() -> None:
    asked = Recipe(keep=("blocks.0.*", "norm_out.*"), quantize=("blocks.1.mod", "time_embed.2"))
    wanted = {"blocks.1.up": "int4", "blocks.1.down": "int4", "blocks.1.mod": "int4"}
    assert chosen(asked) == {**wanted, "time_embed.2": "int4"}


@pytest.mark.parametrize(
    ("recipe", "kept"),
    [
        (Recipe(group_size=128), {"blocks.0.up", "blocks.1.up", *MODULATION}),
        (Recipe(precision="int8", group_size=128), MODULATION),  # a scale per row divides any width
        (Recipe(precision="nvfp4"), set()),
    ],
)
def test_layers_that_do_not_divide_into_groups_are_kept(recipe: Recipe, kept: set[str]) -> None:
    assert {*LINEARS, *MODULATION} - set(chosen(recipe)) == kept
