"""`make gpu-check`: build, verify and measure every CUDA kernel on this machine's GPU; under eight minutes.

    python tests/gpu/check.py [--output build/gpu-check.json] [--folder build/gpu-check] [--only kernels,models,…]
    python tests/gpu/check.py --prepare [--arch sm_90a]     # on any machine: models, for one that lacks diffusers

Steps, each of which is tried whatever became of the others:

    kernels     the tests of tests/cuda, launched on the GPU (device_kernels.py)
    models      whole artifacts against their references, the same bits every time (models.py)
    sanitizer   a model under compute-sanitizer, where there is one
    benchmarks  linears at the shapes of FLUX.1-dev beside cuBLAS through PyTorch, in the same run (benchmarks.py)

Needs the packages of svdqc[compile] and nvcc. Prints a table and writes a JSON record with the GPU, its driver and all
versions. Exit code 0 where there is no NVIDIA GPU (there is nothing to check, and it says "skipped"), 1 where there is
one and a step fails, or no kernel was checked at all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUDGET_SECONDS = 8 * 60.0
STEPS = ("kernels", "models", "sanitizer", "benchmarks")


@dataclass
class Step:
    """state: passed, failed, skipped. rows: what is shown and recorded; note: why, or what was counted."""

    name: str
    state: str = "skipped"
    note: str = ""
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)


def link_sources() -> None:
    """As `make setup` does: build/dev/svdqc, a tree of links, first on the path of this process and its children."""
    links = {
        "__init__.py": "runtime/python/__init__.py",
        "errors.py": "runtime/python/errors.py",
        "runtime": "runtime/python/runtime",
        "include": "runtime/include",
        **{name: name for name in ("compiler", "frontends", "templates")},
    }
    tree = ROOT / "build" / "dev" / "svdqc"
    tree.mkdir(parents=True, exist_ok=True)
    for name, target in links.items():
        if not (tree / name).exists():
            (tree / name).symlink_to(Path("../../..") / target)
    folders = [str(tree.parent), str(ROOT)]
    sys.path[:0] = folders
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])


def build_runtime() -> None:
    """libsvdq.so from this tree, unless `make setup` has built it."""
    import shutil
    import subprocess

    folder = ROOT / "build" / "runtime"
    sources = [*(ROOT / "runtime" / "src").iterdir(), *(ROOT / "runtime" / "include").iterdir()]
    library = folder / "libsvdq.so"
    if library.is_file() and library.stat().st_mtime >= max(s.stat().st_mtime for s in sources):
        return
    cmake = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
    configure = [
        cmake,
        "-S",
        str(ROOT / "runtime"),
        "-B",
        str(folder),
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    for command in (configure, [cmake, "--build", str(folder), "--parallel"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"gpu-check: building the runtime failed:\n{done.stdout}{done.stderr}")


def machine(found: dict[str, Any]) -> dict[str, Any]:
    """What a table of numbers means nothing without."""
    import subprocess

    facts: dict[str, Any] = {
        "gpu": found["gpus"][0]["name"],
        "compute_capability": found["gpus"][0]["compute_capability"],
        "driver_cuda": found["driver"],
        "python": platform.python_version(),
    }
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
        text = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30).stdout
        facts["driver"] = text.split("\n")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        facts["driver"] = "unknown"
    try:
        import torch

        facts["torch"] = torch.__version__
    except ImportError:
        facts["torch"] = "absent"
    try:
        from svdqc.compiler.targets.cuda_toolchain import find_nvcc

        facts["nvcc"] = find_nvcc().version
    except Exception as error:  # what is missing is said, and the rest goes on
        facts["nvcc"] = f"none: {error}"
    return facts


def run_step(step: Step, action: Callable[[Step], None], deadline: float) -> None:
    began = time.monotonic()
    if began > deadline:
        step.note = "no time left"
        return
    try:
        action(step)
    except Exception as error:  # one step's failure must not cost the others
        traceback.print_exc()
        step.state, step.note = "failed", f"{type(error).__name__}: {error}".split("\n")[0][:300]
    step.seconds = time.monotonic() - began


def show(steps: list[Step]) -> None:
    for step in steps:
        print(f"\n{step.name}: {step.state} ({step.seconds:.0f} s) {step.note}")
        if step.rows:
            columns = list(dict.fromkeys(key for row in step.rows for key in row))
            table = [columns, *([_text(row.get(c, "")) for c in columns] for row in step.rows)]
            widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
            for line in table:
                print("  " + "  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu-check.json")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--only", default=",".join(STEPS), help="steps, separated by commas")
    parser.add_argument(
        "--prepare", action="store_true", help="make the models for --arch, and stop"
    )
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument(
        "--models", default="", help="what to prepare: emoji,flux,…; all by default"
    )
    parser.add_argument("--seconds", type=float, default=BUDGET_SECONDS)
    options = parser.parse_args(arguments)
    link_sources()
    build_runtime()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.prepare:
        from tests.gpu import models

        models.prepare(
            options.folder, options.arch, options.models.split(",") if options.models else []
        )
        return 0

    from svdqc.runtime import gpus

    found = gpus()
    if not found["gpus"]:
        print(f"gpu-check: skipped: no NVIDIA GPU here ({found['reason']}).")
        return 0
    deadline = time.monotonic() + options.seconds
    facts = machine(found)
    print("\n".join(f"{key:20} {value}" for key, value in facts.items()), flush=True)
    from tests.gpu import benchmarks, kernels, models

    actions: dict[str, Callable[[Step], None]] = {
        "kernels": lambda step: kernels.check(step, options.folder, 0.5 * options.seconds),
        "models": lambda step: models.check(step, options.folder),
        "sanitizer": lambda step: models.sanitize(step, options.folder),
        "benchmarks": lambda step: benchmarks.measure(step, deadline),
    }
    wanted = [name for name in options.only.split(",") if name]
    steps = [Step(name) for name in STEPS if name in wanted]
    for step in steps:
        run_step(step, actions[step.name], deadline)
        record = {"machine": facts, "steps": [asdict(s) for s in steps]}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(
            json.dumps(record, indent=1) + "\n"
        )  # after each: nothing is lost
        print(f"{step.name}: {step.state} ({step.seconds:.0f} s) {step.note}", flush=True)
    show(steps)
    print(f"\nrecord: {options.output}")
    checked = any(s.state == "passed" for s in steps if s.name in ("kernels", "models"))
    return 0 if checked and all(s.state != "failed" for s in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
