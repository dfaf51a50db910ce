"""Draw prompts with a diffusers pipeline and keep what its denoiser is called with, at an even selection of steps."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from svdqc.compiler.driver.calibration_source import RecordProgress
from svdqc.compiler.driver.pipeline_prompts import Prompts
from svdqc.compiler.driver.work_folder import WorkFolder
from svdqc.errors import SvdqcError
from svdqc.frontends.spec import flatten_inputs

DENOISERS = ("transformer", "unet")
DEFAULT_COUNT = 128


class PipelineUnusable(SvdqcError):
    """The pipeline cannot be loaded or called, or has no denoiser to listen to."""


class PipelineRecording:
    """steps of each drawing (None: the pipeline's own); `count` of all their steps are kept (None: 128; 0: all)."""

    def __init__(
        self, folder: Path, prompts: Prompts, steps: int | None = None, count: int | None = None
    ) -> None:
        self.folder, self.prompts = folder, prompts
        self.steps = prompts.steps if steps is None else steps
        self.count = DEFAULT_COUNT if count is None else count

    def record(self, work: WorkFolder, progress: RecordProgress) -> Iterable[Mapping[str, Any]]:
        """One sample per call of the denoiser. What was recorded before is not drawn again."""
        stem = f"drawn-{self._key()}"
        total = len(self.prompts.prompts)
        progress(0, total, "")
        pipeline: Any = None
        for at, prompt in enumerate(self.prompts.prompts):
            done = f"{stem}-{at}"
            if not _whole(work, done):
                if pipeline is None:
                    pipeline = load_pipeline(self.folder)
                calls = self._draw(pipeline, prompt, at)
                for step, call in calls.items():
                    work.write(f"{done}-{step}", call)
                work.write(done, {"steps": torch.tensor(sorted(calls), dtype=torch.int64)})
            progress(at + 1, total, str(prompt)[:40])
        return _Recorded(work, [f"{stem}-{at}" for at in range(total)])

    def _draw(self, pipeline: Any, prompt: Any, number: int) -> dict[int, dict[str, torch.Tensor]]:
        """{number of the call: its tensors} of one drawing."""
        heard: list[dict[str, torch.Tensor]] = []
        denoiser = denoiser_of(pipeline, self.folder)
        signature = inspect.signature(denoiser.forward)

        def listen(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            bound = signature.bind_partial(*args, **kwargs).arguments
            rest = bound.pop("kwargs", {})
            tensors = flatten_inputs({**bound, **rest})
            heard.append({k: v.detach().to("cpu", copy=True) for k, v in tensors.items()})

        hook = denoiser.register_forward_pre_hook(listen, with_kwargs=True)
        try:
            with torch.no_grad():
                pipeline(**self._arguments(pipeline, prompt, number))
        except Exception as error:  # whatever the pipeline's code raises
            raise PipelineUnusable(
                "calibration",
                str(self.folder),
                f"drawing {prompt!r} failed ({type(error).__name__}: {error})",
                "try the same call with diffusers alone; give further arguments under 'call' in a .yaml file",
            ) from error
        finally:
            hook.remove()
        return {step: heard[step] for step in _chosen(len(heard), number, self._per_prompt())}

    def _per_prompt(self) -> float | None:
        """Steps kept of each drawing; None: all."""
        return self.count / len(self.prompts.prompts) if self.count else None

    def _arguments(self, pipeline: Any, prompt: Any, number: int) -> dict[str, Any]:
        known = inspect.signature(pipeline.__call__).parameters
        generator = torch.Generator().manual_seed(self.prompts.seed + number)
        given: dict[str, Any] = {"generator": generator, "output_type": "latent"}
        if self.steps is not None:
            given["num_inference_steps"] = self.steps
        if "prompt" in known:
            given["prompt"] = prompt
        else:  # DiT draws classes
            given["class_labels"] = [_class_number(pipeline, prompt)]
        return {**{k: v for k, v in given.items() if k in known}, **self.prompts.call}

    def _key(self) -> str:
        """Of the pipeline's files (by name, size and time), the prompts and what is asked of them."""
        digest = hashlib.sha256()
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            stat = path.stat()
            name = path.relative_to(self.folder)
            digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        p = self.prompts
        rest = [p.prompts, self.steps, p.seed, sorted(p.call.items()), self.count]
        digest.update(json.dumps(rest, default=str).encode())
        return digest.hexdigest()[:16]


class _Recorded:
    """What was recorded, a drawing after the other."""

    def __init__(self, work: WorkFolder, drawings: list[str]) -> None:
        self._work = work
        self._calls = [f"{d}-{step}" for d in drawings for step in _steps(work, d)]

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for call in self._calls:
            yield self._work.read(call)[0]


def _steps(work: WorkFolder, drawing: str) -> list[int]:
    steps: list[int] = work.read(drawing)[0]["steps"].tolist()
    return steps


def _whole(work: WorkFolder, drawing: str) -> bool:
    return work.has(drawing) and all(
        work.has(f"{drawing}-{step}") for step in _steps(work, drawing)
    )


def _chosen(num_steps: int, prompt: int, per_prompt: float | None) -> list[int]:
    """Steps of one drawing, evenly spaced; each prompt begins elsewhere, so that few steps of each still cover all.

    With r steps wanted of each drawing, prompt p takes the steps k where floor((k + shift_p) r / n) moves on.
    """
    if per_prompt is None or per_prompt >= num_steps:
        return list(range(num_steps))
    ratio = per_prompt / num_steps
    # The golden ratio spreads the beginnings of any number of prompts evenly.
    offset = prompt * 0.6180339887498949 % 1.0
    return [k for k in range(num_steps) if int((k + 1) * ratio + offset) > int(k * ratio + offset)]


def load_pipeline(folder: Path) -> Any:
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise PipelineUnusable(
            "calibration",
            "diffusers",
            f"not importable ({error})",
            "install it: pip install 'svdqc[compile,diffusers]'",
        ) from error
    load: Callable[..., Any] = DiffusionPipeline.from_pretrained
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "`torch_dtype` is deprecated"
            )  # the older name of `dtype`
            pipeline = load(str(folder), torch_dtype=dtype, local_files_only=True)
    except Exception as error:  # diffusers and transformers raise many types
        raise PipelineUnusable(
            "calibration",
            str(folder),
            f"not loadable ({type(error).__name__}: {error})",
            "check the folder with diffusers alone; a text pipeline also needs: pip install transformers",
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda") if on_gpu else pipeline


def denoiser_of(pipeline: Any, folder: Path) -> torch.nn.Module:
    for name in DENOISERS:
        module = getattr(pipeline, name, None)
        if isinstance(module, torch.nn.Module):
            return module
    raise PipelineUnusable(
        "calibration",
        str(folder),
        f"{type(pipeline).__name__} has neither a transformer nor a unet",
        "record the denoiser's inputs yourself and give a folder of .npz files",
    )


def _class_number(pipeline: Any, prompt: Any) -> int:
    text = str(prompt)
    labels: Mapping[str, int] = getattr(pipeline, "labels", None) or {}
    if text.isdigit():
        return int(text)
    if text in labels:
        return labels[text]
    raise ValueError(f"{text!r} is neither a class number nor one of the pipeline's labels")
