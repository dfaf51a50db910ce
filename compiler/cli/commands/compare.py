"""svdqc compare"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from svdqc.compiler.cli.artifact_options import artifact_options, inputs_option
from svdqc.compiler.cli.output import output_options, print_json, print_table

HELP = """Measure how far ARTIFACT's outputs are from its reference, or from the original model.

The reference is the artifact's own quantized graph, executed by PyTorch: what differs is rounding. The original model
(--model) shows what quantization costs. Needs the compiler's packages.

\b
  svdqc compare flux.svdq
  svdqc compare flux.svdq --model flux/transformer --inputs step0.safetensors --max-error 0.1
"""


@click.command("compare", help=HELP)
@artifact_options
@inputs_option(made_up=True)
@click.option("--model", metavar="MODEL", help="Compare with this original, not the reference.")
@click.option(
    "--max-error",
    type=click.FloatRange(min=0),
    help="Exit with 1 if the relative L2 error of an output is above this.",
)
@output_options
def command(
    artifact: Path,
    threads: int,
    device: str,
    trust: bool,
    inputs_file: Path | None,
    model: str | None,
    max_error: float | None,
    as_json: bool,
    quiet: bool,
) -> int:
    import svdqc
    from svdqc.compiler.cli.artifact_inputs import artifact_inputs, as_float
    from svdqc.compiler.driver.api import require_compiler

    require_compiler("compare")
    loaded = svdqc.load(artifact, device=device, threads=threads, trust=trust)
    inputs = artifact_inputs(loaded, inputs_file)
    outputs = loaded(**inputs)
    expected = _expected(artifact, model, inputs)
    if len(expected) != len(outputs):
        raise click.ClickException(
            f"the artifact has {len(outputs)} outputs, {model or 'its reference'} has {len(expected)}"
        )
    records = [
        {"output": name, **_distance(as_float(value), as_float(wanted))}
        for (name, value), wanted in zip(outputs.items(), expected, strict=True)
    ]
    passed = max_error is None or all(r["relative_l2"] <= max_error for r in records)
    if as_json:
        against = model or "reference"
        print_json({"against": against, "passed": passed, "outputs": records})
    elif not quiet:
        rows = [list(record.values()) for record in records]
        print_table(f"against {model or 'the reference'}", list(records[0]), rows)
    if not passed:
        click.echo(f"svdqc: an output's relative L2 error is above {max_error}", err=True)
    return 0 if passed else 1


def _expected(artifact: Path, model: str | None, inputs: dict[str, Any]) -> list[Any]:
    """The outputs to compare with, as float32 or integer arrays, in order."""
    from svdqc.compiler.driver.api import is_onnx, reference
    from svdqc.compiler.driver.calibration_files import to_torch
    from svdqc.compiler.driver.tensor_files import nest

    flat = {name: to_torch(array) for name, array in inputs.items()}
    if model is None:
        outputs = reference(artifact)(**flat)
        tensors = list(outputs.values()) if hasattr(outputs, "values") else list(outputs)
    else:
        from svdqc.compiler.driver.eager import open_eager

        tensors = open_eager(model)(**(flat if is_onnx(model) else nest(flat)))
    return [t.float().numpy() if t.is_floating_point() else t.numpy() for t in tensors]


def _distance(value: Any, wanted: Any) -> dict[str, Any]:
    """Relative L2 error, largest absolute difference, and PSNR in dB over the range of the wanted values."""
    if value.shape != wanted.shape:
        found = f"shape {list(value.shape)}, expected {list(wanted.shape)}"
        raise click.ClickException(f"outputs cannot be compared: {found}")
    difference = value.astype(np.float64) - wanted
    norm = float(np.linalg.norm(wanted))
    error = float(np.linalg.norm(difference))
    rms = error / max(np.sqrt(difference.size), 1)
    span = float(np.ptp(wanted)) if wanted.size else 0.0
    return {
        "shape": list(value.shape),
        "relative_l2": error / norm if norm else error,
        "max_abs": float(np.abs(difference).max(initial=0.0)),
        "psnr_db": float(20 * np.log10(span / rms)) if rms and span else float("inf"),
    }
