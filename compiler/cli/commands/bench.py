"""svdqc bench"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from svdqc.compiler.cli.artifact_options import artifact_options, inputs_option
from svdqc.compiler.cli.output import output_options, print_facts, print_json, print_table

if TYPE_CHECKING:
    from svdqc.runtime import LaunchProfile

HELP = """Measure ARTIFACT: latency percentiles, and the time of each kernel.

On a GPU the inputs are there already, and the outputs stay there.

With --vs-model the original model runs in PyTorch in turn with the artifact, in the same process, on the same inputs
and as many threads; the ratio of the medians is what to quote.

\b
  svdqc bench flux.svdq --inputs step0.safetensors
  svdqc bench emoji.svdq --vs-model examples/emoji/model/transformer --runs 50
"""


@click.command("bench", help=HELP)
@artifact_options
@inputs_option(made_up=True)
@click.option("--runs", "-n", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--warmup", type=click.IntRange(min=0), default=3, show_default=True)
@click.option("--vs-model", metavar="MODEL", help="The original, to run in PyTorch in turn.")
@click.option("--launches", is_flag=True, help="The time of each launch, not of each kernel.")
@output_options
def command(
    artifact: Path,
    threads: int,
    device: str,
    trust: bool,
    inputs_file: Path | None,
    runs: int,
    warmup: int,
    vs_model: str | None,
    launches: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    import svdqc
    from svdqc.compiler.cli.artifact_inputs import artifact_inputs, on_device, shapes_text

    model = svdqc.load(artifact, device=device, threads=threads, trust=trust)
    inputs = artifact_inputs(model, inputs_file)
    given = on_device(inputs, model.device)
    contestants: dict[str, Callable[[], Any]] = {"svdqc": lambda: model(**given)}
    if vs_model is not None:
        contestants["PyTorch"] = _eager_call(vs_model, inputs, threads)
    latencies = _measure(contestants, runs, warmup)

    result: dict[str, Any] = {
        "inputs": {name: list(array.shape) for name, array in inputs.items()},
        "runs": runs,
        "latency_ms": {name: _percentiles(values) for name, values in latencies.items()},
    }
    if vs_model is not None:
        medians = {name: float(np.median(values)) for name, values in latencies.items()}
        result["times_as_fast_as_pytorch"] = medians["PyTorch"] / medians["svdqc"]
    model.close()

    profiled = svdqc.load(artifact, device=device, threads=threads, trust=trust, profile=True)
    profiled(**given)
    profiled(**given)
    profile = profiled.profile()
    result["profile"] = _per_launch(profile) if launches else _per_kernel(profile)
    if as_json:
        print_json(result)
        return
    if quiet:
        return
    rows = [
        [name, *(f"{value:.2f}" for value in row.values())]
        for name, row in result["latency_ms"].items()
    ]
    print_table("latency, ms", ("", *_percentiles([0.0])), rows)
    facts = {"inputs": shapes_text(inputs), "runs": runs}
    if vs_model is not None:
        facts["svdqc, times as fast"] = f"{result['times_as_fast_as_pytorch']:.2f}"
    print_facts("", facts)
    records = result["profile"]
    title = f"time per {'launch' if launches else 'kernel'}, one call"
    if records:
        print_table(title, list(records[0]), [list(record.values()) for record in records])


def _eager_call(model: str, inputs: dict[str, Any], threads: int) -> Callable[[], Any]:
    from svdqc.compiler.driver.api import is_onnx, require_compiler

    require_compiler("bench")
    import torch

    from svdqc.compiler.driver.calibration_files import to_torch
    from svdqc.compiler.driver.eager import open_eager
    from svdqc.compiler.driver.tensor_files import nest

    if threads:
        torch.set_num_threads(threads)
    eager = open_eager(model)
    flat = {name: to_torch(array) for name, array in inputs.items()}
    arguments = flat if is_onnx(model) else nest(flat)
    return lambda: eager(**arguments)


def _measure(
    contestants: dict[str, Callable[[], Any]], runs: int, warmup: int
) -> dict[str, list[float]]:
    """Milliseconds of each run; contestants take turns, so that a disturbance meets all of them."""
    for _ in range(warmup):
        for call in contestants.values():
            call()
    latencies: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(runs):
        for name, call in contestants.items():
            began = time.perf_counter()
            call()
            latencies[name].append(1e3 * (time.perf_counter() - began))
    return latencies


def _percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    marks = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    return {name: float(np.percentile(milliseconds, mark)) for name, mark in marks.items()}


def _per_kernel(profile: Sequence[LaunchProfile]) -> list[dict[str, Any]]:
    total = sum(launch.microseconds for launch in profile) or 1.0
    times: dict[str, list[float]] = defaultdict(list)
    for launch in profile:
        times[launch.kernel].append(launch.microseconds)
    ranked = sorted(times.items(), key=lambda item: -sum(item[1]))
    return [
        {
            "kernel": kernel,
            "launches": len(values),
            "microseconds": round(sum(values), 1),
            "share": f"{sum(values) / total:.1%}",
        }
        for kernel, values in ranked
    ]


def _per_launch(profile: Sequence[LaunchProfile]) -> list[dict[str, Any]]:
    return [
        {
            "launch": index,
            "microseconds": round(launch.microseconds, 1),
            "kernel": launch.kernel,
            "where": launch.label,
        }
        for index, launch in enumerate(profile)
    ]
