"""Each command doing its job on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from tests.cli.conftest import DEV, HERE, CommandLine, environment

from svdqc.compiler.cli.app import COMMANDS


def test_help__names_every_command_and_each_explains_itself(svdqc: CommandLine) -> None:
    ran = svdqc("--help")
    assert ran.code == 0
    for name in COMMANDS:
        assert name in ran.out
        told = svdqc(name, "--help")
        assert told.code == 0, told.err
        assert len(told.out.splitlines()) > 8, f"{name} --help says too little"


def test_compile__tells_what_it_wrote(svdqc: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "mlp.svdq"
    ran = svdqc("compile", "tiny_models:mlp", "-o", path, "--rank", "16", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["num_bytes"] == path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == ["mlp.svdq"]


def test_compile__quiet_says_nothing(svdqc: CommandLine, tmp_path: Path) -> None:
    ran = svdqc("compile", "tiny_models:mlp", "-o", tmp_path / "mlp.svdq", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_compile__calibration_folder(svdqc: CommandLine, tmp_path: Path) -> None:
    dice = np.random.default_rng(1)
    folder = tmp_path / "samples"
    folder.mkdir()
    for i in range(4):
        np.savez(folder / f"{i}.npz", x=dice.standard_normal((4, 64)).astype(np.float32))
    path = tmp_path / "mlp.svdq"
    ran = svdqc(
        *("compile", "tiny_models:mlp", "-o", path, "--calibration", folder, "--precision", "int4")
    )
    assert ran.code == 0, ran.err


def test_inspect__model_and_artifact(svdqc: CommandLine, artifact: Path) -> None:
    for subject in ("tiny_models:mlp", artifact):
        ran = svdqc("inspect", subject)
        assert ran.code == 0, ran.err
        assert ran.out.strip()
        told = svdqc("inspect", subject, "--json")
        assert isinstance(json.loads(told.out), dict)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_run__writes_the_outputs(
    svdqc: CommandLine, artifact: Path, inputs: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"outputs{suffix}"
    ran = svdqc("run", artifact, "-i", inputs, "-o", output, "--json")
    assert ran.code == 0, ran.err
    (shape,) = json.loads(ran.out)["shapes"].values()
    assert shape == [4, 64]
    assert output.is_file()


def test_bench__ratio_to_pytorch(svdqc: CommandLine, artifact: Path, inputs: Path) -> None:
    ran = svdqc(
        *("bench", artifact, "-i", inputs, "--runs", 5, "--vs-model", "tiny_models:mlp", "--json")
    )
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert set(told["latency_ms"]) == {"svdqc", "PyTorch"}
    assert told["times_as_fast_as_pytorch"] > 0
    assert sum(row["launches"] for row in told["profile"]) > 0
    assert svdqc("bench", artifact, "--runs", 2, "--launches").code == 0


def test_compare__reference_and_model(svdqc: CommandLine, artifact: Path, inputs: Path) -> None:
    # The bound of the project's acceptance for a whole int4 model against its reference.
    ran = svdqc("compare", artifact, "-i", inputs, "--max-error", "1e-2", "--json")
    assert ran.code == 0, ran.err + ran.out
    assert json.loads(ran.out)["passed"] is True
    # Four bits cost more than float rounding: against the float model the same bound of 1e-6 must fail.
    strict = svdqc(
        *("compare", artifact, "-i", inputs, "--model", "tiny_models:mlp", "--max-error", "1e-6")
    )
    assert strict.code == 1
    assert "above" in strict.err


def test_verify__whole_and_sound(svdqc: CommandLine, artifact: Path) -> None:
    ran = svdqc("verify", artifact)
    assert ran.code == 0, ran.err
    assert "sound" in ran.out


def test_doctor__this_machine_runs_artifacts(svdqc: CommandLine) -> None:
    ran = svdqc("doctor", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["runs"] is True
    assert {f["state"] for f in told["findings"]} <= {"ok", "note", "missing"}
    assert all(f["remedy"] for f in told["findings"] if f["state"] == "missing")


def test_runtime_only__runs_benches_verifies_inspects(
    svdqc: CommandLine, artifact: Path, inputs: Path, tmp_path: Path
) -> None:
    """A machine with numpy and click and no other package: what needs the compiler says so, the rest works."""
    site = tmp_path / "site"
    site.mkdir()
    for package in (np, click):
        folder = Path(package.__file__ or "").parent
        (site / folder.name).symlink_to(folder)
        libraries = folder.with_name(f"{folder.name}.libs")
        if libraries.is_dir():
            (site / libraries.name).symlink_to(libraries)
    env = environment(svdqc.state, {"PYTHONPATH": f"{DEV}:{site}"})

    def bare(*arguments: object) -> tuple[int, str]:
        command = [sys.executable, "-S", "-m", "svdqc.compiler.cli", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=HERE, env=env, capture_output=True, text=True, check=False, timeout=120
        )
        return done.returncode, done.stdout + done.stderr

    output = tmp_path / "outputs.safetensors"
    for arguments in (
        ("run", artifact, "-i", inputs, "-o", output),
        ("bench", artifact, "--runs", 2),
        ("verify", artifact),
        ("inspect", artifact),
        ("doctor",),
    ):
        code, told = bare(*arguments)
        assert code == 0, told
    for arguments in (
        ("compile", "tiny_models:mlp", "-o", tmp_path / "x.svdq"),
        ("inspect", "tiny_models:mlp"),
        ("compare", artifact),
        ("bench", artifact, "--vs-model", "tiny_models:mlp"),
    ):
        code, told = bare(*arguments)
        assert code == 2, told
        assert "svdqc[compile]" in told, told
