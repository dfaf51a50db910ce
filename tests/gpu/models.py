"""Whole artifacts on the GPU against their own graphs in PyTorch, and the same bits every time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
EMOJI = ROOT / "examples" / "emoji"
PRECISIONS = ("none", "int4")
ZOO = ("flux", "dit", "pixart", "unet")
REPEATS = 20
MAX_ERROR = {"none": 3e-3, "int4": 1e-2}  # rounding to bfloat16; a code that rounds the other way
PERTURBATIONS = 4
TIMES_PERTURBATION = 3.0
"""A 4-bit model may differ from its reference by so many times what one changed bit of its input does to the reference:
a value on the edge between two codes becomes another code, and attention carries that to other tokens."""


def prepare(folder: Path, arch: str, names: Sequence[str] = ()) -> None:
    """Compile the emoji model and the frontends' tiny ones for `arch`, with inputs and the references' outputs.

    Writes NAME.svdq, NAME.inputs.npz and NAME.golden.npz. Needs diffusers and nvcc, but no GPU.
    names: those to make; by default all.
    """
    import torch

    import svdqc

    for name, model, given in (m for m in [*_emoji(), *_zoo()] if not names or m[0] in names):
        for precision in PRECISIONS:
            path = folder / f"{name}-{precision}.svdq"
            recipe = svdqc.Recipe(precision=precision, rank=32 if name == "emoji" else 16)
            svdqc.compile(model, given, output=path, target=f"cuda:{arch}", recipe=recipe)
            reference = svdqc.reference(path)
            wanted = reference(**given)
            flat = {k: torch.as_tensor(v) for k, v in _flatten(given).items()}
            np.savez(path.with_suffix(".inputs.npz"), **{k: _numpy(v) for k, v in flat.items()})
            golden = {k: _numpy(v) for k, v in wanted.items()}
            bound = MAX_ERROR[precision]
            if precision != "none":
                bound = max(bound, TIMES_PERTURBATION * _sensitivity(reference, given, golden))
            np.savez(path.with_suffix(".golden.npz"), __bound=bound, **golden)
            print(f"prepared {path.name}: {path.stat().st_size} bytes", flush=True)


def _sensitivity(reference: Any, given: dict[str, Any], golden: dict[str, Any]) -> float:
    """The largest relative difference that changing one element of the first float input by one bit makes."""
    import torch

    name, tensor = next(
        (n, t) for n, t in given.items() if torch.is_tensor(t) and t.is_floating_point()
    )
    worst = 0.0
    for index in range(PERTURBATIONS):
        changed = tensor.clone().reshape(-1)
        changed[index * 7] *= 1.0 + 2 * float(torch.finfo(tensor.dtype).eps)
        outputs = reference(**{**given, name: changed.reshape(tensor.shape)})
        worst = max(worst, *(_relative(_numpy(outputs[n]), golden[n]) for n in golden))
    return worst


def _numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """float32 for every float type: .npz files hold no bfloat16."""
    array: np.ndarray[Any, Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def _flatten(given: dict[str, Any]) -> dict[str, Any]:
    from svdqc.runtime.tensors import flatten

    return {name: value for key, item in given.items() for name, value in flatten(item, key)}


def _emoji() -> list[tuple[str, Any, dict[str, Any]]]:
    sys.path.insert(0, str(EMOJI))
    from draw import MODEL, EagerModel
    from sampling import Words, model_inputs

    hidden, pooled = Words.open(MODEL).encode(["", "milky way"])
    latents = np.random.default_rng(0).standard_normal((2, 64, 48)).astype(np.float32)
    given = model_inputs(latents, hidden, pooled, 0.7, 8)
    return [("emoji", MODEL / "transformer", EagerModel(dtype="bfloat16").tensors(given))]


def _zoo() -> list[tuple[str, Any, dict[str, Any]]]:
    from tests.compiler.test_zoo import inputs, wide

    return [(name, wide(name), inputs(name)) for name in ZOO]


def check(step: Any, folder: Path) -> None:
    """Fill in a Step of check.py: a row per artifact."""
    from svdqc.runtime import gpus

    if not list(folder.glob("*.svdq")):
        if find_spec("diffusers") is None:
            step.note = "no diffusers here, and nothing prepared: run `tests/gpu/check.py --prepare` where it is"
            return
        target = gpus()["gpus"][0]["target"]
        prepare(folder, target.removeprefix("cuda:"))
    for path in sorted(folder.glob("*.svdq")):
        step.rows.append(_check_one(path))
    wrong = [row["model"] for row in step.rows if row["verdict"] != "passed"]
    step.state = "failed" if wrong else "passed"
    step.note = f"{len(step.rows)} artifacts" + (f"; wrong: {', '.join(wrong)}" if wrong else "")


def _check_one(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"model": path.stem, "verdict": "failed"}
    try:
        _compare(path, row)
    except Exception as error:  # the other models are checked all the same
        row["why"] = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    return row


def _compare(path: Path, row: dict[str, Any]) -> None:
    import svdqc
    from svdqc.compiler.cli.artifact_inputs import artifact_inputs

    golden = np.load(path.with_suffix(".golden.npz"))
    with svdqc.load(path, device="cuda:0", trust=True) as model:
        given = artifact_inputs(model, path.with_suffix(".inputs.npz"))
        first = model(**given)
        names = [name for name in golden.files if name != "__bound"]
        row["error"] = max(_relative(first[name], golden[name]) for name in names)
        row["bound"] = float(golden["__bound"])
        same = all(_same(first, model(**given)) for _ in range(REPEATS))
        row["launches"] = model.describe()["num_launches"]
        row["same_bits"] = same
        if find_spec("torch") is not None:
            row.update(_with_torch(model, given, first))
        passed = row["error"] <= row["bound"] and same and row.get("torch_same_bits", True)
        row["verdict"] = "passed" if passed else "failed"


def _same(one: Any, other: Any) -> bool:
    return all(np.asarray(one[n]).tobytes() == np.asarray(other[n]).tobytes() for n in one)


def _relative(value: Any, wanted: Any) -> float:
    found = np.asarray(value).astype(np.float64)
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))


def _with_torch(model: Any, given: dict[str, Any], first: Any) -> dict[str, Any]:
    """CUDA tensors in and out without a copy, on PyTorch's streams and in its graphs; the median time of a call."""
    import torch

    from svdqc.compiler.driver.calibration_files import to_torch

    if not torch.cuda.is_available():
        return {"torch": "without CUDA"}
    tensors = {name: to_torch(array).cuda() for name, array in given.items()}

    def bits(outputs: Any) -> bool:
        torch.cuda.synchronize()
        return all(
            outputs[n].cpu().view(torch.uint8).numpy().tobytes() == np.asarray(first[n]).tobytes()
            for n in first
        )

    same = bits(model(**tensors)) and bits(model(**tensors))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        same = same and bits(model(**tensors))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model(**tensors)
    graph.replay()
    same = same and bits(captured)
    seconds = []
    for _ in range(30):
        torch.cuda.synchronize()
        began = time.perf_counter()
        model(**tensors)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {"torch_same_bits": same, "call_us": 1e6 * float(np.median(seconds))}


def sanitize(step: Any, folder: Path) -> None:
    """The smallest artifact under compute-sanitizer: memory, and races in shared memory."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "/usr/local/cuda/bin/compute-sanitizer"
    )
    artifacts = sorted(folder.glob("*-int4.svdq"), key=lambda path: path.stat().st_size)
    if tool is None or not artifacts:
        step.note = "no compute-sanitizer here" if tool is None else "no artifact"
        return
    path = artifacts[0]
    script = [str(ROOT / "tests" / "gpu" / "run_once.py"), str(path)]
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable, *script]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
            )
            output, code = done.stdout + done.stderr, done.returncode
        except subprocess.TimeoutExpired as error:
            output, code = str(error.stdout or ""), -1
        (folder / f"{kind}.log").write_text(output)
        summary = [line.strip("= ") for line in output.splitlines() if "SUMMARY" in line]
        verdict = {0: "passed", 9: "failed", -1: "no time left"}.get(code, "did not run")
        step.rows.append(
            {
                "tool": kind,
                "model": path.stem,
                "verdict": verdict,
                "summary": " ".join(summary)[:120],
            }
        )
    verdicts = {row["verdict"] for row in step.rows}
    if "failed" in verdicts:
        step.state = "failed"
    elif "passed" in verdicts:
        step.state = "passed"
    step.note = path.name
