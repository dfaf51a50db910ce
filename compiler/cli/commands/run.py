"""svdqc run"""

from __future__ import annotations

import time
from pathlib import Path

import click

from svdqc.compiler.cli.artifact_options import artifact_options, inputs_option
from svdqc.compiler.cli.output import output_options, print_json

HELP = """Run ARTIFACT once, on inputs from a file, and write its outputs.

The files hold tensors by the names that `svdqc inspect ARTIFACT` shows; both may be .npz or .safetensors. A .npz file
cannot hold bfloat16: there, float32 is narrowed for inputs that are bfloat16, and outputs are widened.

\b
  svdqc run flux.svdq --inputs step0.safetensors -o velocity.safetensors
"""


@click.command("run", help=HELP)
@artifact_options
@inputs_option(made_up=False)
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), metavar="FILE")
@output_options
def command(
    artifact: Path,
    threads: int,
    device: str,
    trust: bool,
    inputs_file: Path,
    output: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    import svdqc
    from svdqc.compiler.cli.artifact_inputs import artifact_inputs
    from svdqc.compiler.driver.tensor_files import write_tensors

    model = svdqc.load(artifact, device=device, threads=threads, trust=trust)
    inputs = artifact_inputs(model, inputs_file)
    began = time.perf_counter()
    outputs = model(**inputs)
    seconds = time.perf_counter() - began
    write_tensors(output, outputs)
    shapes = {name: list(value.shape) for name, value in outputs.items()}
    if as_json:
        print_json({"output": str(output), "seconds": seconds, "shapes": shapes})
    elif not quiet:
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        print(f"wrote {output}: {told} in {1e3 * seconds:.1f} ms")
