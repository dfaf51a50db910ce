"""A compilation that is stopped anywhere goes on from what it has finished, to the same bytes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.driver import block_models

import svdqc
from svdqc.compiler.driver import work_folder
from svdqc.compiler.driver.work_folder import StoredResults, WorkFolder
from svdqc.compiler.driver.work_path import WorkFolderBusy, WorkFolderUnwritable, work_path
from svdqc.compiler.passes import svdquant as svdquant_module
from svdqc.compiler.passes.parallel import in_parallel
from svdqc.compiler.quantize.linear import LinearSamples, quantize_linear
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.stored import from_stored, layer_key, tensor_digest, to_stored

RECIPE = Recipe(rank=8, refine_iterations=1)
NUM_GROUPS = 6


class Stopped(BaseException):
    """As KeyboardInterrupt, which would stop pytest."""


def compiled(output: Path, **options: Any) -> bytes:
    model, inputs = block_models.make()
    settings: dict[str, Any] = {
        "recipe": RECIPE,
        "target": "cpu:portable",
        "jobs": 1,
        "calibration": block_models.samples(),
        **options,
    }
    svdqc.compile(model, inputs, output=output, **settings)
    return output.read_bytes()


def stop_after(stage: str, steps: int) -> Callable[[svdqc.ProgressEvent], None]:
    def progress(event: svdqc.ProgressEvent) -> None:
        if event.stage == stage and event.done >= steps:
            raise Stopped

    return progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a compilation that nobody stops."""
    output = tmp_path_factory.mktemp("whole") / "model.svdq"
    made = compiled(output)
    assert list(output.parent.iterdir()) == [output]
    return made


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the layers that are quantized, not read back."""
    names: list[str] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        names.append(kwargs["name"])
        return quantize_linear(*args, **kwargs)

    monkeypatch.setattr(svdquant_module, "quantize_linear", counted)
    return names


@pytest.mark.parametrize("layers", [1, 4])
def test_stopped_at_a_layer__the_same_bytes(
    tmp_path: Path, whole: bytes, quantized: list[str], layers: int
) -> None:
    output = tmp_path / "model.svdq"
    with pytest.raises(Stopped):
        compiled(output, progress=stop_after("quantize", layers))
    first = list(quantized)
    assert list(tmp_path.iterdir()) == [work_path(output)]
    assert compiled(output, resume=True) == whole
    repeated = set(first[:layers]) & set(quantized[len(first) :])
    assert not repeated
    assert len(set(quantized)) == NUM_GROUPS
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(("stage", "steps"), [("calibrate", 3), ("write", 5)])
def test_stopped_elsewhere__the_same_bytes(
    tmp_path: Path, whole: bytes, quantized: list[str], stage: str, steps: int
) -> None:
    output = tmp_path / "model.svdq"
    with pytest.raises(Stopped):
        compiled(output, progress=stop_after(stage, steps))
    assert compiled(output, resume=True) == whole
    assert len(quantized) == NUM_GROUPS


def test_killed__the_same_bytes(tmp_path: Path, whole: bytes) -> None:
    """SIGKILL, by the process itself right after its third layer."""
    output = tmp_path / "model.svdq"
    script = f"""
import os, signal
from pathlib import Path
from tests.driver.test_resume import compiled
def progress(event):
    if event.stage == "quantize" and event.done >= 3:
        os.kill(os.getpid(), signal.SIGKILL)
compiled(Path({str(output)!r}), progress=progress)
"""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root / "build/dev"), str(root)])
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    work = work_path(output)
    kept = sorted(p.stat().st_mtime_ns for p in work.glob("*.safetensors"))
    assert len(kept) >= 3
    assert compiled(output, resume=True) == whole


def test_damaged_pieces_are_made_again(tmp_path: Path, whole: bytes, quantized: list[str]) -> None:
    output = tmp_path / "model.svdq"
    with pytest.raises(Stopped):
        compiled(output, progress=stop_after("plan", 1))
    pieces = sorted(work_path(output).glob("*.safetensors"), key=lambda p: p.stat().st_size)
    for at, piece in enumerate(pieces):
        content = bytearray(piece.read_bytes())
        if at % 3 == 0:
            content[-1] ^= 1
        elif at % 3 == 1:
            del content[len(content) // 2 :]
        piece.write_bytes(content)
    (work_path(output) / "half.partial").write_bytes(b"half")
    assert compiled(output, resume=True) == whole
    assert len(quantized) > NUM_GROUPS


def test_without_resume__everything_is_done_again(
    tmp_path: Path, whole: bytes, quantized: list[str]
) -> None:
    output = tmp_path / "model.svdq"
    with pytest.raises(Stopped):
        compiled(output, progress=stop_after("quantize", NUM_GROUPS))
    assert compiled(output) == whole
    assert len(quantized) == 2 * NUM_GROUPS


def test_another_recipe__nothing_is_taken_over(tmp_path: Path, quantized: list[str]) -> None:
    output, other = tmp_path / "model.svdq", tmp_path / "other.svdq"
    with pytest.raises(Stopped):
        compiled(output, progress=stop_after("quantize", NUM_GROUPS))
    recipe = Recipe(rank=8, refine_iterations=0)
    assert compiled(output, resume=True, recipe=recipe) == compiled(other, recipe=recipe)
    assert len(quantized) == 3 * NUM_GROUPS


def test_more_jobs__and_nothing_to_resume__the_same_bytes(tmp_path: Path, whole: bytes) -> None:
    assert compiled(tmp_path / "model.svdq", jobs=3, resume=True) == whole


def test_full_disk__says_so_and_goes_on(
    tmp_path: Path, whole: bytes, quantized: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space for the fifth layer."""
    output = tmp_path / "model.svdq"
    saved = work_folder.save_file

    def save(tensors: Any, path: str, metadata: Any) -> None:
        if "w_codes" in tensors and len(quantized) == 5:
            Path(path).write_bytes(b"as far as it went")
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(tensors, path, metadata)

    with monkeypatch.context() as full:
        full.setattr(work_folder, "save_file", save)
        with pytest.raises(WorkFolderUnwritable, match="--resume"):
            compiled(output)
    assert not list(work_path(output).glob("*.partial"))
    assert compiled(output, resume=True) == whole
    assert len(quantized) == NUM_GROUPS + 1


# --- the parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int4", "nvfp4", "fp8", "w4a16"])
def test_a_quantized_layer__stored_and_back(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    weight, tokens = torch.randn(48, 64), torch.randn(160, 64) + 0.5
    layer = quantize_linear(weight, LinearSamples(tokens), Recipe(precision=precision, rank=4))
    results = StoredResults(WorkFolder(tmp_path / "model.svdq"))
    results.save("key", layer)
    back = results.load("key")
    assert back.activation == layer.activation
    assert (back.metrics, back.notes) == (layer.metrics, layer.notes)
    assert to_stored(back)[1] == to_stored(layer)[1]
    tensors, text = to_stored(layer)
    assert len(tensors) >= 5
    for copy in (back, from_stored(tensors, text)):
        for field, tensor in tensors.items():
            assert tensor_digest(getattr(copy, field)) == tensor_digest(tensor), field
    spilled = results.spill("key", "layer.w_codes", back.w_codes)
    assert torch.equal(spilled().to(torch.float32), layer.w_codes.to(torch.float32))
    other = torch.arange(5)
    assert torch.equal(results.spill("key", "layer.other", other)(), other)


def test_layer_key__of_everything_that_matters() -> None:
    weight, samples, recipe = torch.ones(2, 64), LinearSamples(torch.ones(3, 64)), Recipe()
    keys = [
        layer_key(["a"], [weight], None, recipe, None, "cpu"),
        layer_key(["a"], [weight], samples, recipe, None, "cpu"),
        layer_key(["a"], [weight * 2], None, recipe, None, "cpu"),
        layer_key(["a"], [weight.to(torch.bfloat16)], None, recipe, None, "cpu"),
        layer_key(["a"], [weight.reshape(1, 128)], None, recipe, None, "cpu"),
        layer_key(["b"], [weight], None, recipe, None, "cpu"),
        layer_key(["a"], [weight], None, Recipe(rank=3), None, "cpu"),
        layer_key(["a"], [weight], None, recipe, 0.5, "cpu"),
        layer_key(["a"], [weight], None, recipe, None, "cuda"),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == layer_key(["a"], [weight.clone()], None, recipe, None, "cpu")


def test_work_folder__one_compilation_at_a_time(tmp_path: Path) -> None:
    first = WorkFolder(tmp_path / "model.svdq")
    first.write("piece", {"x": torch.ones(2)})
    with pytest.raises(WorkFolderBusy, match="another compilation"):
        WorkFolder(tmp_path / "model.svdq")
    first.close()
    assert WorkFolder(tmp_path / "model.svdq", resume=True).has("piece")


def test_work_folder__opened_by_several_threads_at_once(tmp_path: Path) -> None:
    for number in range(20):
        work = WorkFolder(tmp_path / f"{number}.svdq")
        start = threading.Barrier(4)

        def write(name: int, work: WorkFolder = work, start: threading.Barrier = start) -> None:
            start.wait()
            work.write(f"piece-{name}", {"x": torch.ones(2)}, durable=False)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        assert all(work.has(f"piece-{name}") for name in range(4))


def test_work_folder__shared_memory_and_empty_tensors(tmp_path: Path) -> None:
    work, x = WorkFolder(tmp_path / "model.svdq"), torch.arange(6.0)
    work.write("piece", {"a": x, "b": x, "c": x.reshape(2, 3).T, "d": x[:0]}, "text")
    tensors, text = work.read("piece")
    assert text == "text"
    assert torch.equal(tensors["b"], x)
    assert torch.equal(tensors["c"], x.reshape(2, 3).T)
    assert tensors["d"].shape == (0,)


def test_in_parallel__largest_first_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svdqc.compiler.passes.parallel.free_memory", lambda: 200)
    held: list[int] = []
    begun: list[int] = []
    most = 0

    def work(size: int, check: Callable[[str], None]) -> int:
        nonlocal most
        begun.append(size)
        held.append(size)
        most = max(most, sum(held) if len(held) > 1 else 0)
        check("stage")
        held.remove(size)
        return 2 * size

    sizes = [10, 90, 60, 150, 30, 40]
    done = dict(in_parallel(sizes, lambda size: size, work, 3))
    assert done == {size: 2 * size for size in sizes}
    assert most <= 100  # half of the free memory; 150 runs alone
    assert begun[0] == 150


def test_in_parallel__a_failure_stops_the_rest() -> None:
    begun: list[int] = []

    def work(number: int, check: Callable[[str], None]) -> int:
        begun.append(number)
        if number == 50:
            raise ValueError("fifty")
        return number

    with pytest.raises(ValueError, match="fifty"):
        list(in_parallel(range(1, 51), lambda n: n, work, 1))
    assert len(begun) < 50
