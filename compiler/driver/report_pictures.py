"""Pictures of the same seeds from the 16-bit and from the quantized model, for the report.

A picture maker is a function that draws with any model:

    def pictures(model) -> list[tuple[caption, pixels]]       model(**inputs) -> {"sample": array, ...}
                                                              pixels [height, width, 3] uint8

It is named `file.py:function` or `package.module:function`; of a diffusers pipeline folder one is made here, which
replaces the pipeline's denoiser. It is called once with each model, and must draw the same noise both times.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from svdqc.compiler.driver.calibrate import as_inputs
from svdqc.compiler.driver.report_page import picture_url
from svdqc.compiler.ir.program import Program
from svdqc.errors import SvdqcError
from svdqc.frontends.spec import flatten_inputs

Model = Callable[..., Mapping[str, Any]]
Picture = tuple[str, NDArray[np.uint8]]
PictureMaker = Callable[[Model], Sequence[Picture]]


class BadPictures(SvdqcError):
    """The picture maker cannot be imported, fails, or returns something else than captions and pixels."""


def picture_maker(
    source: Any, prompts: Sequence[str] = (), steps: int | None = None
) -> PictureMaker:
    """Of a callable, of "file.py:function" or "package.module:function", or of a pipeline folder and prompts."""
    if callable(source):
        return source  # type: ignore[no-any-return]
    if Path(source).is_dir():
        return _pipeline_maker(Path(source), prompts, steps)
    return _imported(str(source))


def program_model(program: Program) -> Model:
    """The program as a model: arrays or tensors in, f32 arrays by name out."""

    def call(**inputs: Any) -> dict[str, Any]:
        flat = {name: torch.as_tensor(value) for name, value in flatten_inputs(inputs).items()}
        outputs = program.run(as_inputs(program, flat, 0))
        return {
            spec.name: value.float().numpy()
            for spec, value in zip(program.outputs, outputs, strict=True)
        }

    return call


def draw_pictures(maker: PictureMaker, model: Model, source: Any) -> list[Picture]:
    """What the maker draws, checked."""
    try:
        drawn = [(str(caption), np.asarray(pixels)) for caption, pixels in maker(model)]
    except SvdqcError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise BadPictures(
            "report",
            str(source),
            f"drawing failed ({type(error).__name__}: {error})",
            "try the function with the 16-bit model alone",
        ) from error
    for caption, pixels in drawn:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise BadPictures(
                "report",
                str(source),
                f"{caption!r} is {list(pixels.shape)} {pixels.dtype}",
                "return pixels [height, width, 3] in uint8",
            )
    return drawn


def side_by_side(before: Sequence[Picture], after: Sequence[Picture]) -> list[dict[str, Any]]:
    """Records for the page; psnr in dB of the second against the first, None where they are the same."""
    records = []
    for (caption, first), (_, second) in zip(before, after, strict=True):
        miss = float(np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2))
        records.append(
            {
                "caption": caption,
                "before": picture_url(first),
                "after": picture_url(second),
                "psnr": 10 * math.log10(255.0**2 / miss) if miss else None,
            }
        )
    return records


def _imported(text: str) -> PictureMaker:
    home, _, name = text.rpartition(":")
    try:
        found = getattr(_module(home), name)
    except Exception as error:  # whatever importing the user's code raises
        raise BadPictures(
            "report",
            text,
            f"{type(error).__name__}: {error}",
            "give file.py:function, package.module:function, or a diffusers pipeline folder",
        ) from error
    if not callable(found):
        raise BadPictures("report", text, "not a function", "name a function of one argument")
    return found  # type: ignore[no-any-return]


def _module(home: str) -> Any:
    if not home.endswith(".py"):
        return importlib.import_module(home)
    path = Path(home).resolve()
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(path.parent))


def _pipeline_maker(folder: Path, prompts: Sequence[str], steps: int | None) -> PictureMaker:
    from svdqc.compiler.driver.record_pipeline import denoiser_of, load_pipeline

    pipeline = load_pipeline(folder)
    denoiser = denoiser_of(pipeline, folder)
    given = {} if steps is None else {"num_inference_steps": steps}

    def draw(model: Model) -> list[Picture]:
        original = denoiser.forward
        denoiser.forward = _forward_of(model, denoiser)  # type: ignore[method-assign]
        try:
            drawn = []
            for number, prompt in enumerate(prompts):
                generator = torch.Generator().manual_seed(number)
                with torch.no_grad():
                    image = pipeline(
                        prompt, generator=generator, output_type="np", return_dict=False, **given
                    )[0][0]
                pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
                drawn.append((prompt, pixels))
            return drawn
        finally:
            denoiser.forward = original  # type: ignore[method-assign]

    return draw


def _forward_of(model: Model, denoiser: torch.nn.Module) -> Callable[..., Any]:
    """A forward with the denoiser's arguments that asks `model`; a tuple, as pipelines want it."""
    signature = inspect.signature(denoiser.forward)
    dtype = next(denoiser.parameters()).dtype

    def forward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        bound = signature.bind_partial(*args, **kwargs).arguments
        rest = bound.pop("kwargs", {})
        given = {**bound, **rest}
        given.pop("return_dict", None)
        outputs = model(**given)
        return tuple(torch.as_tensor(value).to(dtype) for value in outputs.values())

    return forward
