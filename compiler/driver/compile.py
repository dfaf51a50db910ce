"""The pipeline from a model to an artifact, as one readable sequence of stages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from svdqc.compiler.artifact.graph import dump_graph
from svdqc.compiler.artifact.write import write_artifact
from svdqc.compiler.driver.artifact_tensors import artifact_tensors
from svdqc.compiler.driver.calibrate import calibrate
from svdqc.compiler.driver.calibration_source import Recording, samples_of
from svdqc.compiler.driver.dump import Dump
from svdqc.compiler.driver.machine import find_gpus
from svdqc.compiler.driver.precisions import precisions_on, resolved
from svdqc.compiler.driver.probes import probe_inputs, watch
from svdqc.compiler.driver.progress import Progress, Stages
from svdqc.compiler.driver.report import compile_report
from svdqc.compiler.driver.support import check_supported
from svdqc.compiler.driver.tuning import Tuning
from svdqc.compiler.driver.variants import build_variants, lower_families
from svdqc.compiler.driver.work_folder import StoredResults, work_folder
from svdqc.compiler.ir.dialect import verify
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.allocate import allocate_recipes, decided, wants_allocation
from svdqc.compiler.passes.dialects import CANONICAL, CAPTURED
from svdqc.compiler.passes.linear_groups import linear_groups
from svdqc.compiler.passes.pipeline import CANONICALIZE, run_passes
from svdqc.compiler.passes.select_layers import (
    Decision,
    quantized_groups,
    recipes_of,
    select_layers,
)
from svdqc.compiler.passes.svdquant import svdquant
from svdqc.compiler.quantize.linear import LinearSamples
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import scheme_of
from svdqc.compiler.targets.select import parse_targets, toolchain_of
from svdqc.frontends import capture
from svdqc.frontends.spec import walk
from svdqc.runtime import trust
from svdqc.runtime.library import cpu_features

Samples = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class CompiledArtifact:
    """path, size, and the report: layers quantized and kept with reasons, regions, kernels, launches, bytes."""

    path: Path
    num_bytes: int
    report: dict[str, Any]


@dataclass(frozen=True)
class Canonical:
    """A captured model ready for quantization, and what was decided for each of its linears."""

    program: Program
    decisions: list[Decision]


def compile_model(
    model: Any,
    inputs: Mapping[str, Any] | None = None,
    *,
    output: str | os.PathLike[str],
    target: str = "native",
    recipe: Recipe | None = None,
    calibration: Samples | Recording | None = None,
    dynamic: str | Mapping[str, Any] | None = None,
    jobs: int = 0,
    progress: Progress | None = None,
    dump: Path | None = None,
    resume: bool = False,
    tuning: str | os.PathLike[str] | None = None,
    tuned_on: str | None = None,
) -> CompiledArtifact:
    """Compile a model to one file; the arguments are those of `svdqc.compile`."""
    say, dumped = Stages(progress), Dump(dump)
    targets = parse_targets(target, cpu_features(), capabilities)
    for one in targets:
        toolchain_of(one)  # is there, before any long work
    tuned = Tuning.open(tuning, tuned_on)
    for one in targets:
        tuned.chooser(one)  # is that of one machine
    asked = recipe or Recipe()
    names = ",".join(one.name for one in targets)
    recipe = resolved(asked, names)

    say("capture", 0, 1)
    canonical = capture_canonical(model, inputs, dynamic, recipe, dumped)
    program = canonical.program
    say("capture", 1, 1)

    with work_folder(output, resume) as work:
        groups = quantized_groups(canonical.decisions, linear_groups(program))
        samples: Mapping[str, LinearSamples] = {}
        watched = None
        if calibration is not None and groups:
            watched = watch(samples_of(calibration, work, partial(say, "record")), program)
            samples = calibrate(
                *(program, groups, watched, work, recipe.seed),
                progress=partial(say, "calibrate"),
                device=quantizing_device(),
            )
        recipes, decisions = recipes_of(groups, canonical.decisions, recipe), canonical.decisions
        allocation = None
        if groups and wants_allocation(recipe):
            probes = probe_inputs(program, inputs, watched)
            mixed = asked.precision == "auto" and "int8" in precisions_on(names)
            allocation = allocate_recipes(
                program, groups, samples, recipes, probes, mixed=mixed, progress=say, jobs=jobs
            )
            recipes, decisions = allocation.recipes, decided(decisions, groups, allocation)
        records = svdquant(
            program,
            groups,
            samples,
            recipes,
            partial(say, "quantize"),
            jobs,
            StoredResults(work),
            quantizing_device(),
        )

        verify(program, CANONICAL)
        dumped.after("svdquant", program)

        families = lower_families(program, targets, dumped, say, tuned)
        variants, planned = build_variants(families, targets, jobs, say, tuned)

        first = families[0]
        report = compile_report(first, decisions, records, recipe, allocation)
        tensors = artifact_tensors(first.program, planned, partial(say, "write"))
        written = write_artifact(
            output,
            name=program.name,
            producer=_producer(),
            tensors=tensors,
            variants=variants,
            graph=dump_graph(first.program),
            quantization={
                "precision": recipe.precision,
                "rank": recipe.rank,
                "group_size": recipe.group_size,
                "layers": records,
            },
            source_digest=_source_digest(program),
            meta={
                "report": {k: v for k, v in report.items() if k != "layers"},
                "constants": _compiled_in(inputs),
            },
            quantization_version=max(
                (scheme_of(r["precision"]).version for r in records), default=1
            ),
        )
    if tuning is not None:
        report["tuning"] = tuned.report(targets)
    say("write", len(tensors), max(len(tensors), 1))
    trust.register(*written.trust_digests)
    return CompiledArtifact(written.path, written.num_bytes, report)


def capture_canonical(
    model: Any, inputs: Any, dynamic: Any, recipe: Recipe, dump: Dump | None = None
) -> Canonical:
    """Capture, canonicalize, refuse what no kernel can do, and decide what to quantize."""
    dump = dump or Dump(None)
    program = capture(model, inputs, dynamic=dynamic)
    verify(program, CAPTURED)
    dump.after("capture", program)
    run_passes(program, CANONICALIZE, dump.after)
    check_supported(program)
    verify(program, CANONICAL)
    return Canonical(program, select_layers(program, recipe))


def capabilities() -> list[tuple[int, int]]:
    """The compute capabilities of this machine's GPUs."""
    return [gpu.compute_capability for gpu in find_gpus()]


def quantizing_device() -> str:
    """Where layers are quantized and samples run: a GPU that torch can use, else the processor."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _compiled_in(inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Python values among the inputs: the graph is specialised to them, and a caller may repeat them."""
    scalars = (bool, int, float, str)
    return {name: value for name, value in walk(inputs or {}) if isinstance(value, scalars)}


def _source_digest(program: Program) -> str:
    """Of the graph and the names and shapes of its weights."""
    digest = hashlib.sha256(dump_graph(program))
    return digest.hexdigest()


def _producer() -> str:
    from svdqc import __version__

    return f"svdqc {__version__}"
