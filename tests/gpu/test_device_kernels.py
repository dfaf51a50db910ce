"""What `make gpu-check` does with kernels, on the fake driver: the harness itself is checked where no GPU is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.cuda.host_kernels import LaunchFailed
from tests.gpu import device_kernels
from tests.gpu.device_kernels import DeviceKernels, OnGpu
from tests.runtime.cuda import fake

from svdqc.compiler.targets.cuda_host import build_host

SOURCE = r"""
#include "svdq_cuda/kernel.h"
SVDQ_CUDA_KERNEL(axpy, 32, 0, 0, 2, 2) {
  const float* x = (const float*)args.buffers[0];
  float* y = (float*)args.buffers[1];
  const int64_t i = svdq::cta_id() * 32 + svdq::thread_id();
  if (i < args.scalars[0] + args.scalars[1]) y[i] = 2 * x[i] + 1;
}
"""


@pytest.fixture(autouse=True)
def _fake_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "k.so").write_bytes(build_host({"axpy": SOURCE}, jobs=1))
    monkeypatch.setenv("SVDQ_CUDA_DRIVER", str(fake.build_driver()))
    assert fake.reset(f"devices=8.0 kernels={tmp_path / 'k.so'}") == 0
    monkeypatch.setattr(device_kernels, "build_cubins", lambda *_, **__: {"axpy": fake.cubin(80)})
    monkeypatch.setattr(OnGpu, "_only", None)
    yield
    report = fake.report()
    assert report["violations"] == []
    assert report["live"]["device_bytes"] == 0


def release(kernels: DeviceKernels) -> None:
    with kernels._on.gpu.current():
        for module in kernels._modules:
            kernels._on.gpu.call("cuModuleUnload", module)
    OnGpu._only = None


def test_device_kernels__launch_on_host_arrays() -> None:
    kernels = DeviceKernels({"axpy": SOURCE})
    x = np.arange(100, dtype=np.float32)
    y = np.full(100, np.nan, np.float32)
    kernels.launch("axpy", [x, y], [100, 0], grid_x=4)
    np.testing.assert_array_equal(y, 2 * x + 1)
    whole = np.arange(200, dtype=np.float32)  # in place: the two arguments share memory
    kernels.launch("axpy", [whole[:100], whole[:100]], [100, 0], grid_x=4)
    np.testing.assert_array_equal(whole[:100], 2 * np.arange(100) + 1)
    np.testing.assert_array_equal(whole[100:], np.arange(100, 200))
    with pytest.raises(LaunchFailed, match="written around"):
        kernels.launch("axpy", [x, y], [100, 1], grid_x=4)
    release(kernels)
