"""The study behind `svdqc report MODEL`: quantize as a compilation would, and measure what each part was worth.

All layers are quantized where the model is small; of a larger one only the layers shown in detail are, the others are
drafted. In detail are shown the layers that cost the model most: by error times sensitivity where that is known, by
error alone otherwise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdqc.compiler.driver.calibrate import as_inputs, calibrate
from svdqc.compiler.driver.calibration_source import samples_of
from svdqc.compiler.driver.compile import capture_canonical
from svdqc.compiler.driver.precisions import resolved
from svdqc.compiler.driver.probes import probe_inputs, watch
from svdqc.compiler.driver.progress import Progress, Stages
from svdqc.compiler.driver.report import allocation_report
from svdqc.compiler.driver.report_ablation import VARIANTS, LayerData, ablation, trade_off
from svdqc.compiler.driver.report_layers import channel_peaks, histograms, spectra
from svdqc.compiler.driver.report_pictures import (
    Picture,
    PictureMaker,
    draw_pictures,
    picture_maker,
    program_model,
    side_by_side,
)
from svdqc.compiler.driver.work_folder import WorkFolder, work_folder
from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import aten, is_call
from svdqc.compiler.passes.allocate import Allocation, allocate_recipes, wants_allocation
from svdqc.compiler.passes.linear_groups import LinearGroup, linear_groups, weight_node
from svdqc.compiler.passes.select_layers import Decision, quantized_groups, recipes_of
from svdqc.compiler.passes.svdquant import GELU_SHIFT, load_group, svdquant
from svdqc.compiler.quantize.budget_curves import draft_error
from svdqc.compiler.quantize.linear import LinearSamples
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import num_bytes, scheme_of
from svdqc.errors import SvdqcError
from svdqc.frontends import default_inputs

SMALL_MODEL = 2 * 10**8
"""Values in the quantized weights up to which every layer is quantized whole and the model is run end to end."""
FORMAT = "svdqc-report-1"
_MOST_TOKENS = 512

Say = Callable[..., None]


@dataclass
class Study:
    """What is being reported on. By group name: `judge` held-out inputs [tokens, in_features], `shapes` of weights."""

    program: Program
    groups: list[LinearGroup]
    decisions: list[Decision]
    recipes: dict[str, Recipe]
    samples: Mapping[str, LinearSamples]
    judge: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, int]]
    allocation: Allocation | None


def report_model(
    model: Any,
    inputs: Mapping[str, Any] | None = None,
    *,
    recipe: Recipe | None = None,
    calibration: Any = None,
    dynamic: Any = None,
    target: str = "cpu",
    num_details: int = 6,
    pictures: Any = None,
    prompts: Sequence[str] = (),
    steps: int | None = None,
    jobs: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Everything the page shows, as plain data for JSON.

    num_details  layers that are shown with curves and ablation
    pictures     a picture maker, or what names one (report_pictures.py); prompts and steps are for pipeline folders
    """
    say = Stages(progress)
    maker = None if pictures is None else picture_maker(pictures, prompts, steps)
    asked = recipe or Recipe()
    recipe = resolved(asked, target)
    say("capture", 0, 1)
    canonical = capture_canonical(model, inputs, dynamic, recipe)
    say("capture", 1, 1)
    with (
        tempfile.TemporaryDirectory() as folder,
        work_folder(Path(folder) / "report", False) as work,
    ):
        calibrated = calibration is not None
        given = calibration if calibration is not None else _example(model, inputs, dynamic)
        study, probes = _prepared(
            *(canonical.program, canonical.decisions, asked, recipe, given),
            *(calibrated, inputs, work, say, jobs),
        )
        small = sum(n * k for n, k in study.shapes.values()) <= SMALL_MODEL
        before = _outputs(study.program, probes) if small else []
        drawn = _drawn(maker, study.program, pictures, say, "draw in 16 bits")
        small = small or maker is not None
        weights = {g.name: _weight_loader(study.program, g) for g in study.groups}
        shifts = {g.name: _shift(g) for g in study.groups}
        quantized = _quantized(study, small, say, jobs)
        layers = [_layer_row(study, g, quantized[g.name]) for g in study.groups]
        shown = _worst(layers, num_details)
        details = []
        for done, name in enumerate(shown):
            say("study", done, len(shown), name)
            data = _data(study, name, weights[name], shifts[name])
            details.append(_detail(data, study.recipes[name]))
        say("study", len(shown), max(len(shown), 1))
        after = _outputs(study.program, probes) if before else []
        redrawn = _drawn(maker, study.program, pictures, say, "draw quantized")
    return {
        "format": FORMAT,
        "subject": "model",
        "name": study.program.name,
        "origin": study.program.origin,
        "calibrated": calibrated,
        "judged_on": _judged_on(calibrated, inputs),
        "precision": recipe.precision,
        "rank": recipe.rank,
        "totals": _totals(study, layers),
        "output_error": _output_error(before, after),
        "layers": layers,
        "kept": {d.layer: d.reason for d in study.decisions if not d.quantized},
        "allocation": None if study.allocation is None else allocation_report(study.allocation),
        "details": details,
        "ablation": mean_ablation(details),
        "trade_off": mean_trade_off(details),
        "pictures": side_by_side(drawn, redrawn),
    }


def _drawn(
    maker: PictureMaker | None, program: Program, source: Any, say: Say, stage: str
) -> list[Picture]:
    if maker is None:
        return []
    say(stage, 0, 1)
    drawn = draw_pictures(maker, program_model(program), source)
    say(stage, 1, 1)
    return drawn


def mean_ablation(details: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record per variant that every detailed layer has: the root mean square of its errors."""
    found = []
    for variant in VARIANTS:
        errors = [d["ablation"][variant.key] for d in details if variant.key in d["ablation"]]
        if errors and len(errors) == len(details):
            mean = (sum(e * e for e in errors) / len(errors)) ** 0.5
            found.append(
                {"key": variant.key, "title": variant.title, "what": variant.what}
                | {"error": mean, "errors": errors}
            )
    return found


def mean_trade_off(details: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By rank, over the layers that have them all: root mean square error, summed bytes and seconds, mean work."""
    ranks = [{r["rank"] for r in d["trade_off"]} for d in details]
    found = []
    for rank in sorted(set.intersection(*ranks)) if ranks else []:
        records = [r for d in details for r in d["trade_off"] if r["rank"] == rank]
        found.append(
            {
                "rank": rank,
                "error": (sum(r["error"] ** 2 for r in records) / len(records)) ** 0.5,
                "num_bytes": sum(r["num_bytes"] for r in records),
                "extra_work": sum(r["extra_work"] for r in records) / len(records),
                "seconds": sum(r["seconds"] for r in records),
            }
        )
    return found


def _prepared(
    program: Program,
    decisions: list[Decision],
    asked: Recipe,
    recipe: Recipe,
    given: Any,
    calibrated: bool,
    example: Mapping[str, Any] | None,
    work: WorkFolder,
    say: Say,
    jobs: int,
) -> tuple[Study, list[dict[str, Tensor]]]:
    groups = quantized_groups(decisions, linear_groups(program))
    watched = watch(samples_of(given, work, partial(say, "record")), program)
    tokens: Mapping[str, LinearSamples] = {}
    if groups:
        tokens = calibrate(
            *(program, groups, watched, work, recipe.seed), progress=partial(say, "calibrate")
        )
    recipes: dict[str, Recipe] = recipes_of(groups, decisions, recipe)
    samples = tokens if calibrated else {}
    probes = probe_inputs(program, example, watched if calibrated else None)
    allocation = None
    if groups and wants_allocation(recipe):
        allocation = allocate_recipes(
            *(program, groups, samples, recipes, probes),
            mixed=asked.precision == "auto",
            progress=say,
            jobs=jobs,
        )
        recipes = allocation.recipes
    judge = {g.name: _held_out(tokens[g.name]) for g in groups}
    shapes = {g.name: _shape(g) for g in groups}
    study = Study(program, groups, decisions, recipes, samples, judge, shapes, allocation)
    return study, [as_inputs(program, sample, i) for i, sample in enumerate(watched.kept())]


def _example(model: Any, inputs: Mapping[str, Any] | None, dynamic: Any) -> list[Mapping[str, Any]]:
    if inputs:
        return [inputs]
    try:
        return [default_inputs(model, dynamic=dynamic)]
    except SvdqcError as error:
        raise NothingToJudgeOn(
            "report", str(model), "no inputs to run it on", "give --inputs or --calibration"
        ) from error


class NothingToJudgeOn(SvdqcError):
    """A report needs inputs of the model, to measure output errors on."""


def _judged_on(calibrated: bool, inputs: Any) -> str:
    if calibrated:
        return "held-out calibration samples"
    return "the example inputs" if inputs else "made-up inputs"


def _quantized(study: Study, small: bool, say: Say, jobs: int) -> dict[str, dict[str, Any]]:
    """A record per group, of the finished quantization or of a draft."""
    if small:
        records = svdquant(
            *(study.program, study.groups, study.samples, study.recipes),
            partial(say, "quantize"),
            jobs,
        )
        return {record["layers"][0]: record for record in records}
    found: dict[str, dict[str, Any]] = {}
    for done, group in enumerate(study.groups):
        say("draft", done, len(study.groups), group.name)
        recipe, weight = study.recipes[group.name], load_group(study.program, group)
        error = draft_error(
            *(weight, study.samples.get(group.name), recipe),
            recipe.rank_for(*weight.shape),
            study.judge[group.name],
            group.name,
        )
        found[group.name] = {"metrics": {"error": error}, "notes": ["drafted"]}
    say("draft", len(study.groups), max(len(study.groups), 1))
    return found


def _layer_row(study: Study, group: LinearGroup, record: dict[str, Any]) -> dict[str, Any]:
    """One line of the table of all layers."""
    recipe = study.recipes[group.name]
    out_features, in_features = study.shapes[group.name]
    rank = 0 if recipe.precision == "none" else recipe.rank_for(out_features, in_features)
    chosen = {} if study.allocation is None else study.allocation.layers.get(group.name, {})
    return {
        "name": group.name,
        "layers": list(group.names),
        "shape": [out_features, in_features],
        "precision": recipe.precision,
        "rank": rank,
        "num_bytes": num_bytes(
            recipe.precision, out_features, in_features, rank, recipe.group_size
        ),
        "num_bytes_bf16": 2 * out_features * in_features,
        "range": record.get("range", ""),
        "rotated": record.get("rotated", False),
        "error": record.get("metrics", {}).get("error"),
        "weight_error": record.get("metrics", {}).get("weight_error"),
        "sensitivity": chosen.get("sensitivity"),
        "notes": record.get("notes", []),
    }


def _worst(layers: list[dict[str, Any]], count: int) -> list[str]:
    """The layers that cost most, in the order of the model."""

    def cost(layer: dict[str, Any]) -> float:
        error = layer["error"] if layer["error"] is not None else layer["weight_error"] or 0.0
        weight = 1.0 if layer["sensitivity"] is None else layer["sensitivity"]
        return float(weight * error * error)

    codable = [
        row for row in layers if row["precision"] != "none" and scheme_of(row["precision"]).branch
    ]
    chosen = {row["name"] for row in sorted(codable, key=cost, reverse=True)[:count]}
    return [row["name"] for row in layers if row["name"] in chosen]


def _data(study: Study, name: str, load: Callable[[], Tensor], shift: float | None) -> LayerData:
    return LayerData(name, load(), study.samples.get(name), study.judge[name], shift)


def _detail(data: LayerData, recipe: Recipe) -> dict[str, Any]:
    layer = data.quantize(recipe)
    return {
        "name": data.name,
        "shape": list(data.weight.shape),
        "rank": int(layer.lora_down.shape[0]),
        "precision": recipe.precision,
        "range": layer.activation.range,
        "rotated": layer.activation.rotate,
        "error": data.error(layer),
        "spectra": spectra(data.weight, layer),
        "histograms": histograms(data.weight, data.judge, layer),
        "channels": channel_peaks(data.judge, layer),
        "ablation": ablation(data, recipe),
        "trade_off": trade_off(data, recipe),
    }


def _weight_loader(program: Program, group: LinearGroup) -> Callable[[], Tensor]:
    """Reads the group's weights by name: the graph will have changed by then."""
    nodes = [weight_node(n) for n in group.linears]
    names = [str(n.meta["weight"]) for n in nodes if n is not None]
    return lambda: torch.cat([program.weights.load(name).float() for name in names])


def _shift(group: LinearGroup) -> float | None:
    return GELU_SHIFT if is_call(group.x, aten.gelu.default) else None


def _shape(group: LinearGroup) -> tuple[int, int]:
    found = [w.meta["val"].shape for n in group.linears if (w := weight_node(n)) is not None]
    return sum(int(s[0]) for s in found), int(found[0][1])


def _held_out(samples: LinearSamples) -> Tensor:
    tokens = samples.fit if samples.held_out is None else samples.held_out
    stride = max(1, -(-tokens.shape[0] // _MOST_TOKENS))
    return tokens[::stride].float()


def _outputs(program: Program, probes: list[dict[str, Tensor]]) -> list[list[Tensor]]:
    return [[o.float() for o in program.run(probe) if o.is_floating_point()] for probe in probes]


def _output_error(before: list[list[Tensor]], after: list[list[Tensor]]) -> float | None:
    """Relative, root mean square over samples and outputs; None where it was not measured."""
    shares = [
        float((b - a).square().sum() / a.square().sum().clamp_min(1e-30))
        for befores, afters in zip(before, after, strict=True)
        for a, b in zip(befores, afters, strict=True)
    ]
    return (sum(shares) / len(shares)) ** 0.5 if shares else None


def _totals(study: Study, layers: list[dict[str, Any]]) -> dict[str, Any]:
    in_16_bits = sum(row["num_bytes_bf16"] for row in layers)
    coded = sum(row["num_bytes"] for row in layers)
    return {
        "num_layers": sum(len(row["layers"]) for row in layers),
        "num_kept": sum(not d.quantized for d in study.decisions),
        "bytes_quantized": coded,
        "bytes_16_bit": in_16_bits,
        "branch_bytes": sum(2 * row["rank"] * sum(row["shape"]) for row in layers),
    }
