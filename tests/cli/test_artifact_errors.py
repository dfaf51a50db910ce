"""Artifacts and inputs that cannot be run: exit code 2, and a sentence with place, value and remedy."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import CommandLine

READERS = ("verify", "inspect", "bench")


def altered_copy(artifact: Path, folder: Path, change: bytes, offset: int) -> Path:
    data = bytearray(artifact.read_bytes())
    data[offset : offset + len(change)] = change
    path = folder / "changed.svdq"
    path.write_bytes(data)
    return path


def test_missing_artifact(svdqc: CommandLine) -> None:
    for command in READERS:
        svdqc.fails(command, "/nowhere/model.svdq", saying=("/nowhere/model.svdq", "No such file"))


def test_not_an_artifact(svdqc: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "text.svdq"
    path.write_text("not an artifact " * 1000)
    for command in READERS:
        svdqc.fails(command, path, saying=("text.svdq", "not an svdqc artifact"))


@pytest.mark.parametrize("kept", [0, 7, 63, 64, 5000, -1])
def test_truncated(svdqc: CommandLine, artifact: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "short.svdq"
    path.write_bytes(artifact.read_bytes()[:kept])
    for command in READERS:
        svdqc.fails(command, path, saying=("short.svdq",))


@pytest.mark.parametrize("where", [0.001, 0.3, 0.7, 0.999])
def test_altered(svdqc: CommandLine, artifact: Path, tmp_path: Path, where: float) -> None:
    data = artifact.read_bytes()
    offset = int(where * len(data))
    path = altered_copy(artifact, tmp_path, bytes([data[offset] ^ 0x40]), offset)
    svdqc.fails("verify", path, saying=("changed.svdq",))
    svdqc.fails("bench", path, saying=("changed.svdq",))


def test_newer(svdqc: CommandLine, artifact: Path, tmp_path: Path) -> None:
    path = altered_copy(artifact, tmp_path, struct.pack("<H", 99), 8)
    for command in READERS:
        svdqc.fails(command, path, saying=("99",))


def test_code_from_elsewhere_needs_trust(
    svdqc: CommandLine, artifact: Path, inputs: Path, tmp_path: Path
) -> None:
    elsewhere = {"XDG_STATE_HOME": str(tmp_path / "another-machine")}
    arguments = ("run", artifact, "-i", inputs, "-o", tmp_path / "out.npz")
    svdqc.fails(*arguments, env=elsewhere, saying=("trust",))
    assert not (tmp_path / "out.npz").exists()
    assert svdqc(*arguments, "--trust", env=elsewhere).code == 0


@pytest.mark.parametrize(
    ("tensors", "saying"),
    [
        ({"z": np.zeros((4, 64), np.float32)}, ("z", "x")),
        ({}, ("x",)),
        ({"x": np.zeros((4, 64), np.float64)}, ("x", "f64", "f32")),
        ({"x": np.zeros((4, 65), np.float32)}, ("x", "65", "64")),
        ({"x": np.zeros((64,), np.float32)}, ("x", "64")),
        ({"x": np.zeros((8193, 64), np.float32)}, ("batch", "8193", "8192")),
    ],
    ids=["name", "absent", "dtype", "shape", "rank", "dim_out_of_range"],
)
def test_wrong_input(
    svdqc: CommandLine,
    artifact: Path,
    tmp_path: Path,
    tensors: dict[str, np.ndarray],
    saying: tuple[str, ...],
) -> None:
    path, output = tmp_path / "inputs.npz", tmp_path / "outputs.npz"
    np.savez(path, **tensors)  # type: ignore[arg-type]
    svdqc.fails("run", artifact, "-i", path, "-o", output, saying=saying)
    assert not output.exists()
