"""`svdqc.report`: study a model or an artifact and write the page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from svdqc.compiler.driver.api import (
    Calibration,
    check_output,
    is_artifact,
    is_onnx,
    require_compiler,
)
from svdqc.compiler.driver.progress import Progress
from svdqc.compiler.quantize.recipe import Recipe


def report(
    subject: Any,
    inputs: Mapping[str, Any] | None = None,
    *,
    output: str | os.PathLike[str] | None = "report.html",
    data: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    calibration: Calibration = None,
    dynamic: str | Mapping[str, Any] | None = None,
    num_details: int = 6,
    pictures: Any = None,
    prompts: Sequence[str] = (),
    pipeline: str | os.PathLike[str] | None = None,
    steps: int | None = None,
    num_samples: int | None = None,
    jobs: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure where a quantization loses and what each of its parts is worth; write it as one HTML file.

    subject      an artifact, or a model as `svdqc.compile` takes it
    output       the page, whole or not at all; None writes none
    data         a file for the same as JSON
    num_details  how many layers, those that cost most, are shown with spectra, histograms and ablation
    pictures     a function that draws with a model, its name "file.py:function", or a diffusers pipeline folder
    prompts      for a pipeline folder: what to draw; steps of each drawing

    The other arguments are those of `svdqc.compile`. Returns the data.
    """
    require_compiler("report")
    for path in (output, data):
        if path is not None:
            check_output(path)
    from svdqc.compiler.driver.calibration_source import calibration_source
    from svdqc.compiler.driver.report_artifact import report_artifact
    from svdqc.compiler.driver.report_model import report_model
    from svdqc.compiler.driver.report_page import write_page, write_whole

    if isinstance(subject, str | os.PathLike) and is_artifact(subject):
        found = report_artifact(subject, num_details=num_details, progress=progress)
    else:
        samples = calibration_source(
            calibration,
            subject,
            pipeline=pipeline,
            steps=steps,
            count=num_samples,
            nested=not is_onnx(subject),
        )
        found = report_model(
            subject,
            inputs,
            recipe=recipe,
            calibration=samples,
            dynamic=dynamic,
            num_details=num_details,
            pictures=pictures,
            prompts=prompts,
            steps=steps,
            jobs=jobs,
            progress=progress,
        )
        if isinstance(subject, str | os.PathLike):
            found["name"] = _title(subject)
    if output is not None:
        write_page(output, found)
    if data is not None:
        write_whole(data, json.dumps(_finite(found), indent=1, allow_nan=False))
    return found


def _title(subject: str | os.PathLike[str]) -> str:
    """The last two parts of a path say more than one: "flux/transformer"."""
    parts = Path(subject).parts
    return "/".join(parts[-2:]) if Path(subject).is_dir() else parts[-1]


def _finite(value: Any) -> Any:
    """JSON has neither infinity nor NaN."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
