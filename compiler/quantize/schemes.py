"""The precisions a layer may have, one line each: how its weight and its activations are coded, and what that takes.

| precision | weight                                  | activations                          | branch |
|-----------|-----------------------------------------|--------------------------------------|--------|
| int4      | s4, bf16 scale per group                | s4 or u4, f32 scale per group        | yes    |
| nvfp4     | E2M1, E4M3 scale per 16, one power of 2 | E2M1, f32 scale per 16               | yes    |
| int8      | s8, bf16 scale per output channel       | s8, f32 scale per token              | yes    |
| fp8       | E4M3, bf16 scale per output channel     | E4M3, f32 scale per token            | yes    |
| w4a8      | s4, integer per group, bf16 per channel | s8, f32 scale per token              | yes    |
| w4a16     | s4, bf16 scale per group                | as they are                          | no     |
| nf4       | quantiles of QLoRA, bf16 absmax per 64  | as they are                          | no     |

w4a8's weight is channel scale x multiplier x code, and the last two make an int8 (formats.LARGEST_MULTIPLIER): one
exact integer sum over all of K, from 4 bits in memory.

A precision is added by a line of SCHEMES, its codec (codecs.weight_codec), its rewrite (passes/emit_quantized.py), and
for CPUs a line of codegen/cpu/blocks/coded.py or weight_only.py.
"""

from __future__ import annotations

from dataclasses import dataclass

WHOLE_ROW = 0
"""Group size of a scale per output channel."""


@dataclass(frozen=True)
class Scheme:
    """weight, activation: number formats ("float": not coded; "s4m": s4 times an integer of the group). A weight code
    takes `code_bits`, its group's scale `scale_bytes` and its output channel's, where there are both, `channel_bytes`;
    `group` channels share a scale (None: the recipe's group size). in_features must be a multiple of `alignment`
    (None: of the group). version: of the quantization that can say it (runtime/FORMAT.md)."""

    precision: str
    summary: str
    weight: str
    activation: str
    branch: bool
    code_bits: int
    scale_bytes: int
    group: int | None
    alignment: int | None = None
    channel_bytes: int = 0
    version: int = 1

    def group_size(self, in_features: int, recipe_group: int) -> int:
        """Input channels that share one weight scale."""
        if self.group is None:
            return recipe_group
        return in_features if self.group == WHOLE_ROW else self.group

    def multiple(self, recipe_group: int) -> int:
        """What in_features must be a multiple of."""
        if self.alignment is not None:
            return self.alignment
        return recipe_group if self.group is None else self.group


SCHEMES: dict[str, Scheme] = {
    scheme.precision: scheme
    for scheme in (
        Scheme("int4", "4-bit integers", "s4", "s4", True, 4, 2, None),
        Scheme("nvfp4", "4-bit floats", "e2m1", "e2m1", True, 4, 1, 16),
        Scheme("int8", "8-bit integers", "s8", "s8", True, 8, 2, WHOLE_ROW, alignment=16),
        Scheme("fp8", "8-bit floats", "e4m3", "e4m3", True, 8, 2, WHOLE_ROW, alignment=16),
        Scheme(
            "w4a8",
            "4-bit weights, 8-bit activations",
            "s4m",
            "s8",
            True,
            4,
            1,
            None,
            channel_bytes=2,
            version=2,
        ),
        Scheme("w4a16", "4-bit weights alone", "s4", "float", False, 4, 2, None),
        Scheme("nf4", "NF4 weights alone, the baseline", "nf4", "float", False, 4, 2, 64),
    )
}


def scheme_of(precision: str) -> Scheme:
    """The scheme of a precision other than "none" and "auto"."""
    return SCHEMES[precision]


def num_bytes(
    precision: str, out_features: int, in_features: int, rank: int, group_size: int = 64
) -> int:
    """Stored bytes of one quantized linear without its bias: codes, scales, smoothing and low-rank branch.

    `group_size` is the recipe's. "none" is the layer in 16 bits. Targets pad output channels to whole panels.
    """
    if precision == "none":
        return 2 * out_features * in_features
    scheme = scheme_of(precision)
    groups = in_features // scheme.group_size(in_features, group_size)
    codes = out_features * in_features * scheme.code_bits // 8
    scales = out_features * (groups * scheme.scale_bytes + scheme.channel_bytes)
    smoothing = 0 if scheme.activation == "float" else 4 * in_features
    branch = 2 * rank * (out_features + in_features) if scheme.branch else 0
    return codes + scales + smoothing + branch
