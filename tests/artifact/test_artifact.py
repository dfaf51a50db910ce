"""Writing and reading artifacts: what goes in comes out, and nothing partial is ever left."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime import tiny

from svdqc.compiler.artifact.errors import (
    AlteredArtifactError,
    ArtifactContentError,
    ArtifactNotFoundError,
    ArtifactWriteError,
    DiskFullError,
)
from svdqc.compiler.artifact.format import SECTION_ALIGNMENT, TENSOR_ALIGNMENT, Variant
from svdqc.compiler.artifact.read import read_artifact
from svdqc.compiler.artifact.write import ArtifactTensor, WrittenArtifact, write_artifact
from svdqc.compiler.plan.errors import PlanError

CODE = b"\x7fELF not really"


def array_tensor(name: str, array: np.ndarray, dtype: str, segment: str = "") -> ArtifactTensor:
    return ArtifactTensor(
        name, dtype, array.shape, "row_major", array.nbytes, lambda: array, segment
    )


def write(path: Path, extra: list[ArtifactTensor] | None = None, **changes: Any) -> WrittenArtifact:
    options: dict[str, Any] = {
        "name": "model",
        "producer": "svdqc tests",
        "tensors": [*tiny.tensors(), *(extra or [])],
        "variants": [Variant("cpu:portable", (), CODE, tiny.make_plan(), {"flags": ["-O2"]})],
        "graph": b'{"nodes":[1]}',
        "quantization": {"precision": "int4", "rank": 32},
        "source_digest": "ab" * 32,
        "meta": {"note": "ü\x7f\u2028\U0001f600", "half": 0.5, "tiny": 1e-30, "none": None},
    }
    return write_artifact(path, **{**options, **changes})


def test_artifact__round_trip(tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((5, 7), dtype=np.float32)
    bits = np.arange(12, dtype=np.uint16).reshape(3, 4)
    codes = ArtifactTensor("codes", "i4", (16, 16), "vnni_16x4", 128, lambda: bytes(range(128)))
    given = [array_tensor("w", w, "f32"), array_tensor("b", bits, "bf16"), codes]
    written = write(tmp_path / "a.svdq", given)
    artifact = read_artifact(tmp_path / "a.svdq")
    assert written.num_bytes == artifact.num_bytes == (tmp_path / "a.svdq").stat().st_size
    np.testing.assert_array_equal(artifact.tensor("w"), w)
    np.testing.assert_array_equal(artifact.tensor("b"), bits)
    assert artifact.tensor("codes").tobytes() == bytes(range(128))
    assert artifact.tensors["codes"].dtype == "i4"
    assert artifact.graph() == b'{"nodes":[1]}'
    assert artifact.quantization == {"precision": "int4", "rank": 32}
    assert artifact.meta["note"] == "ü\x7f\u2028\U0001f600"
    (variant,) = artifact.variants
    assert artifact.code(variant) == CODE
    assert artifact.plan(variant) == tiny.make_plan()
    assert variant.provenance == {"flags": ["-O2"]}
    assert (variant.trust_digest,) == written.trust_digests
    assert artifact.to_variant(variant).plan == tiny.make_plan()


def test_artifact__same_inputs_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.svdq")
    write(tmp_path / "b.svdq")
    assert (tmp_path / "a.svdq").read_bytes() == (tmp_path / "b.svdq").read_bytes()


def test_artifact__alignment(tmp_path: Path) -> None:
    odd = [array_tensor(f"t{i}", np.full(i + 1, i, np.uint8), "u8") for i in range(9)]
    write(tmp_path / "a.svdq", odd)
    artifact = read_artifact(tmp_path / "a.svdq")
    assert all(s.offset % SECTION_ALIGNMENT == 0 for s in artifact.sections)
    assert all(t.offset % TENSOR_ALIGNMENT == 0 for t in artifact.tensors.values())
    for i in range(9):
        np.testing.assert_array_equal(artifact.tensor(f"t{i}"), np.full(i + 1, i, np.uint8))


def test_artifact__equal_tensors_are_stored_once(tmp_path: Path) -> None:
    big = np.ones(100_000, np.float32)
    one = write(tmp_path / "one.svdq", [array_tensor("a", big, "f32")])
    two = write(tmp_path / "two.svdq", [array_tensor(n, big, "f32", n) for n in "abcdef"])
    assert two.num_bytes - one.num_bytes < SECTION_ALIGNMENT
    artifact = read_artifact(tmp_path / "two.svdq")
    np.testing.assert_array_equal(artifact.tensor("f"), big)


def test_artifact__segments_are_sections(tmp_path: Path) -> None:
    given = [
        array_tensor(f"t{i}", np.full(8, i, np.uint8), "u8", f"block{i // 2}") for i in range(6)
    ]
    write(tmp_path / "a.svdq", given)
    sections = read_artifact(tmp_path / "a.svdq").sections
    segments = [s.segment for s in sections if s.kind == "weights"]
    assert segments[-3:] == ["block0", "block1", "block2"]


def test_artifact__empty_and_no_tensors(tmp_path: Path) -> None:
    empty = np.zeros((0, 3), np.float32)
    write(
        tmp_path / "a.svdq",
        [array_tensor("e", empty, "f32", "own"), array_tensor("f", empty, "f32")],
    )
    assert read_artifact(tmp_path / "a.svdq").tensor("f").shape == (0, 3)


def test_artifact__loads_one_tensor_at_a_time(tmp_path: Path) -> None:
    size = 8 << 20

    def fresh(seed: int) -> Callable[[], np.ndarray]:
        return lambda: np.random.default_rng(seed).integers(0, 255, size, np.uint8)

    given = [ArtifactTensor(f"t{i}", "u8", (size,), "row_major", size, fresh(i)) for i in range(8)]
    tracemalloc.start()
    write(tmp_path / "a.svdq", given)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size


def interrupted() -> bytes:
    raise KeyboardInterrupt


def failing() -> bytes:
    raise RuntimeError("no such weight")


@pytest.mark.parametrize(
    ("load", "error"), [(interrupted, KeyboardInterrupt), (failing, RuntimeError)]
)
def test_write__leaves_nothing_partial(
    tmp_path: Path, load: Callable[[], bytes], error: type[BaseException]
) -> None:
    (tmp_path / "a.svdq").write_bytes(b"the old file")
    with pytest.raises(error):
        write(tmp_path / "a.svdq", [ArtifactTensor("t", "u8", (9,), "row_major", 9, load)])
    assert os.listdir(tmp_path) == ["a.svdq"]
    assert (tmp_path / "a.svdq").read_bytes() == b"the old file"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_write__full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    room = 50_000
    real = os.write

    def limited(fd: int, data: Any) -> int:
        nonlocal room
        if room < len(data):
            raise OSError(code, "no space")
        room -= len(data)
        return real(fd, data)

    monkeypatch.setattr(os, "write", limited)
    big = array_tensor("big", np.arange(1 << 20, dtype=np.uint8), "u8")
    with pytest.raises(DiskFullError, match=r"needs 1\d{6} bytes of disk, \d+ are free"):
        write(tmp_path / "a.svdq", [big])
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_write__full_disk_at_the_very_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError):
        write(tmp_path / "a.svdq")
    assert os.listdir(tmp_path) == []


def test_write__no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactWriteError, match="No such file"):
        write(tmp_path / "nowhere" / "a.svdq")


def test_write__onto_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.svdq").mkdir()
    with pytest.raises(ArtifactWriteError):
        write(tmp_path / "a.svdq")
    assert os.listdir(tmp_path) == ["a.svdq"]


def test_write__respects_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "a.svdq")
    finally:
        os.umask(before)
    assert (tmp_path / "a.svdq").stat().st_mode & 0o777 == 0o640


def other_ports() -> Variant:
    plan = tiny.make_plan()
    ports = (replace(plan.inputs[0], name="y"), plan.inputs[1])
    return Variant("cpu:b", (), CODE, replace(plan, inputs=ports))


def good_variant() -> Variant:
    return Variant("cpu:a", (), CODE, tiny.make_plan())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": [*tiny.tensors(), tiny.tensors()[0]]}, "'weight': the tensor is given twice"),
        (
            {"tensors": [replace(tiny.tensors()[0], shape=(5,)), tiny.tensors()[1]]},
            "16 bytes for f32",
        ),
        (
            {"tensors": [replace(tiny.tensors()[0], load=lambda: b"x"), tiny.tensors()[1]]},
            "1 bytes, announced were 16",
        ),
        ({"variants": []}, "at least one target"),
        (
            {"variants": [good_variant(), other_ports()]},
            "'cpu:b': its inputs, outputs or dims differ",
        ),
        ({"variants": [replace(good_variant(), code=b"")]}, "no code"),
        ({"meta": {"x": float("nan")}}, "not JSON"),
        ({"meta": {"x": object()}}, "not JSON"),
        ({"meta": {"x": 2**64}}, "64 bits"),
        ({"meta": {"x": "\ud800"}}, "not JSON"),
        ({"meta": {"x": "y" * (17 << 20)}}, "at most 16777216"),
    ],
)
def test_write__rejects(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactContentError, match=message):
        write(tmp_path / "a.svdq", **changes)
    assert os.listdir(tmp_path) == []


def test_write__proves_the_plan_first(tmp_path: Path) -> None:
    bad = replace(tiny.make_plan(), arena_bytes=0)
    with pytest.raises(PlanError):
        write(tmp_path / "a.svdq", variants=[replace(good_variant(), plan=bad)])
    assert os.listdir(tmp_path) == []


def test_read__missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError):
        read_artifact(tmp_path / "a.svdq")


def test_read__weights_unchecked_on_request(tmp_path: Path) -> None:
    write(tmp_path / "a.svdq")
    good = read_artifact(tmp_path / "a.svdq")
    offset = good.tensors["weight"].offset
    data = bytearray((tmp_path / "a.svdq").read_bytes())
    data[offset] ^= 1
    (tmp_path / "b.svdq").write_bytes(data)
    with pytest.raises(AlteredArtifactError, match="weights section"):
        read_artifact(tmp_path / "b.svdq")
    assert read_artifact(tmp_path / "b.svdq", check_weights=False).tensor("weight").shape == (4,)
