"""No compiler, no space, no permission, Ctrl-C: the right exit code, a sentence, and no partial file."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import COMMAND, HERE, CommandLine, environment


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "model.svdq"


def fresh_cache(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


def test_no_compiler(svdqc: CommandLine, output: Path, tmp_path: Path) -> None:
    env = {**fresh_cache(tmp_path), "PATH": str(tmp_path), "CXX": ""}
    svdqc.fails("compile", "tiny_models:mlp", "-o", output, env=env, saying=("g++", "CXX"))
    assert list(output.parent.iterdir()) == []


def test_full_disk__compile(svdqc: CommandLine, output: Path) -> None:
    """The kernel refuses to let any file grow beyond 4 MB; the artifact has 8 MB of weights."""

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))

    svdqc.fails(
        *("compile", "tiny_models:large", "-o", output, "--precision", "none"),
        preexec=limit_file_size,
        saying=("model.svdq",),
    )
    assert list(output.parent.iterdir()) == []


def test_full_disk__run(svdqc: CommandLine, artifact: Path, output: Path, tmp_path: Path) -> None:
    """2 MB of outputs where no file may grow beyond 1 MB."""

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    inputs, outputs = tmp_path / "inputs.npz", output.with_name("outputs.npz")
    np.savez(inputs, x=np.zeros((8192, 64), np.float32))
    svdqc.fails(
        *("run", artifact, "-i", inputs, "-o", outputs),
        preexec=limit_file_size,
        saying=("outputs.npz", "space"),
    )
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("place", ["/nowhere/model.svdq", "/dev/full", "."])
def test_output__that_cannot_be_written(svdqc: CommandLine, place: str) -> None:
    svdqc.fails("compile", "tiny_models:mlp", "-o", place, saying=("output", place))


def listen_to_interrupts() -> None:
    """A test run in the background of a shell ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_compile__leaves_nothing(
    svdqc: CommandLine, output: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    """Stopped at several moments; the process group gets the signal, as from a terminal."""
    codes = []
    for seconds in (1.5, 4.0):
        process = subprocess.Popen(
            [*COMMAND, "compile", "tiny_models:large", "-o", str(output)],
            cwd=HERE,
            env=environment(svdqc.state, fresh_cache(tmp_path)),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            preexec_fn=listen_to_interrupts,
        )
        time.sleep(seconds)
        finished = process.poll() is not None
        if not finished:
            os.killpg(process.pid, stop)
        _, told = process.communicate(timeout=60)
        if finished:
            output.unlink(missing_ok=True)
            continue
        codes.append(process.returncode)
        expected = 130 if stop == signal.SIGINT else 143
        assert process.returncode == expected, told
        assert "Traceback" not in told, told
        assert list(output.parent.iterdir()) == [], told
    assert codes, "every compilation had finished before it was stopped"
