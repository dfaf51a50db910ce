"""Which precisions a target has kernels for, and which one "auto" is."""

from __future__ import annotations

from dataclasses import replace

from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import SCHEMES
from svdqc.errors import SvdqcError

PRECISIONS_OF = {
    "cpu": (*SCHEMES, "none"),
    "cuda": ("int4", "int8", "fp8", "w4a8", "w4a16", "nf4", "none"),
}
"""By the target's kind: what comes before the colon. Every precision runs on CPUs."""


class UnsupportedPrecision(SvdqcError):
    """A target has no kernels for the precision asked for."""


def precisions_on(target: str) -> list[str]:
    """What all of the named targets can run."""
    kinds = {"cuda" if part.strip().startswith("cuda") else "cpu" for part in target.split(",")}
    return [p for p in PRECISIONS_OF["cpu"] if all(p in PRECISIONS_OF[k] for k in kinds)]


def resolved(recipe: Recipe, target: str) -> Recipe:
    """The recipe with "auto" decided, for target names such as "cpu:avx2,cuda:sm_90a".

    Modulation layers stay as they are where one of the targets cannot read their codes.
    """
    shared = precisions_on(target)
    if recipe.precision == "auto":
        recipe = replace(recipe, precision="int4")
    if recipe.precision not in shared:
        raise UnsupportedPrecision(
            "compile",
            recipe.precision,
            f"no kernels for it on {target}",
            f"use {', '.join(shared)} or auto",
        )
    return recipe if recipe.modulation in (*shared, "keep") else replace(recipe, modulation="keep")
