"""A recipe refuses what means nothing, naming the field."""

from __future__ import annotations

from typing import Any

import pytest

from svdqc.compiler.quantize.errors import InvalidRecipe
from svdqc.compiler.quantize.recipe import Recipe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("precision", "int3"),
        ("rank", -1),
        ("rank", 1.5),
        ("rank", True),
        ("rank", "many"),
        ("group_size", 48),
        ("group_size", 16),
        ("modulation", "int4"),
        ("rotate", "yes"),
        ("activation_range", "unsigned"),
        ("weight_range", "auto"),
        ("refine_iterations", -1),
        ("seed", "x"),
        ("gptq", 1),
        ("keep", ["*.proj"]),
        ("quantize", (1,)),
    ],
)
def test_recipe__rejects(field: str, value: Any) -> None:
    with pytest.raises(InvalidRecipe, match=field):
        Recipe(**{field: value})


def test_recipe__ranges_belong_to_a_precision() -> None:
    assert Recipe(precision="nvfp4", activation_range="six").activation_range == "six"
    with pytest.raises(InvalidRecipe, match="activation_range"):
        Recipe(precision="int4", activation_range="six")


def test_recipe__is_hashable() -> None:
    assert len({Recipe(), Recipe(), Recipe(rank=16)}) == 2


def test_rank_for__never_above_the_layer() -> None:
    assert Recipe(rank=64).rank_for(48, 128) == 48
    assert Recipe(rank="auto").rank_for(512, 512) == 32
    assert Recipe(rank=0).rank_for(512, 512) == 0
