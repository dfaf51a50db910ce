"""Where calibration samples come from: what a user may name, and how each becomes samples that can be read twice."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from svdqc.compiler.driver.calibration_files import load_calibration
from svdqc.compiler.driver.pipeline_prompts import SUFFIXES as PROMPT_SUFFIXES
from svdqc.compiler.driver.pipeline_prompts import find_pipeline, read_prompts
from svdqc.errors import SvdqcError

if TYPE_CHECKING:
    from svdqc.compiler.driver.work_folder import WorkFolder

Sample = Mapping[str, Any]
RecordProgress = Callable[[int, int, str], None]


class BadFactory(SvdqcError):
    """The function that should yield samples cannot be imported or called."""


class Recording(Protocol):
    """Samples that have to be made first, and are kept in the work folder once they are."""

    def record(self, work: WorkFolder, progress: RecordProgress) -> Iterable[Sample]: ...


def calibration_source(
    calibration: Any,
    model: Any,
    *,
    pipeline: str | os.PathLike[str] | None = None,
    steps: int | None = None,
    count: int | None = None,
    nested: bool = True,
) -> Any:
    """What `compile_model` takes as `calibration`, from what a user says.

    calibration  None or "none"; an iterable of input dicts; a function that yields them, or "package.module:function";
                 a .npz or .safetensors file or a folder of them; a .txt or .yaml file of prompts
    model        for prompts: a folder inside a pipeline needs no `pipeline`
    pipeline     a diffusers pipeline folder, which prompts are drawn with
    steps        of each drawing; None is the pipeline's own number
    count        how many of the drawings' steps are recorded, evenly; None is 128, 0 all
    nested       whether names of stored tensors are keyword paths
    """
    if calibration is None or (isinstance(calibration, str) and calibration == "none"):
        return None
    if callable(calibration):
        return _called(calibration, getattr(calibration, "__name__", "calibration"))
    if not isinstance(calibration, str | os.PathLike):
        return calibration
    path = Path(calibration).expanduser()
    if not path.exists() and isinstance(calibration, str) and ":" in calibration:
        return _called(_imported(calibration), calibration)
    if path.suffix in PROMPT_SUFFIXES:
        from svdqc.compiler.driver.record_pipeline import PipelineRecording

        folder = find_pipeline(pipeline, model, path)
        return PipelineRecording(folder, read_prompts(path), steps, count)
    return load_calibration(path, nested=nested)


def samples_of(
    calibration: Iterable[Sample] | Recording, work: WorkFolder, progress: RecordProgress
) -> Iterable[Sample]:
    """Samples that can be read twice."""
    from svdqc.compiler.driver.calibrate import rewindable

    record = getattr(calibration, "record", None)
    if record is not None:
        recorded: Iterable[Sample] = record(work, progress)
        return recorded
    return rewindable(calibration, work)  # type: ignore[arg-type]


def _called(factory: Callable[[], Iterable[Sample]], name: str) -> Iterator[Sample]:
    """What the user's function yields; what it raises is said of it, at once or when it comes to that."""
    try:
        samples = iter(factory())
    except Exception as error:  # whatever the user's code raises
        raise _failed(name, error) from error
    return _yielded(samples, name)


def _yielded(samples: Iterator[Sample], name: str) -> Iterator[Sample]:
    while True:
        try:
            sample = next(samples)
        except StopIteration:
            return
        except Exception as error:  # whatever the user's code raises
            raise _failed(name, error) from error
        yield sample


def _failed(name: str, error: Exception) -> BadFactory:
    remedy = "give a function without arguments that yields one input dict per call of the model"
    return BadFactory("calibration", name, f"{type(error).__name__}: {error}", remedy)


def _imported(text: str) -> Callable[[], Iterable[Sample]]:
    module, _, attribute = text.partition(":")
    added = str(Path.cwd()) not in sys.path
    if added:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever importing the user's code raises
        raise BadFactory(
            "calibration",
            text,
            f"{type(error).__name__}: {error}",
            "give an importable package.module:function, a file, a folder, or 'none'",
        ) from error
    finally:
        if added:
            sys.path.remove(str(Path.cwd()))
    assert callable(found) or isinstance(found, Iterable)
    return found if callable(found) else lambda: found
