"""Which precisions a target has kernels for, and which one "auto" is."""

from __future__ import annotations

from dataclasses import replace

from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import SCHEMES
from svdqc.compiler.targets.cuda import CUDA_TARGETS, CudaTarget
from svdqc.errors import SvdqcError

PRECISIONS_OF = {
    "cpu": (*SCHEMES, "none"),
    "cuda": ("int4", "int8", "w4a8", "w4a16", "nf4", "none"),
}
"""By the target's kind: what comes before the colon. Every precision runs on CPUs; GPUs have more by architecture."""
BLOCK_SCALED = frozenset({"nvfp4", "tcgen05_nvfp4"})
"""Tensor-core operations that multiply NVFP4 (targets/cuda.py)."""


class UnsupportedPrecision(SvdqcError):
    """A target has no kernels for the precision asked for."""


def precisions_on(target: str) -> list[str]:
    """What all of the named targets can run."""
    parts = [_precisions_of(part.strip()) for part in target.split(",")]
    return [p for p in PRECISIONS_OF["cpu"] if all(p in part for part in parts)]


def _precisions_of(name: str) -> tuple[str, ...]:
    """Of one target; `cuda` without an architecture has what all of them have."""
    if not name.startswith("cuda"):
        return PRECISIONS_OF["cpu"]
    more = ("nvfp4",) if _multiplies_nvfp4(name) else ()
    return (*PRECISIONS_OF["cuda"], *more)


def _multiplies_nvfp4(name: str) -> bool:
    target = _cuda_target(name.strip())
    return target is not None and bool(BLOCK_SCALED & target.tensor_ops)


def _cuda_target(name: str) -> CudaTarget | None:
    return next((t for t in CUDA_TARGETS if name in (t.name, t.name.removesuffix("a"))), None)


def best_precision(target: str) -> str:
    """What "auto" is: nvfp4 where every target has tensor cores for it, else int4, which all of them run."""
    return "nvfp4" if all(map(_multiplies_nvfp4, target.split(","))) else "int4"


def resolved(recipe: Recipe, target: str) -> Recipe:
    """The recipe with "auto" decided, for target names such as "cpu:avx2,cuda:sm_90a".

    Modulation layers stay as they are where one of the targets cannot read their codes.
    """
    shared = precisions_on(target)
    if recipe.precision == "auto":
        recipe = replace(recipe, precision=best_precision(target))
    if recipe.precision not in shared:
        raise UnsupportedPrecision(
            "compile",
            recipe.precision,
            f"no kernels for it on {target}",
            f"use {', '.join(shared)} or auto",
        )
    return recipe if recipe.modulation in (*shared, "keep") else replace(recipe, modulation="keep")
