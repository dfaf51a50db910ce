"""svdqc inspect"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from svdqc.compiler.cli.compile_options import (
    load_inputs,
    make_recipe,
    recipe_options,
    target_text,
)
from svdqc.compiler.cli.output import output_options, print_json, print_report

HELP = """Tell what a compilation of a model would do, or what is inside an artifact.

Of a model, before any work: which layers would be quantized and which kept, and why; the kernels; every unsupported op,
with the place it comes from; sizes. Takes the options of `svdqc compile`. Of an artifact: inputs, outputs, variants,
kernels, sizes, and where it comes from; that needs neither PyTorch nor a compiler.

\b
  svdqc inspect model.onnx --keep '*.proj_out'
  svdqc inspect flux.svdq --json
"""


@click.command("inspect", help=HELP)
@click.argument("subject", metavar="MODEL|ARTIFACT")
@recipe_options
@output_options
def command(
    subject: str,
    targets: tuple[str, ...],
    precision: str,
    modulation: str,
    budget: str | None,
    rank: int | str,
    keep: tuple[str, ...],
    quantize: tuple[str, ...],
    dynamic: str | None,
    inputs_file: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    import svdqc

    report = svdqc.inspect(
        subject,
        load_inputs(inputs_file, subject),
        target=target_text(targets),
        recipe=make_recipe(precision, rank, keep, quantize, modulation, budget),
        dynamic=dynamic,
    )
    if as_json:
        print_json(report)
    elif not quiet:
        print_report(_readable(report))


def _readable(report: dict[str, Any]) -> dict[str, Any]:
    """An artifact's report with the provenance of its variants as a table of its own."""
    variants = report.get("variants", ())
    made = [{"target": v["target"], **_made(v.get("provenance", {}))} for v in variants]
    plain = [{k: value for k, value in v.items() if k != "provenance"} for v in variants]
    return {**report, **({"variants": plain, "provenance": made} if variants else {})}


def _made(provenance: Any) -> dict[str, Any]:
    """The file may hold anything here: the runtime does not read it."""
    made = provenance if isinstance(provenance, dict) else {}
    tuning = made.get("tuning")
    told = "no kernel"
    if isinstance(tuning, dict):
        tuned, kernels, changed, machine = (
            tuning.get(name, "?") for name in ("tuned", "kernels", "changed", "machine")
        )
        told = f"{tuned} of {kernels} kernels, {changed} changed, on {machine}"
    return {"compiler": made.get("compiler", ""), "tuned": told}
