"""run, bench, inspect and doctor with a GPU, through the fake driver in a process of their own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import COMMAND, environment
from tests.runtime import tiny
from tests.runtime.cuda import fake, tiny_gpu

Ran = subprocess.CompletedProcess[str]
Command = Callable[..., Ran]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpu.build_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def command(kernels: Path, tmp_path: Path) -> Command:
    """Run svdqc with a fake GPU of compute capability 8.6 in the test's folder."""
    tiny_gpu.write(tmp_path / "tiny.svdq")
    gpu = {
        "SVDQ_CUDA_DRIVER": str(fake.build_driver()),
        "SVDQ_FAKE_CUDA": f"devices=8.6 kernels={kernels}",
    }

    def run(*arguments: str, driver: bool = True) -> Ran:
        extra = gpu if driver else {"SVDQ_CUDA_DRIVER": "/nowhere/libcuda.so.1"}
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=tmp_path,
            env=environment(tmp_path / "state", extra),
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_run__on_a_gpu(command: Command, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 8), dtype=np.float32)
    np.savez(tmp_path / "in.npz", **{"x": x, "gate.0": np.zeros(3, np.int64)})
    arguments = ("run", "tiny.svdq", "--inputs", "in.npz", "-o", "out.npz", "--trust")
    for device in ("cuda:0", "auto"):
        done = command(*arguments, "--device", device)
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["sample"], tiny.reference(x)[0])
    refused = command(*arguments, "--device", "cuda:0", driver=False)
    assert refused.returncode == 2
    assert "no NVIDIA driver" in refused.stderr


def test_bench__on_a_gpu(command: Command) -> None:
    done = command("bench", "tiny.svdq", "--trust", "--device", "cuda:0", "-n", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["kernel"] for row in json.loads(done.stdout)["profile"]]


def test_inspect__shows_which_gpus_fit(command: Command) -> None:
    done = command("inspect", "tiny.svdq", "--json")
    assert done.returncode == 0, done.stderr
    assert '"cuda:0"' in done.stdout


@pytest.mark.parametrize(("driver", "code"), [(True, 0), (False, 1)])
def test_doctor__of_a_device(command: Command, driver: bool, code: int) -> None:
    done = command("doctor", "--device", "cuda:0", "--json", driver=driver)
    assert done.returncode == code, done.stderr
    told = json.loads(done.stdout)
    (finding,) = (f for f in told["findings"] if f["topic"] == "device")
    if driver:
        assert finding["found"].startswith(
            "cuda:0: Fake GPU 0, compute capability 8.6, driver for CUDA 13.0"
        )
        assert finding["remedy"] == "compile for cuda:sm_86"
    else:
        assert "no NVIDIA driver" in finding["found"]


def test_doctor__of_a_device_that_is_none(command: Command) -> None:
    done = command("doctor", "--device", "tpu")
    assert done.returncode == 2
    assert "'cpu', 'cuda:0'" in done.stderr
