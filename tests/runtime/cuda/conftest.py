"""A GPU for every test here: the fake driver, fresh, and nothing left over or misused after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.runtime.cuda import fake, tiny_gpu


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpu.build_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def gpu_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "tiny.svdq"
    tiny_gpu.write(path)
    return path


Configure = Callable[[str], None]


@pytest.fixture
def gpus(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Call it with the driver's settings (fake.h). After the test nothing is alive and nothing was misused."""
    monkeypatch.setenv("SVDQ_CUDA_DRIVER", str(fake.build_driver()))
    monkeypatch.setenv("SVDQ_FAKE_CUDA_KERNELS", str(kernels))

    def configure(settings: str) -> None:
        assert fake.reset(settings) == 0

    configure("")
    yield configure
    report = fake.report()
    assert report["violations"] == []
    assert report["context_depth"] == 0
    assert {name: n for name, n in report["live"].items() if n and name != "functions"} == {}
