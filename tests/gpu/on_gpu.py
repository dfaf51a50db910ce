"""A plugin of pytest: kernels of tests/cuda are launched on the GPU. Load it with -p, before the tests are imported."""

from __future__ import annotations

from tests.cuda import host_kernels
from tests.gpu.device_kernels import DeviceKernels, OnGpu

setattr(host_kernels, "HostKernels", DeviceKernels)  # noqa: B010
host_kernels.gpu = OnGpu.get().target
