"""What `svdqc doctor` says of CUDA on machines of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from svdqc.compiler.cli.commands import doctor_cuda
from svdqc.compiler.cli.commands.doctor_cuda import examine_cuda
from svdqc.compiler.cli.findings import Finding
from svdqc.compiler.driver.machine import Driver, Gpu
from svdqc.compiler.targets.cuda_toolchain import NoNvcc, Nvcc

NVCC = Nvcc(
    Path("/opt/cuda/bin/nvcc"), "13.0.88", (("nvcc", "13.0.88"), ("ptxas", "13.0.88")), "g++"
)


def found(
    monkeypatch: pytest.MonkeyPatch, driver: Driver | None, nvcc: Nvcc | None, cutlass: Path | None
) -> dict[str, Finding]:
    def find_nvcc() -> Nvcc:
        if nvcc is None:
            raise NoNvcc("compile", "nvcc", "none found", "run: pip install 'svdqc[cuda]'")
        return nvcc

    monkeypatch.setattr(doctor_cuda, "find_driver", lambda: driver)
    monkeypatch.setattr(doctor_cuda, "find_nvcc", find_nvcc)
    monkeypatch.setattr(doctor_cuda, "cutlass_include", lambda: cutlass)
    return {finding.topic: finding for finding in examine_cuda()}


def test_a_machine_without_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    told = found(monkeypatch, None, None, None)
    assert {finding.state for finding in told.values()} == {"note"}
    assert "install its driver" in told["NVIDIA driver"].remedy
    assert told["nvcc"].remedy == "run: pip install 'svdqc[cuda]'"
    assert "pip install 'svdqc[cuda]'" in told["CUTLASS"].remedy
    assert told["CUDA targets"].found == "built here: none; run here: none"


def test_a_machine_that_only_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    told = found(monkeypatch, None, NVCC, Path("/headers"))
    assert (
        told["nvcc"].found == "13.0.88, /opt/cuda/bin/nvcc (nvcc 13.0.88, ptxas 13.0.88; calls g++)"
    )
    assert told["CUTLASS"].state == "ok"
    assert told["CUDA targets"].state == "ok"
    assert "cuda:sm_75" in told["CUDA targets"].found
    assert told["CUDA targets"].found.endswith("run here: none")


def test_gpus_with_and_without_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (Gpu("NVIDIA L4", (8, 9), 23 << 30), Gpu("Tesla V100", (7, 0), 16 << 30))
    told = found(monkeypatch, Driver((13, 0), 0, gpus), None, None)
    assert told["NVIDIA driver"].found == "for CUDA 13.0"
    expected = "NVIDIA L4, 23 GiB, compute capability 8.9: target cuda:sm_89"
    assert told["GPU 0"] == Finding("GPU 0", "ok", expected)
    assert told["GPU 1"].state == "note"
    assert "no target runs on it" in told["GPU 1"].found
    # Older cubins of the same major version run too.
    ran = told["CUDA targets"].found.partition("run here: ")[2]
    assert ran == "cuda:sm_80, cuda:sm_86, cuda:sm_89"


def test_a_driver_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    told = found(monkeypatch, Driver((12, 8), 803, ()), None, None)
    assert told["NVIDIA driver"].found == "for CUDA 12.8, but it does not start (error 803)"
    assert told["NVIDIA driver"].remedy
    assert found(monkeypatch, Driver((12, 8), 0, ()), None, None)["GPU"].state == "note"
