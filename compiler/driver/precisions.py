"""Which precisions a target has kernels for, and which one "auto" is."""

from __future__ import annotations

from dataclasses import replace

from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import SCHEMES
from svdqc.compiler.targets.cuda import CUDA_TARGETS, CudaTarget
from svdqc.errors import SvdqcError

ON_CPUS = (*SCHEMES, "none")
"""Every precision."""
ON_GPUS = {
    "int4": {"s4", "s8"},
    "nvfp4": {"nvfp4", "tcgen05_nvfp4"},
    "int8": {"wgmma_s8", "s8"},
    "fp8": {"wgmma_e4m3", "e4m3", "f16"},
    "w4a8": {"wgmma_s8", "s8"},
    "w4a16": {"f16"},
    "nf4": {"f16"},
    "none": {"f16"},
}
"""Precisions that have kernels: there are some for each of these tensor-core operations, and one is enough."""


class UnsupportedPrecision(SvdqcError):
    """A target has no kernels for the precision asked for."""


def precisions_on(target: str) -> list[str]:
    """What all of the named targets can run; "cuda" alone may be any GPU."""
    names = [name.strip() for name in target.split(",") if name.strip().startswith("cuda")]
    gpus = [gpu for name in names for gpu in CUDA_TARGETS if name in ("cuda", *gpu.names)]
    return [p for p in ON_CPUS if all(p in _precisions_of(gpu) for gpu in gpus)]


def _precisions_of(target: CudaTarget) -> set[str]:
    return {p for p, operations in ON_GPUS.items() if operations & target.tensor_ops}


def best_precision(target: str) -> str:
    """What "auto" is: the best of the GPUs named, if they agree on one; else int4, which everything runs.

    Where tensor cores have no 4-bit integers: nvfp4 on Blackwell, and on Hopper 4-bit weights with 8-bit activations,
    which run at the speed of 8 bits either way and lose less.
    """
    names = [name.strip() for name in target.split(",")]
    gpus = [[gpu for gpu in CUDA_TARGETS if name in gpu.names] for name in names]
    best = {_best_on(of_name[0]) if of_name else "int4" for of_name in gpus}
    return best.pop() if len(best) == 1 else "int4"


def _best_on(target: CudaTarget) -> str:
    if ON_GPUS["nvfp4"] & target.tensor_ops:
        return "nvfp4"
    return "w4a8" if "wgmma_s8" in target.tensor_ops else "int4"


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
