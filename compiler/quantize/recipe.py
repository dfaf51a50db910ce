"""Recipe: everything a user may choose about quantization.

The defaults are the ones to publish numbers with; every other value exists for ablations, for targets that lack a
feature, or to trade time against error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from svdqc.compiler.quantize.budget import parse_budget
from svdqc.compiler.quantize.errors import InvalidRecipe
from svdqc.compiler.quantize.schemes import SCHEMES

Precision = Literal["int4", "nvfp4", "int8", "fp8", "w4a8", "w4a16", "nf4", "none", "auto"]

PRECISIONS = (*SCHEMES, "none", "auto")
MODULATIONS = ("w4a16", "keep")
ACTIVATION_RANGES = {
    "int4": ("auto", "symmetric", "signed8"),
    "nvfp4": ("auto", "six", "four_over_six", "best_of_three"),
}
WEIGHT_RANGES = ("symmetric", "signed8")
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Recipe:
    """How to quantize. Frozen and hashable, so it can be a cache key; invalid values raise `InvalidRecipe`.

    precision          format of weights and activations of the quantized layers (schemes.SCHEMES); "auto" is
                       the target's best: nvfp4 on Blackwell, w4a8 on Hopper, else int4; "none" leaves every layer
                       as it is
    modulation         layers with one row per image (adaLN): "w4a16" codes their weights alone, "keep" leaves them
    rank               width of the 16-bit low-rank branch; "auto" spends the bytes of rank 32 where they help most
    budget             of all weights together, "6.5MB" or a ratio of their 16-bit bytes such as 0.3: ranks, and which
                       layers stay in 16 bits (with precision "auto" also which take 8), are chosen to fit it
    group_size         input channels that share one scale (int4, w4a8, w4a16); nvfp4 always uses 16, nf4 64
    smoothing          search a per-channel scale that moves outliers from activations to weights
    gptq               error feedback while rounding weights (needs samples)
    rotate             block-Hadamard rotation of activations; "auto" keeps it where held-out error falls
    activation_range   int4: "signed8" maps the largest magnitude to code -8, "symmetric" to +-7; "auto" is
                       "signed8", or unsigned codes after GELU-like functions where they win.
                       nvfp4: "six", "four_over_six" or "best_of_three" (formats.E2M1_RANGES); "auto" is the last
    weight_range       the same for weights
    clip               search a weight range smaller than the largest magnitude
    shrink             aim the 4-bit weight at the activations as quantized (a Wiener filter), not as they were
    refine_iterations  alternations between low-rank branch and residual; 0 does one pass
    bias_correction    let the bias absorb the mean output error where held-out error falls
    seed               of the randomized decompositions and samplings
    keep, quantize     fnmatch patterns over layer names that override the rule for which layers are quantized
    """

    precision: str = "int4"
    rank: int | str = 32
    budget: str | float | None = None
    group_size: int = 64
    smoothing: bool = True
    gptq: bool = True
    rotate: bool | str = "auto"
    activation_range: str = "auto"
    weight_range: str = "signed8"
    clip: bool = True
    shrink: bool = True
    refine_iterations: int = 4
    bias_correction: bool = True
    seed: int = 0
    modulation: str = "w4a16"
    keep: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_choice("precision", self.precision, PRECISIONS)
        _require_choice("modulation", self.modulation, MODULATIONS)
        ranges = ACTIVATION_RANGES.get(self.precision, ("auto",))
        _require_choice("activation_range", self.activation_range, ranges)
        _require_choice("weight_range", self.weight_range, WEIGHT_RANGES)
        if self.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise _invalid("group_size", self.group_size, f"use one of {sizes}")
        if self.rank != "auto" and not _is_count(self.rank):
            raise _invalid("rank", self.rank, "use a whole number >= 0, or 'auto'")
        if self.budget is not None:
            parse_budget(self.budget)
        if not (isinstance(self.rotate, bool) or self.rotate == "auto"):
            raise _invalid("rotate", self.rotate, "use True, False or 'auto'")
        if not _is_count(self.refine_iterations):
            raise _invalid("refine_iterations", self.refine_iterations, "use a whole number >= 0")
        if not _is_count(self.seed):
            raise _invalid("seed", self.seed, "use a whole number >= 0")
        for field in ("smoothing", "gptq", "clip", "shrink", "bias_correction"):
            if not isinstance(getattr(self, field), bool):
                raise _invalid(field, getattr(self, field), "use True or False")
        for field in ("keep", "quantize"):
            patterns = getattr(self, field)
            if not isinstance(patterns, tuple) or not all(isinstance(p, str) for p in patterns):
                raise _invalid(
                    field, patterns, "use a tuple of name patterns, such as ('*.proj_out',)"
                )

    def rank_for(self, out_features: int, in_features: int) -> int:
        """The rank of one layer: never above its size, 0 where the precision has no branch; "auto" without a budget
        is 32."""
        if self.precision in SCHEMES and not SCHEMES[self.precision].branch:
            return 0
        rank = 32 if isinstance(self.rank, str) else self.rank
        return min(rank, out_features, in_features)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _invalid(field: str, value: object, remedy: str) -> InvalidRecipe:
    return InvalidRecipe("recipe", field, f"found {value!r}", remedy)


def _require_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _invalid(field, value, "use one of " + ", ".join(choices))
