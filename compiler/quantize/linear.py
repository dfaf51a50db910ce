"""Quantize one linear: the search for smoothing and activation format, then the solution, then its measures.

    y = x @ weight.T  ~=  x_hat @ lora_down.T @ lora_up.T + Q(rotate?(x_hat)) @ (w_codes * w_scale).T + bias_delta
    x_hat = (x + shift) * inv_smooth

Linears that read the same input are stacked along out_features by the caller, so they share smoothing, activation
codes and down-projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from svdqc.compiler.quantize.codecs import decode_activation, encode_activation
from svdqc.compiler.quantize.errors import (
    IndivisibleGroup,
    InvalidRecipe,
    MalformedWeight,
    NonFiniteSamples,
    NonFiniteWeight,
    SamplesDoNotFit,
)
from svdqc.compiler.quantize.formats import NVFP4_GROUP, multiplier_parts, nvfp4_tensor_scale
from svdqc.compiler.quantize.hadamard import can_rotate, rotate_offline
from svdqc.compiler.quantize.problem import Problem, Smoothed, smoothed
from svdqc.compiler.quantize.ranges import UNCODED, ActivationFormat
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.reference import (
    linear_s4,
    linear_w,
    multiplied_codes,
    quantize_activation,
)
from svdqc.compiler.quantize.schemes import scheme_of
from svdqc.compiler.quantize.smoothing import balanced, channel_rms
from svdqc.compiler.quantize.solve import Solution, draft, solve, weight_error
from svdqc.compiler.quantize.weight_only import quantize_weight

Progress = Callable[[str], None]

FEWEST_TOKENS = 128
"""Below this many fitted tokens a covariance says too little for error feedback."""

_CLEAR_GAIN = 0.88
"""Refined without feedback, a layer ends at about this share of its draft's error; above it both ways are compared."""

_MEAN_SHARE = 0.02
_JUDGE_TOKENS = 512
_SMOOTHING_ROUNDS = 6
_UNSAMPLED_ABSMAX = 64.0
_NVFP4_HEADROOM = 4.0


@dataclass(frozen=True)
class LinearSamples:
    """Calibration activations of one linear's input: [tokens, in_features] f32 each.

    `held_out` decides which choices are accepted; without it the last eighth of `fit` is set aside.
    """

    fit: Tensor
    held_out: Tensor | None = None


@dataclass(frozen=True)
class QuantizedLinear:
    """One linear in the canonical, row-major form that every target packs from.

    inv_smooth  [in_features]                               f32
    lora_down   [rank, in_features]                         bf16
    lora_up     [out_features, rank]                        bf16
    w_codes     [out_features, in_features]                 int8
    w_scale     [out_features, in_features / group_size]    bf16; of w4a8 f32, multiples of a bf16 value per row
    bias_delta  [out_features] f32, to be added to the bias; None is zero
    activation  how the input is coded; encoding "float": not at all
    precision   a key of schemes.SCHEMES: what w_codes and w_scale are
    metrics     weight_error: relative, of the weight with its branch; with samples also relative output errors on
    held-out
                tokens: error_unsmoothed (branch only, quick draft), error_smoothed (quick draft), error (final),
                sqnr_db
    notes       what was left out and why, in sentences
    """

    inv_smooth: Tensor
    lora_down: Tensor
    lora_up: Tensor
    w_codes: Tensor
    w_scale: Tensor
    activation: ActivationFormat
    bias_delta: Tensor | None
    metrics: dict[str, float]
    notes: tuple[str, ...] = ()
    precision: str = "int4"

    @property
    def weight_format(self) -> str:
        """ "s4", "s4m", "s8", "e2m1" (codes doubled), "e4m3" or "nf4" (indices of the quantiles)."""
        return scheme_of(self.precision).weight

    def as_bytes(self) -> tuple[Tensor, Tensor]:
        """Codes and scales as kernels multiply them: of "s4m" int8 under a scale per row, else as they are."""
        if self.weight_format != "s4m":
            return self.w_codes, self.w_scale
        multipliers, channel_scale = multiplier_parts(self.w_scale)
        return multiplied_codes(self.w_codes, multipliers), channel_scale

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's output by the exact reference: x [..., in_features] -> [..., out_features] f32."""
        total = self.bias_delta if bias is None else bias.to(torch.float32)
        if bias is not None and self.bias_delta is not None:
            total = bias.to(torch.float32) + self.bias_delta
        if self.activation.encoding == "float":
            return linear_w(x, self.w_codes, self.w_scale, total, self.weight_format)
        coded = quantize_activation(x, self.inv_smooth, self.lora_down, self.activation)
        return linear_s4(*coded, *self.as_bytes(), self.lora_up, total)


def quantize_linear(
    weight: Tensor,
    samples: LinearSamples | None,
    recipe: Recipe,
    *,
    nonnegative_after_shift: float | None = None,
    progress: Progress | None = None,
    name: str = "linear",
) -> QuantizedLinear:
    """Quantize weight [out_features, in_features] for activations like the samples.

    nonnegative_after_shift  a constant that makes every input >= 0 (0.171875 after GELU): allows unsigned codes
    progress                 called with the name of each stage
    name                     of the layer, for messages
    """
    if recipe.precision == "none":
        raise InvalidRecipe(
            "quantize_linear", name, "found precision 'none'", "leave the layer as it is instead"
        )
    weight = _checked_weight(weight, recipe, name)
    notes: list[str] = []
    out_features, in_features = weight.shape
    rank = recipe.rank_for(out_features, in_features)
    if isinstance(recipe.rank, int) and rank < recipe.rank:
        notes.append(f"rank {recipe.rank} is above the layer's size; {rank} used")
    fit, judge = _split_samples(samples, in_features, name)
    if scheme_of(recipe.precision).activation == "float":
        return _weight_only(weight, fit, judge, recipe, notes)
    with_gram = recipe.gptq and fit is not None and recipe.precision not in ("int8", "fp8")
    if with_gram and fit is not None and fit.shape[0] < FEWEST_TOKENS:
        notes.append(
            f"{fit.shape[0]} tokens are too few for error feedback (needs {FEWEST_TOKENS}); rounded to nearest"
        )
        with_gram = False
    report = progress or (lambda stage: None)

    report("smoothing")
    found: _Search | None = None
    for activation in _activation_formats(recipe, in_features, nonnegative_after_shift, fit):
        candidate = _search(weight, fit, judge, activation, rank, recipe)
        if found is None or candidate.drafted < found.drafted:
            found = candidate
    assert found is not None

    report("rounding")
    case = found.case
    if with_gram:
        case = replace(case, problem=case.problem.with_gram())
    solution = solve(case, rank, recipe)
    if with_gram and solution.error > _CLEAR_GAIN * found.drafted:
        plain = solve(found.case, rank, recipe)
        if plain.error < solution.error:
            solution = plain
            notes.append("error feedback did not lower the held-out error; rounded to nearest")
    return _finish(case, found, solution, notes, recipe.precision)


def _weight_only(
    weight: Tensor, fit: Tensor | None, judge: Tensor | None, recipe: Recipe, notes: list[str]
) -> QuantizedLinear:
    """Codes for the weight, none for the input; no branch."""
    coded = quantize_weight(weight, fit, judge, recipe)
    empty = torch.zeros(0, weight.shape[1], dtype=torch.bfloat16)
    return QuantizedLinear(
        torch.ones(weight.shape[1]),
        empty,
        torch.zeros(weight.shape[0], 0, dtype=torch.bfloat16),
        coded.w_codes,
        coded.w_scale,
        UNCODED,
        None,
        coded.metrics,
        (*notes, *coded.notes),
        recipe.precision,
    )


@dataclass(frozen=True)
class _Search:
    """The best smoothing of one activation format, with the errors of quick drafts without and with it."""

    case: Smoothed
    unsmoothed: float
    drafted: float


def _finish(
    case: Smoothed, found: _Search, solution: Solution, notes: list[str], precision: str
) -> QuantizedLinear:
    problem, activation = case.problem, case.activation
    result = QuantizedLinear(
        1.0 / case.smooth,
        solution.low_rank.lora_down.to(torch.bfloat16),
        solution.low_rank.lora_up.to(torch.bfloat16),
        solution.w_codes,
        solution.w_scale
        if scheme_of(precision).channel_bytes
        else solution.w_scale.to(torch.bfloat16),
        activation,
        _bias_delta(case, solution),
        {"weight_error": weight_error(case, solution)},
        tuple(notes),
        precision,
    )
    if problem.judge is not None and problem.judge_output is not None:
        shifted = activation.shift * problem.weight.sum(1)
        wanted = problem.judge_output - shifted
        error = float(
            (result(problem.judge - activation.shift) - wanted).norm()
            / wanted.norm().clamp_min(1e-30)
        )
        result.metrics.update(
            error_unsmoothed=found.unsmoothed,
            error_smoothed=found.drafted,
            error=error,
            sqnr_db=-20.0 * math.log10(max(error, 1e-30)),
        )
    return result


def _bias_delta(case: Smoothed, solution: Solution) -> Tensor | None:
    """What takes the shift back, and the mean output error where the input has a mean worth it."""
    problem, shift = case.problem, case.activation.shift
    bias_delta = None if shift == 0.0 else -shift * problem.weight.sum(1)
    if problem.mean is not None:
        missing = problem.weight * case.smooth - solution.low_rank.dense()
        mean_error = (problem.mean / case.smooth) @ missing.T - _coded_mean(
            case
        ) @ solution.residual().T
        bias_delta = mean_error if bias_delta is None else bias_delta + mean_error
    return bias_delta


def _coded_mean(case: Smoothed) -> Tensor:
    """Mean of the coded input over the fitted tokens [in_features]."""
    assert case.problem.fit is not None
    x_rot = case.problem.fit / case.smooth
    x_rot = rotate_offline(x_rot) if case.activation.rotate else x_rot
    return decode_activation(*encode_activation(x_rot, case.activation)).mean(0)


def _search(
    weight: Tensor,
    fit: Tensor | None,
    judge: Tensor | None,
    activation: ActivationFormat,
    rank: int,
    recipe: Recipe,
) -> _Search:
    """Iterate the smoothing formula; each round is judged by a draft with the low-rank branch inside."""
    problem = _problem(weight, fit, judge, activation, recipe)
    best = smoothed(problem, torch.ones(weight.shape[1]), activation)
    least = unsmoothed = draft(best, rank, recipe).error
    if not recipe.smoothing or problem.fit is None:
        return _Search(best, unsmoothed, least)
    activation_rms, weight_rms = channel_rms(problem.fit), channel_rms(weight)
    for round_number in range(_SMOOTHING_ROUNDS):
        case = smoothed(problem, balanced(activation_rms, weight_rms), activation)
        drafted = draft(case, rank, recipe)
        if drafted.error < least:
            best, least = case, drafted.error
        elif round_number > 0:
            break
        branch = drafted.low_rank.dense() / case.smooth
        weight_rms = channel_rms(weight - branch)
    return _Search(best, unsmoothed, least)


def _problem(
    weight: Tensor,
    fit: Tensor | None,
    judge: Tensor | None,
    activation: ActivationFormat,
    recipe: Recipe,
) -> Problem:
    if fit is None or judge is None:
        return Problem(weight)
    if activation.shift != 0.0:
        fit, judge = fit + activation.shift, judge + activation.shift
    share = fit.mean(0).square().sum() / fit.square().mean(0).sum().clamp_min(1e-30)
    centered = recipe.bias_correction and bool(share > _MEAN_SHARE)
    return Problem.of(weight, fit, judge, centered)


def _activation_formats(
    recipe: Recipe, in_features: int, shift: float | None, fit: Tensor | None
) -> list[ActivationFormat]:
    """The formats to try, the likeliest first.

    Without samples nothing says where outliers are, and the rotation is what is good against all of them.
    """
    if recipe.precision == "fp8":
        return [ActivationFormat(8, in_features, "absmax", encoding="e4m3")]
    if recipe.precision == "int8":
        return [ActivationFormat(8, in_features, "symmetric")]
    if recipe.precision == "w4a8":
        plain = [ActivationFormat(8, in_features, "symmetric")]
    elif recipe.precision == "nvfp4":
        largest = _UNSAMPLED_ABSMAX if fit is None else float(fit.abs().max())
        scale = nvfp4_tensor_scale(largest * _NVFP4_HEADROOM)
        name = "best_of_three" if recipe.activation_range == "auto" else recipe.activation_range
        plain = [ActivationFormat(4, NVFP4_GROUP, name, encoding="e2m1", tensor_scale=scale)]
    else:
        name = "signed8" if recipe.activation_range == "auto" else recipe.activation_range
        plain = [ActivationFormat(4, recipe.group_size, name)]
        if shift is not None and recipe.activation_range == "auto":
            plain.append(ActivationFormat(4, recipe.group_size, "unsigned", shift=shift))
    rotated = [
        replace(f, rotate=True) for f in plain if f.range != "unsigned" and can_rotate(in_features)
    ]
    if recipe.rotate == "auto":
        return rotated + plain if fit is not None or not rotated else rotated
    return rotated or plain if recipe.rotate else plain


def _split_samples(
    samples: LinearSamples | None, in_features: int, name: str
) -> tuple[Tensor | None, Tensor | None]:
    """(fit, judge), f32, checked; judging tokens are at most 512, evenly spaced."""
    if samples is None:
        return None, None
    for part in (samples.fit, samples.held_out):
        if part is None:
            continue
        if part.ndim != 2 or part.shape[1] != in_features or not part.is_floating_point():
            raise SamplesDoNotFit(
                "quantize_linear",
                name,
                f"found samples {list(part.shape)} {part.dtype}; required [tokens, {in_features}] in floating point",
                "record the samples with the model being compiled",
            )
        if not torch.isfinite(part).all():
            raise NonFiniteSamples(
                "quantize_linear",
                name,
                "found NaN or infinity in the samples",
                "check the inputs used for calibration",
            )
    fit = samples.fit.to(torch.float32)
    if fit.shape[0] == 0:
        return None, None
    if samples.held_out is None or samples.held_out.shape[0] == 0:
        if fit.shape[0] < 16:
            return fit, fit
        cut = fit.shape[0] - fit.shape[0] // 8
        fit, judge = fit[:cut], fit[cut:]
    else:
        judge = samples.held_out.to(torch.float32)
    stride = max(1, -(-judge.shape[0] // _JUDGE_TOKENS))
    return fit, judge[::stride]


def _checked_weight(weight: Tensor, recipe: Recipe, name: str) -> Tensor:
    if weight.ndim != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise MalformedWeight(
            "quantize_linear",
            name,
            f"found a weight {list(weight.shape)} {weight.dtype}; "
            "required [out_features, in_features] in floating point",
            "pass the linear's weight matrix",
        )
    multiple = scheme_of(recipe.precision).multiple(recipe.group_size)
    if weight.shape[1] % multiple:
        raise IndivisibleGroup(
            "quantize_linear",
            name,
            f"in_features={weight.shape[1]} is not divisible by group_size={multiple}",
            f"pad the layer or keep it with --keep {name!r}",
        )
    weight = weight.detach().to(torch.float32)
    if not torch.isfinite(weight).all():
        raise NonFiniteWeight(
            "quantize_linear",
            name,
            "found NaN or infinity in the weight",
            f"mend the checkpoint, or use --keep {name!r}",
        )
    return weight
