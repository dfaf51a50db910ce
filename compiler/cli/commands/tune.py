"""svdqc tune"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svdqc.compiler.cli.compile_options import (
    load_inputs,
    make_recipe,
    recipe_options,
    target_text,
)
from svdqc.compiler.cli.output import output_options, print_json, print_table

if TYPE_CHECKING:
    from svdqc.compiler.driver.tune import TuneReport

EXIT_INTERRUPTED = 130

HELP = """Measure MODEL's kernels on this machine, and write down which variant of each is the fastest.

A compiled model works at once: how many rows and columns a task computes, and on GPUs which tile, is chosen by an
analytic model. Here the candidates are built and run, in turn with that choice, with cold caches, each in a process of
its own; what was fastest is appended to FILE. Takes the options of `svdqc compile` that decide shapes: tune with the
ones you compile with. No weight is read and nothing is quantized.

\b
  svdqc tune flux/transformer -o flux.tune --budget-seconds 600
  svdqc compile flux/transformer -o flux.svdq --tuning flux.tune
  svdqc inspect flux.svdq                          how many kernels are tuned, and on which machine

A record holds for one kernel, processor or GPU, number of threads, driver, compiler and version of the templates. FILE
may collect those of many models and machines. What it has already is not measured again, so a tuning that was stopped
(Ctrl-C loses only the kernel being measured) goes on with the same command. Keep the machine idle meanwhile.
"""


@click.command("tune", help=HELP, short_help="Measure a model's kernels on this machine.")
@click.argument("model")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), metavar="FILE")
@recipe_options
@click.option(
    "--budget-seconds",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Stop after so long, with what there is; kernels that take longest come first.",
)
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many of each kernel, beside the analytic choice. Default: 12.",
)
@click.option("--device", default="", metavar="NAME", help="Which GPU measures, such as cuda:1.")
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    help="Of the CPU. 0, the default: as many as this process may use, as `compile --tuning` takes for granted; "
    "for another number give it --tuned-on '8 threads'.",
)
@click.option(
    "--jobs", "-j", type=click.IntRange(min=0), default=0, help="Parallel work; 0: one per core."
)
@click.option("--again", is_flag=True, help="Measure what FILE has already, too.")
@output_options
def command(
    model: str,
    output: Path,
    targets: tuple[str, ...],
    inputs_file: Path | None,
    dynamic: str | None,
    budget_seconds: float | None,
    candidates: int | None,
    device: str,
    threads: int,
    jobs: int,
    again: bool,
    as_json: bool,
    quiet: bool,
    **recipe: Any,
) -> int:
    import svdqc
    from svdqc.compiler.cli.progress_bar import progress_display

    try:
        with progress_display(quiet or as_json) as progress:
            report = svdqc.tune(
                model,
                load_inputs(inputs_file, model),
                output=output,
                target=target_text(targets),
                recipe=make_recipe(**recipe),
                dynamic=dynamic,
                budget_seconds=budget_seconds,
                candidates=candidates,
                device=device,
                threads=threads,
                jobs=jobs,
                again=again,
                progress=progress,
            )
    except KeyboardInterrupt:
        kept = (
            f"what was measured is kept in {output}" if output.exists() else "nothing was measured"
        )
        print(f"\nsvdqc: interrupted; {kept}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if as_json:
        print_json(_data(report))
    elif not quiet:
        _show(report)
    for note in report.notes:
        print(f"svdqc: {note}", file=sys.stderr)
    return 0


def _show(report: TuneReport) -> None:
    for target, machine in report.machines.items():
        rows = [
            [
                *(k.name, k.where, k.launches),
                *(f"{k.analytic_us:.1f}" if k.analytic_us else "",),
                *(f"{k.tuned_us:.1f}" if k.tuned_us else "",),
                *("" if k.ratio is None else f"{k.ratio:.2f}",),
                *(_choice(k.choice), k.state),
            ]
            for k in report.kernels
            if k.target == target
        ]
        columns = (
            "kernel",
            "first at",
            "launches",
            "analytic µs",
            "tuned µs",
            "ratio",
            "block",
            "",
        )
        print_table(f"{target} on {machine}", columns, rows)
        lost = [text for k in report.kernels if k.target == target for text in k.lost]
        if lost:
            print(f"candidates without a time: {'; '.join(lost)}")
        analytic, tuned = report.estimate(target)
        if analytic:
            print(
                f"{target}, all launches with a record: {analytic / 1e3:.3f} ms analytic, "
                f"{tuned / 1e3:.3f} ms tuned, ratio {tuned / analytic:.3f}"
            )


def _choice(choice: dict[str, int]) -> str:
    """Without what is zero, and without the tile's repetition of rows and columns."""
    shown = {n.removeprefix("tile_"): v for n, v in choice.items() if v}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _data(report: TuneReport) -> dict[str, Any]:
    from dataclasses import asdict

    estimates = {target: report.estimate(target) for target in report.machines}
    return {
        "path": str(report.path),
        "machines": report.machines,
        "kernels": [{**asdict(k), "ratio": k.ratio} for k in report.kernels],
        "estimate_us": {t: {"analytic": a, "tuned": b} for t, (a, b) in estimates.items()},
        "notes": report.notes,
    }
