"""svdqc report"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from svdqc.compiler.cli.compile_options import load_inputs, make_recipe, recipe_options
from svdqc.compiler.cli.output import megabytes

HELP = """Write one HTML page that shows where a quantization loses, and what each of its parts is worth.

Of a model it quantizes the layers as `svdqc compile` would, and shows for those that cost most: singular values before
and after smoothing and of what is left for the codes, histograms of weights and activations, the error at other ranks,
and the error with steps of the method left out. Errors are measured on calibration samples that were held out, or
without any on the example inputs. All layers are in a table. Of an artifact it shows what the file itself tells.

\b
  svdqc report flux/transformer --calibration samples/ -o flux.html
  svdqc report model.onnx --rank auto --json numbers.json
  svdqc report flux/transformer --pictures flux/ --prompt "a red fox" --steps 8
  svdqc report emoji/model/transformer --inputs one.npz --pictures draw.py:pictures
  svdqc report flux.svdq

The page is self-contained: no network, nothing beside it. `file.py:function` names a function of one argument, a model
to call as model(**inputs), that returns pairs of a caption and pixels [height, width, 3] uint8. It is called with the
16-bit and with the quantized model; the page shows both side by side.
"""


@click.command("report", help=HELP, short_help="Show where a quantization loses, as one HTML page.")
@click.argument("subject", metavar="MODEL|ARTIFACT")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    metavar="FILE",
)
@recipe_options
@click.option(
    "--calibration",
    metavar="FILE|FOLDER|none",
    default="none",
    show_default=True,
    help="Samples: each .npz or .safetensors file holds the inputs of one call; or prompts for a pipeline.",
)
@click.option(
    "--layers",
    "num_details",
    type=click.IntRange(min=0),
    default=6,
    show_default=True,
    help="How many layers to show in detail. Time and size of the page grow with it.",
)
@click.option(
    "--pictures",
    metavar="PY:FUNCTION|FOLDER",
    help="Draw with both models: a function, or a diffusers pipeline folder with --prompt.",
)
@click.option("--prompt", "prompts", multiple=True, help="To draw. May be repeated.")
@click.option("--steps", type=click.IntRange(min=1), help="Of each drawing.")
@click.option(
    "--jobs", "-j", type=click.IntRange(min=0), default=0, help="Parallel work; 0: one per core."
)
@click.option(
    "--json",
    "data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write all numbers of the page here too, for machines.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
def command(
    subject: str,
    output: Path,
    inputs_file: Path | None,
    dynamic: str | None,
    calibration: str,
    num_details: int,
    pictures: str | None,
    prompts: tuple[str, ...],
    steps: int | None,
    jobs: int,
    data: Path | None,
    quiet: bool,
    targets: tuple[str, ...],
    **recipe: Any,
) -> None:
    from svdqc.compiler.cli.progress_bar import progress_display
    from svdqc.compiler.driver.report_api import report

    began = time.perf_counter()
    with progress_display(quiet) as progress:
        report(
            subject,
            load_inputs(inputs_file, subject),
            output=output,
            data=data,
            recipe=make_recipe(**recipe),
            calibration=None if calibration == "none" else calibration,
            dynamic=dynamic,
            num_details=num_details,
            pictures=pictures,
            prompts=prompts,
            steps=steps,
            jobs=jobs,
            progress=progress,
        )
    if not quiet:
        seconds = time.perf_counter() - began
        print(f"wrote {output}: {megabytes(output.stat().st_size)} in {seconds:.1f} s")
