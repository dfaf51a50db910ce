"""The command line as a user meets it: a process, its exit code, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
DEV = HERE.parents[1] / "build" / "dev"
COMMAND = (sys.executable, "-m", "svdqc.compiler.cli")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def environment(state: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment, with the trust list of this test and the kernel cache of this test run."""
    changed = {"PYTHONPATH": str(DEV), "XDG_STATE_HOME": str(state), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **changed, **(extra or {})}


class CommandLine:
    """`svdqc(...)` in the folder of tiny_models.py."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def __call__(
        self,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        preexec: Callable[[], None] | None = None,
        timeout: float = 300,
    ) -> Ran:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            cwd=HERE,
            env=environment(self.state, env),
            capture_output=True,
            text=True,
            timeout=timeout,
            preexec_fn=preexec,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def fails(self, *arguments: object, saying: tuple[str, ...], **options: object) -> str:
        """Run, require exit code 2, the parts of the message and no traceback; returns the message."""
        ran = self(*arguments, **options)  # type: ignore[arg-type]
        assert ran.code == 2, f"exit code {ran.code}\n{ran.out}\n{ran.err}"
        assert "Traceback" not in ran.err, ran.err
        message = ran.err.splitlines()[-1] if ran.err else ""
        for part in saying:
            assert part in ran.err, f"{part!r} is not in: {ran.err}"
        return message


@pytest.fixture(scope="session")
def svdqc(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def artifact(svdqc: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in int4, batch 1 to 8192."""
    path = tmp_path_factory.mktemp("artifact") / "mlp.svdq"
    # Outside of repeated blocks the rule keeps layers in 16 bit: ask for both.
    ran = svdqc(
        *("compile", "tiny_models:mlp", "-o", path, "--dynamic", "batch=1:8192"),
        *("--precision", "int4", "--quantize", "*"),
    )
    assert ran.code == 0, ran.err
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.npz"
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    np.savez(path, x=x)
    return path
