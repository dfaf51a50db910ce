"""The public functions that need the compiler: `svdqc.compile`, `svdqc.tune`, `svdqc.inspect`, `svdqc.reference`.

Each checks that the compiler's packages are installed before it imports them, so that a machine that holds only
the runtime gets one sentence and not a traceback.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdqc.compiler.quantize.recipe import Recipe
from svdqc.errors import SvdqcError

if TYPE_CHECKING:
    from svdqc.compiler.driver.progress import Progress

ARTIFACT_MAGIC = b"\x89SVDQ\r\n\x1a"
COMPILER_PACKAGES = ("torch", "onnx", "jinja2", "networkx", "safetensors")

Samples = Iterable[Mapping[str, Any]]
Calibration = Samples | Callable[[], Samples] | str | os.PathLike[str] | None


class CompilerNotInstalled(SvdqcError):
    """Only the runtime is installed, and the call needs the compiler."""


class OutputUnwritable(SvdqcError):
    """The artifact could not be written where it is wanted."""


def missing_packages() -> list[str]:
    """What `svdqc[compile]` would install."""
    return [name for name in COMPILER_PACKAGES if find_spec(name) is None]


def require_compiler(where: str) -> None:
    missing = missing_packages()
    if missing:
        found = f"only the runtime is installed ({', '.join(missing)} missing)"
        remedy = "install the compiler with: pip install 'svdqc[compile]'"
        raise CompilerNotInstalled(where, "svdqc", found, remedy)


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """True for a file that opens with the artifact's magic, or carries its suffix."""
    candidate = Path(path)
    if candidate.suffix == ".svdq":
        return True
    if not candidate.is_file():
        return False
    with candidate.open("rb") as file:
        return file.read(len(ARTIFACT_MAGIC)) == ARTIFACT_MAGIC


def check_output(output: str | os.PathLike[str]) -> None:
    """Refuse, before minutes of work, a place that nothing can be written to."""
    path = Path(output)
    folder = path.parent
    if path.exists() and not path.is_file():
        found = "a folder" if path.is_dir() else "not an ordinary file"
    elif not folder.is_dir():
        found = f"there is no folder {str(folder)!r}"
    elif not os.access(folder, os.W_OK):
        found = f"no permission to write to {str(folder)!r}"
    else:
        return
    remedy = "name a file in a folder that exists and that you may write to"
    raise OutputUnwritable("output", str(path), found, remedy)


def is_onnx(model: Any) -> bool:
    return isinstance(model, str | os.PathLike) and Path(model).suffix == ".onnx"


def compile(
    model: Any,
    inputs: Mapping[str, Any] | None = None,
    *,
    output: str | os.PathLike[str],
    target: str = "native",
    recipe: Recipe | None = None,
    calibration: Calibration = None,
    dynamic: str | Mapping[str, Any] | None = None,
    jobs: int = 0,
    progress: Progress | None = None,
    dump: str | os.PathLike[str] | None = None,
    resume: bool = False,
    pipeline: str | os.PathLike[str] | None = None,
    steps: int | None = None,
    num_samples: int | None = None,
    tuning: str | os.PathLike[str] | None = None,
    tuned_on: str | None = None,
) -> Any:
    """Compile `model` to one file, written whole or not at all.

    model        an nn.Module, an ExportedProgram, or a path: .onnx, .pt2, a diffusers folder, "package.module:factory"
    inputs       keyword arguments of one call of the model; their shapes and dtypes are what is compiled. A diffusers
                 model or an .onnx file with fixed shapes needs none
    output       the artifact to write, such as "flux.svdq"
    target       "native" (this machine), "cpu", "cpu:avx2", ..., or several, separated by commas
    recipe       precision, rank, which layers to keep; see `svdqc.Recipe`
    calibration  an iterable of input dicts, or a function (or "package.module:function") that yields them; a .npz or
                 .safetensors file, or a folder of them; a .txt or .yaml file of prompts; None quantizes from the
                 weights alone (driver/calibration_source.py)
    dynamic      sizes that may vary: "height=64:128:8,batch=1:4" (lo:hi:multiple)
    jobs         parallel compilations; 0 means one per core
    progress     called with a `svdqc.ProgressEvent` after each step
    resume       go on from what an interrupted compilation to the same output has finished
    pipeline     for prompts: the diffusers pipeline that draws them; a model inside of one needs it not
    steps        for prompts: steps of each drawing; None is the pipeline's own number
    num_samples  for prompts: how many steps are recorded, evenly over prompts and steps; None is 128, 0 all of them
    tuning       a file that `svdqc.tune` has written: kernels take what was fastest on this machine, where it is known
    tuned_on     the machine of that file to build for instead, by a part of its description, such as "H100"
    dump         a folder for the graph after each pass, the fused regions and the rendered kernels (driver/dump.py)

    Returns the artifact: `.path`, `.num_bytes`, and `.report`, a dict of what was quantized, kept and fused.
    """
    require_compiler("compile")
    check_output(output)
    from svdqc.compiler.driver import compile_model
    from svdqc.compiler.driver.calibration_source import calibration_source

    samples = calibration_source(
        calibration,
        model,
        pipeline=pipeline,
        steps=steps,
        count=num_samples,
        nested=not is_onnx(model),
    )
    return compile_model(
        model,
        inputs,
        output=output,
        target=target,
        recipe=recipe or Recipe(),
        calibration=samples,
        dynamic=dynamic,
        jobs=jobs,
        progress=progress,
        dump=None if dump is None else Path(dump),
        resume=resume,
        tuning=tuning,
        tuned_on=tuned_on,
    )


def tune(
    model: Any,
    inputs: Mapping[str, Any] | None = None,
    *,
    output: str | os.PathLike[str],
    target: str = "native",
    recipe: Recipe | None = None,
    dynamic: str | Mapping[str, Any] | None = None,
    budget_seconds: float | None = None,
    candidates: int | None = None,
    device: str = "",
    threads: int = 0,
    jobs: int = 0,
    again: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Measure a model's kernels on this machine, and append what was fastest to a file for `compile(tuning=...)`.

    model, inputs, target, recipe, dynamic   as for `svdqc.compile`: kernels depend on shapes, ranks and formats. No
                    weight is read, and of sizes that vary the largest are measured
    output          the file of records; those of this machine that it has already are not measured again
    budget_seconds  stop then, with what there is; kernels that take longest come first
    candidates      of each kernel, beside the compiler's own choice; None is 12
    device          "cuda:1": which GPU measures for cuda targets
    threads         of the CPU; 0: as many as this process may use. Records are for this number
    jobs            parallel compilations; 0 means one per core
    again           measure what is recorded already, too
    progress        called with a `svdqc.ProgressEvent` after each step

    Returns a report: `.kernels`, and `.estimate(target)`, µs of one run with analytic and with tuned kernels. What was
    measured stays in the file when the call is interrupted.
    """
    require_compiler("tune")
    check_output(output)
    from svdqc.compiler.driver.tune import CANDIDATES, tune_model

    return tune_model(
        model,
        inputs,
        output=output,
        target=target,
        recipe=recipe or Recipe(),
        dynamic=dynamic,
        budget_seconds=budget_seconds,
        candidates=CANDIDATES if candidates is None else candidates,
        device=device,
        threads=threads,
        jobs=jobs,
        again=again,
        progress=progress,
    )


def inspect(
    model: Any,
    inputs: Mapping[str, Any] | None = None,
    *,
    target: str = "native",
    recipe: Recipe | None = None,
    dynamic: str | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Tell what is inside an artifact or, of a model, what a compilation would quantize, keep, fuse and refuse.

    Takes the arguments of `svdqc.compile`; an artifact needs only its path, and neither torch nor a compiler.
    """
    if isinstance(model, str | os.PathLike) and is_artifact(model):
        from svdqc.runtime import inspect as inspect_artifact

        return inspect_artifact(model)
    require_compiler("inspect")
    from svdqc.compiler.driver import inspect_model

    report: dict[str, Any] = inspect_model(
        model, inputs, target=target, recipe=recipe or Recipe(), dynamic=dynamic
    )
    return report


def reference(path: str | os.PathLike[str]) -> Any:
    """The artifact's quantized graph as a callable that PyTorch executes: the definition of correct."""
    require_compiler("reference")
    from svdqc.compiler.driver import Reference

    return Reference(path)
