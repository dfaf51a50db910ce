"""The options that say what to compile and how: shared by `compile` and `inspect`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from svdqc.compiler.quantize.recipe import MODULATIONS, PRECISIONS, Recipe
from svdqc.compiler.quantize.schemes import SCHEMES
from svdqc.compiler.targets.select import NAMES

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Rank(click.ParamType):  # type: ignore[type-arg]
    name = "N|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        text = str(value)
        if text == "auto":
            return text
        if not text.isdigit():
            self.fail(f"{text!r} is neither a whole number >= 0 nor 'auto'", param, ctx)
        return int(text)


def recipe_options(command: Decorated) -> Decorated:
    options = (
        click.option(
            "--target",
            "-t",
            "targets",
            multiple=True,
            metavar="NAME[,NAME]",
            help="native (this machine, the default), "
            + ", ".join(name for name in NAMES if name != "native")
            + "; several make one file that runs on each of them.",
        ),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            default="auto",
            show_default=True,
            help="Of weights and activations: "
            + "; ".join(f"{name}, {scheme.summary}" for name, scheme in SCHEMES.items())
            + "; none compiles without quantizing; auto is nvfp4 for Blackwell alone (sm_100a, sm_120a), w4a8 for "
            "Hopper alone (sm_90a), else int4.",
        ),
        click.option(
            "--modulation",
            type=click.Choice(MODULATIONS),
            default="w4a16",
            show_default=True,
            help="Of layers with one row per image (adaLN): 4-bit weights, or kept as they are.",
        ),
        click.option(
            "--rank",
            type=Rank(),
            default="32",
            show_default=True,
            help="Width of the 16-bit branch that carries what 4 bits cannot; auto spends the bytes of rank 32 on the "
            "layers where they lower the model's error most (needs --calibration or --inputs).",
        ),
        click.option(
            "--budget",
            metavar="SIZE|RATIO",
            help='Of all weights, such as "6.5MB" or 0.3 of their 16-bit bytes: ranks are chosen to fit it, and which '
            "layers take 16 bits (with --precision auto also 8).",
        ),
        click.option(
            "--keep",
            multiple=True,
            metavar="PATTERN",
            help="Keep layers as they are, such as --keep '*.proj_out'. May be repeated.",
        ),
        click.option(
            "--quantize",
            multiple=True,
            metavar="PATTERN",
            help="Quantize layers that the rule would keep. May be repeated.",
        ),
        click.option(
            "--dynamic",
            metavar="DIMS",
            help='Sizes that may vary, lo:hi or lo:hi:multiple: "height=64:128:8,batch=1:4".',
        ),
        click.option(
            "--inputs",
            "inputs_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Example inputs by name, .npz or .safetensors. Diffusers folders and .onnx files need none.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def target_text(targets: tuple[str, ...]) -> str:
    return ",".join(targets) or "native"


def make_recipe(
    precision: str,
    rank: int | str,
    keep: tuple[str, ...],
    quantize: tuple[str, ...],
    modulation: str = "w4a16",
    budget: str | None = None,
) -> Recipe:
    return Recipe(
        precision=precision,
        rank=rank,
        budget=budget,
        keep=keep,
        quantize=quantize,
        modulation=modulation,
    )


def load_inputs(path: Path | None, model: str) -> dict[str, Any] | None:
    """Example inputs as torch tensors; keyword paths become nested dicts, except for ONNX."""
    if path is None:
        return None
    from svdqc.compiler.driver.api import is_onnx, require_compiler
    from svdqc.compiler.driver.calibration_files import to_torch
    from svdqc.compiler.driver.tensor_files import nest, read_tensors

    require_compiler("compile")
    flat = {name: to_torch(array) for name, array in read_tensors(path).items()}
    return flat if is_onnx(model) else nest(flat)
