"""linear(x, W) → its quantized form with codes that mean nothing: for kernels and plans, which depend on shapes only.

No weight is read and nothing is solved, so FLUX.1's kernels at full size are a matter of seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import Rewriter
from svdqc.compiler.passes.emit_quantized import emit
from svdqc.compiler.passes.linear_groups import LinearGroup
from svdqc.compiler.passes.merge_linears import replace_by_slices
from svdqc.compiler.quantize.linear import QuantizedLinear, quantize_linear
from svdqc.compiler.quantize.recipe import Recipe

SMALL = (64, 256)
"""[out_features, in_features] of the layer that is really quantized, to see what a recipe's layers consist of."""


def blank_quantized(
    program: Program, groups: Sequence[LinearGroup], recipes: Mapping[str, Recipe]
) -> None:
    """Rewrite each group as `svdquant` would, in place; a group whose precision is "none" stays as it is."""
    blank, rw = _Blank(), Rewriter(program)
    for group in groups:
        recipe = recipes[group.name]
        if recipe.precision == "none":
            continue
        widths = [int(n.meta["val"].shape[-1]) for n in group.linears]
        shape = (sum(widths), int(group.x.meta["val"].shape[-1]))
        with rw.before(group.linears[0]):
            layer = blank.layer(recipe, shape)
            emitted = emit(rw, group.name, group.x, layer, torch.zeros(shape[0]))
            replace_by_slices(rw, group, emitted)
    rw.finish()


class _Blank:
    """Quantized layers of any shape: a small layer's fields, spread without memory."""

    def __init__(self) -> None:
        self._made: dict[tuple[Recipe, tuple[int, int]], QuantizedLinear] = {}

    def layer(self, recipe: Recipe, shape: tuple[int, int]) -> QuantizedLinear:
        if (recipe, shape) not in self._made:
            self._made[recipe, shape] = _spread(recipe, shape)
        return self._made[recipe, shape]


def _spread(recipe: Recipe, shape: tuple[int, int]) -> QuantizedLinear:
    small = quantize_linear(torch.ones(SMALL), None, recipe)
    n, k = shape
    rank = recipe.rank_for(n, k)
    per_group = SMALL[1] // small.w_scale.shape[1] if small.w_scale.shape[1] > 1 else k
    sizes = {
        "inv_smooth": (k,),
        "lora_down": (min(rank, small.lora_down.shape[0]), k),
        "lora_up": (n, min(rank, small.lora_up.shape[1])),
        "w_codes": (n, k),
        "w_scale": (n, k // per_group),
    }
    fields: dict[str, Any] = {
        name: _zeros(getattr(small, name), size)
        for name, size in sizes.items()
        if getattr(small, name) is not None
    }
    activation = small.activation
    if activation.group_size == SMALL[1]:  # a scale a row
        activation = replace(activation, group_size=k)
    return replace(small, **fields, activation=activation, bias_delta=None)


def _zeros(like: Tensor, size: tuple[int, ...]) -> Tensor:
    return torch.zeros(1, dtype=like.dtype).expand(size)
