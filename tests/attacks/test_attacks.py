"""Hostile artifacts: each is refused by both readers with the error that names it, under sanitizers."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.attacks.craft import STATUS, Craft, canonical
from tests.attacks.table import ATTACKS, RUNTIME_ONLY
from tests.runtime import tiny

from svdqc.compiler.artifact.read import read_artifact
from svdqc.errors import SvdqcError


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    tiny.write(folder / "good.svdq", tiny.compile_code(folder))
    return folder / "good.svdq"


@pytest.fixture(scope="session")
def answers(
    probe: Path, good: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, str, Path]]:
    """Every attack, opened by one probe: name → (status, message, file)."""
    folder = tmp_path_factory.mktemp("attacks")
    files = {"untouched": folder / "untouched.svdq"}
    files["untouched"].write_bytes(Craft.of(good).build())
    for name, (_, attack) in ATTACKS.items():
        files[name] = folder / f"{name}.svdq"
        files[name].write_bytes(attack(Craft.of(good)))
    done = subprocess.run(
        [probe, "open", *files.values()], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    lines = [line.split("\t", 1) for line in done.stdout.splitlines()]
    return {
        name: (STATUS[int(status)], message, file)
        for (name, file), (status, message) in zip(files.items(), lines, strict=True)
    }


def read_everything(file: Path) -> None:
    artifact = read_artifact(file)
    for variant in artifact.variants:
        artifact.plan(variant)


def test_attacks__untouched_is_accepted(answers: dict[str, tuple[str, str, Path]]) -> None:
    status, message, file = answers["untouched"]
    assert status == "OK", message
    artifact = read_artifact(file)
    assert artifact.plan(artifact.variants[0]) == tiny.make_plan()


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks__runtime_names(name: str, answers: dict[str, tuple[str, str, Path]]) -> None:
    status, message, file = answers[name]
    assert status == ATTACKS[name][0], message
    assert message.startswith("["), message
    assert str(file) in message, message
    assert message.endswith("."), message


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in RUNTIME_ONLY])
def test_attacks__python_reader_refuses(
    name: str, answers: dict[str, tuple[str, str, Path]]
) -> None:
    with pytest.raises(SvdqcError):
        read_everything(answers[name][2])


def test_attacks__fuzz_never_crashes(probe: Path, good: Path) -> None:
    done = subprocess.run(
        [probe, "fuzz", good, "20240607", "12"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    tried = [int(line.split()[0]) for line in done.stdout.splitlines()]
    assert len(tried) == 4
    assert min(tried) > 300, f"too few mutations to mean anything: {tried}"


def test_attacks__canonical_json_round_trips(good: Path) -> None:
    """The table above changes one thing at a time only if nothing else changes by taking the file apart."""
    craft = Craft.of(good)
    assert canonical(craft.manifest) in good.read_bytes()


def test_attacks__calls_that_break_the_rules(probe: Path, good: Path) -> None:
    done = subprocess.run(
        [probe, "calls", good],
        env={**os.environ, "SVDQ_CUDA_DRIVER": "/nowhere/libcuda.so.1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]


def test_sha256__as_this_cpu_does_it_and_portably(probe: Path, tmp_path: Path) -> None:
    data = np.random.default_rng(5).integers(0, 256, 10_000, np.uint8).tobytes()
    (tmp_path / "data").write_bytes(data)
    sizes = [*range(130), 1000, 9_999, 10_000]  # every length of the padding, and many blocks
    command = [str(probe), "sha256", str(tmp_path / "data"), *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = [hashlib.sha256(data[:size]).hexdigest() for size in sizes]
    assert done.stdout.splitlines() == [f"{digest} {digest}" for digest in expected]
