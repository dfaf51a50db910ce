"""What each step of the method is worth on a layer's own samples, and what rank buys: figures 10 and 11 of SVDQuant.

Every variant is a recipe with features switched off, quantized and judged on tokens that it has not seen. "Low rank of
the error" (LoRC, arXiv 2303.08302) is composed here: a branch that mends a finished naive quantization.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svdqc.compiler.quantize.linear import LinearSamples, QuantizedLinear, quantize_linear
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.reference import dequantize_weight
from svdqc.compiler.quantize.schemes import num_bytes

TRADE_OFF_RANKS = (0, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class LayerData:
    """weight [out_features, in_features]; judge [tokens, in_features]; without samples the weight alone is used."""

    name: str
    weight: Tensor
    samples: LinearSamples | None
    judge: Tensor
    shift: float | None = None

    def quantize(self, recipe: Recipe) -> QuantizedLinear:
        return quantize_linear(
            self.weight, self.samples, recipe, nonnegative_after_shift=self.shift, name=self.name
        )

    def error(self, layer: QuantizedLinear) -> float:
        """Relative output error on `judge`."""
        wanted = self.judge @ self.weight.T
        return float((layer(self.judge) - wanted).norm() / wanted.norm().clamp_min(1e-30))


@dataclass(frozen=True)
class Variant:
    key: str
    title: str
    what: str


VARIANTS = (
    Variant("naive", "Naive", "4-bit codes, nearest rounding, nothing else"),
    Variant("smoothing", "Smoothing", "outliers moved from activations to weights"),
    Variant("svd", "Low rank only", "the weight's leading singular vectors in 16 bits"),
    Variant("lorc", "Low rank of the error", "a 16-bit branch that mends the naive codes (LoRC)"),
    Variant("svdquant", "SVDQuant", "smoothing, then low rank, refined in turn"),
    Variant("gptq", "SVDQuant + GPTQ", "rounding errors fed back (needs samples)"),
    Variant("ours", "svdqc", "the recipe of this page"),
)


def plain(recipe: Recipe) -> Recipe:
    """The recipe without anything that svdqc adds to number formats."""
    four_bit = recipe.precision == "int4"
    return replace(
        recipe,
        rank=0,
        budget=None,
        smoothing=False,
        gptq=False,
        rotate=False,
        activation_range="symmetric" if four_bit else "auto",
        weight_range="symmetric",
        clip=False,
        shrink=False,
        refine_iterations=0,
        bias_correction=False,
    )


def ablation(data: LayerData, recipe: Recipe) -> dict[str, float]:
    """Relative output error of each variant that applies, by its key."""
    rank = recipe.rank_for(*data.weight.shape)
    naive = plain(recipe)
    recipes = {
        "naive": naive,
        "smoothing": replace(naive, smoothing=True),
        "svd": replace(naive, rank=rank),
        "svdquant": replace(naive, smoothing=True, rank=rank, refine_iterations=4),
    }
    if data.samples is not None:
        recipes["gptq"] = replace(recipes["svdquant"], gptq=True)
    errors = {key: data.error(data.quantize(r)) for key, r in recipes.items()}
    errors["lorc"] = data.error(_mended(data, data.quantize(naive), rank))
    errors["ours"] = data.error(data.quantize(recipe))
    return {v.key: errors[v.key] for v in VARIANTS if v.key in errors}


def trade_off(
    data: LayerData, recipe: Recipe, ranks: Sequence[int] = TRADE_OFF_RANKS
) -> list[dict[str, Any]]:
    """For each rank that fits: error, bytes, the branch's share of the layer's multiply-adds, seconds to quantize."""
    out_features, in_features = data.weight.shape
    found = []
    for rank in ranks:
        if rank > min(out_features, in_features):
            continue
        began = time.perf_counter()
        layer = data.quantize(replace(recipe, rank=rank, budget=None))
        seconds = time.perf_counter() - began
        found.append(
            {
                "rank": rank,
                "error": data.error(layer),
                "num_bytes": num_bytes(
                    recipe.precision, out_features, in_features, rank, recipe.group_size
                ),
                "extra_work": rank * (out_features + in_features) / (out_features * in_features),
                "seconds": seconds,
            }
        )
    return found


def _mended(data: LayerData, naive: QuantizedLinear, rank: int) -> QuantizedLinear:
    """`naive` with the best branch of `rank` for W - Q(W)."""
    missing = data.weight - dequantize_weight(naive.w_codes, naive.w_scale)
    left, values, right = torch.svd_lowrank(missing, q=min(rank + 10, *missing.shape), niter=4)
    up, down = left[:, :rank], (right * values)[:, :rank].T
    return replace(
        naive, lora_up=up.to(torch.bfloat16), lora_down=down.contiguous().to(torch.bfloat16)
    )
