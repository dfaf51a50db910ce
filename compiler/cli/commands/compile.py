"""svdqc compile"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from svdqc.compiler.cli.compile_options import (
    load_inputs,
    make_recipe,
    recipe_options,
    target_text,
)
from svdqc.compiler.cli.output import megabytes, output_options, print_json

HELP = """Compile MODEL to one .svdq file.

MODEL is an .onnx or .pt2 file, a diffusers folder (config.json beside its weights), or package.module:factory, a
function that returns an nn.Module or a pair of one and its example inputs.

\b
  svdqc compile model.onnx -o model.svdq
  svdqc compile flux/transformer -o flux.svdq --calibration samples/
  svdqc compile flux -o flux.svdq --calibration prompts.txt --steps 20
  svdqc compile model.pt2 -o model.svdq --target cpu:avx512vnni,cpu:avx2 --dynamic "batch=1:4"
  svdqc compile my_models:unet -o unet.svdq --inputs example.npz --keep '*.time_embedding.*'

The file appears whole or not at all. `svdqc inspect MODEL` tells in advance what will happen.
"""


@click.command("compile", help=HELP, short_help="Compile a model to one .svdq file.")
@click.argument("model")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), metavar="FILE")
@recipe_options
@click.option(
    "--calibration",
    metavar="FILE|FOLDER|none",
    default="none",
    show_default=True,
    help="Samples: a .npz or .safetensors file with the inputs of one call, or a folder of them; a .txt (a line each) "
    "or .yaml file of prompts; package.module:function that yields input dicts.",
)
@click.option(
    "--pipeline",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="The diffusers pipeline that draws the prompts; a MODEL inside of one needs it not.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps of each drawing.")
@click.option(
    "--samples",
    "num_samples",
    type=click.IntRange(min=0),
    help="How many steps are recorded, evenly over prompts and steps: 128, or 0 for all.",
)
@click.option(
    "--jobs", "-j", type=click.IntRange(min=0), default=0, help="Parallel work; 0: one per core."
)
@click.option(
    "--dump",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the graph after each pass, the fused regions and the generated code.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from what an interrupted compilation of the same file has finished.",
)
@click.option(
    "--tuning",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use what `svdqc tune` has measured on this machine.",
)
@click.option(
    "--tuned-on",
    metavar="TEXT",
    help="Build for the machine of the tuning file whose description has this text in it, such as H100.",
)
@output_options
def command(
    model: str,
    output: Path,
    targets: tuple[str, ...],
    precision: str,
    modulation: str,
    budget: str | None,
    rank: int | str,
    keep: tuple[str, ...],
    quantize: tuple[str, ...],
    dynamic: str | None,
    inputs_file: Path | None,
    calibration: str,
    pipeline: Path | None,
    steps: int | None,
    num_samples: int | None,
    jobs: int,
    dump: Path | None,
    resume: bool,
    tuning: Path | None,
    tuned_on: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    import svdqc
    from svdqc.compiler.cli.progress_bar import progress_display

    if tuned_on is not None and tuning is None:
        raise click.UsageError("--tuned-on names a machine of a --tuning file: give that, too")
    recipe = make_recipe(precision, rank, keep, quantize, modulation, budget)
    began = time.perf_counter()
    with _told_of_finished_work(output), progress_display(quiet or as_json) as progress:
        artifact = svdqc.compile(
            model,
            load_inputs(inputs_file, model),
            output=output,
            target=target_text(targets),
            recipe=recipe,
            calibration=None if calibration == "none" else calibration,
            dynamic=dynamic,
            jobs=jobs,
            progress=progress,
            dump=dump,
            resume=resume,
            pipeline=pipeline,
            steps=steps,
            num_samples=num_samples,
            tuning=tuning,
            tuned_on=tuned_on,
        )
    seconds = time.perf_counter() - began
    if as_json:
        print_json(_summary(artifact, seconds))
    elif not quiet:
        print(f"wrote {artifact.path}: {megabytes(artifact.num_bytes)} in {seconds:.1f} s")
        for told in artifact.report.get("tuning", ()):
            print(_tuning(told, tuning))


@contextmanager
def _told_of_finished_work(output: Path) -> Iterator[None]:
    """Says, when the compilation stops early, that it can be continued."""
    from svdqc.compiler.driver.work_path import WorkFolderBusy, work_path

    try:
        yield
    except WorkFolderBusy:
        raise
    except BaseException:
        work = work_path(output)
        if work.is_dir():
            told = f"finished work is kept in {work}; the same command with --resume goes on from there"
            print(f"svdqc: {told}", file=sys.stderr)
        raise


def _tuning(told: dict[str, Any], path: Path | None) -> str:
    """How many kernels of a target had a record, and why none had."""
    target = told["target"]
    if "machine" not in told:
        return (
            f"{target}: no kernel is tuned: {path} has records of {told['known']}, not of this machine; "
            "run `svdqc tune` here, or name one with --tuned-on"
        )
    counts = f"{told['tuned']} of {told['kernels']} kernels tuned, {told['changed']} changed"
    return f"{target}: {counts}, for {told['machine']}"


def _summary(artifact: Any, seconds: float) -> dict[str, Any]:
    return {
        "path": str(artifact.path),
        "num_bytes": artifact.num_bytes,
        "seconds": round(seconds, 3),
        "report": artifact.report,
    }
