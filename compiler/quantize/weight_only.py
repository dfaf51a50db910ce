"""Coding a weight for activations that stay as they are: error feedback under the inputs' second moments.

"nf4" is the classic baseline and takes nothing from samples: each block of 64 by its largest magnitude (QLoRA,
arXiv 2305.14314).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from svdqc.compiler.quantize.codecs import IntegerCodec
from svdqc.compiler.quantize.formats import quantize_nf4
from svdqc.compiler.quantize.gptq import factor, quantize_with_feedback, round_to_nearest
from svdqc.compiler.quantize.polish import sweep
from svdqc.compiler.quantize.problem import shrinkage
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.reference import decode_weight, dequantize_weight
from svdqc.compiler.quantize.schemes import scheme_of

FEWEST_TOKENS = 128
"""Below this many tokens only the channels' energies are believed, not how they move together."""

_DAMPING = 1e-2


@dataclass(frozen=True)
class CodedWeight:
    """w_codes [out_features, in_features] int8, w_scale [out_features, groups] bf16; metrics and notes as in
    QuantizedLinear."""

    w_codes: Tensor
    w_scale: Tensor
    metrics: dict[str, float]
    notes: tuple[str, ...]


def quantize_weight(
    weight: Tensor, fit: Tensor | None, judge: Tensor | None, recipe: Recipe
) -> CodedWeight:
    """Code weight [out_features, in_features] f32 for inputs like fit [tokens, in_features]; judged on `judge`."""
    weight_format, notes = scheme_of(recipe.precision).weight, []
    if weight_format == "nf4":
        w_codes, w_scale = quantize_nf4(weight)
    else:
        codec = IntegerCodec(recipe.group_size, recipe.weight_range)
        energy = None if fit is None else fit.square().mean(0).clamp_min(1e-12)
        w_codes, w_scale = round_to_nearest(weight, codec, recipe.clip, energy)
        if recipe.gptq and fit is not None and fit.shape[0] < FEWEST_TOKENS:
            notes.append(
                f"{fit.shape[0]} tokens are too few for error feedback; rounded to nearest"
            )
        elif recipe.gptq and fit is not None:
            w_codes, w_scale = _with_feedback(weight, fit, codec, recipe)
    w_scale = w_scale.to(torch.bfloat16)
    metrics = _measure(weight, judge, w_codes, w_scale, weight_format)
    return CodedWeight(w_codes, w_scale, metrics, tuple(notes))


def _with_feedback(
    weight: Tensor, fit: Tensor, codec: IntegerCodec, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """GPTQ, then sweeps of coordinate descent over codes and scales."""
    gram = fit.T @ fit / fit.shape[0]
    hessian = torch.lerp(gram, torch.diag(gram.diagonal()), shrinkage(gram, fit.shape[0]))
    hessian.diagonal().add_(_DAMPING * float(hessian.diagonal().mean()) + 1e-30)
    w_codes, w_scale = quantize_with_feedback(
        weight, factor(hessian, codec.group_size), codec, recipe.clip
    )
    for _ in range(min(recipe.refine_iterations, 1)):
        pull = (weight - dequantize_weight(w_codes, w_scale)) @ hessian
        w_codes, w_scale = sweep(pull, hessian, w_codes, w_scale, codec)
    return w_codes, w_scale


def _measure(
    weight: Tensor, judge: Tensor | None, w_codes: Tensor, w_scale: Tensor, weight_format: str
) -> dict[str, float]:
    missing = weight - decode_weight(w_codes, w_scale, weight_format)
    metrics = {"weight_error": float(missing.norm() / weight.norm().clamp_min(1e-30))}
    if judge is not None:
        wanted = (judge @ weight.T).norm().clamp_min(1e-30)
        error = float((judge @ missing.T).norm() / wanted)
        metrics.update(error=error, sqnr_db=-20.0 * math.log10(max(error, 1e-30)))
    return metrics
