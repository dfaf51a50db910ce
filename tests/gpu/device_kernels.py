"""The kernels of tests/cuda on a GPU: the same launches on the same numpy arrays as the host back end.

`python -m pytest -p tests.gpu.on_gpu tests/cuda/test_gemm_float.py` runs a file so (on_gpu.py).
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tests.cuda import host_kernels

from svdqc.compiler.targets.cuda import CudaTarget, target_for
from svdqc.compiler.targets.cuda_build import build_cubins
from svdqc.runtime import gpus
from svdqc.runtime.device_memory import LEGACY_STREAM, Gpu

MARGIN, MARGIN_BYTE = 256, 0xA5  # around each device buffer; a kernel must leave it as it is
MAX_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
Array = np.ndarray[Any, Any]


class OnGpu:
    """The first GPU, opened once per process."""

    def __init__(self) -> None:
        found = gpus()
        assert found["gpus"], found["reason"]
        self.facts: dict[str, Any] = found["gpus"][0]
        major, minor = map(int, self.facts["compute_capability"].split("."))
        target = target_for((major, minor))
        assert target is not None, f"no target for compute capability {major}.{minor}"
        self.target: CudaTarget = target
        self.gpu = Gpu(0)

    _only: OnGpu | None = None

    @classmethod
    def get(cls) -> OnGpu:
        if cls._only is None:
            cls._only = cls()
        return cls._only


class DeviceKernels(host_kernels.HostKernels):
    """HostKernels whose launches run on the GPU; the host's build only says what each kernel was compiled for."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        super().__init__(sources)
        self._on = OnGpu.get()
        self._cubins = build_cubins(sources, self._on.target, jobs=1)
        self._modules: list[c.c_void_p] = []
        self._functions: dict[str, c.c_void_p] = {}
        with self._on.gpu.current():
            for cubin in self._cubins.values():
                module = c.c_void_p()
                self._on.gpu.call("cuModuleLoadData", c.byref(module), cubin)
                self._modules.append(module)

    def launch(
        self,
        name: str,
        buffers: Sequence[Array],
        scalars: Sequence[int] = (),
        *,
        grid_x: int,
        schedule: int = 0,
        os_threads: int = 1,
    ) -> None:
        """As the host back end's; the order of threads is the GPU's own."""
        info = self.info(name)
        assert (len(buffers), len(scalars)) == (info.num_buffers, info.num_scalars)
        host_kernels.num_launches += 1
        with self._on.gpu.current():
            memory = DeviceBuffers(self._on.gpu, buffers)
            block = (c.c_int64 * (len(buffers) + len(scalars)))(*memory.addresses, *scalars)
            parameters = (c.c_void_p * 1)(c.addressof(block))
            self._on.gpu.call(
                "cuLaunchKernel", self._function(name, info.shared_bytes), grid_x, 1, 1,
                info.num_threads, 1, 1, info.shared_bytes, c.c_void_p(LEGACY_STREAM), parameters, None,
            )  # fmt: skip
            self._on.gpu.call("cuStreamSynchronize", c.c_void_p(LEGACY_STREAM))
            memory.read_back()

    def _function(self, name: str, shared_bytes: int) -> c.c_void_p:
        if name in self._functions:
            return self._functions[name]
        function = c.c_void_p()
        for module in self._modules:
            arguments = (c.byref(function), module, name.encode())
            if self._on.gpu.try_call("cuModuleGetFunction", *arguments) == 0:
                break
        assert function, f"no kernel {name!r}"
        self._on.gpu.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_BYTES, shared_bytes)
        self._functions[name] = function
        return function


class DeviceBuffers:
    """Copies of host arrays on the GPU; arrays that share host memory share the copy."""

    def __init__(self, gpu: Gpu, arrays: Sequence[Array]) -> None:
        self._gpu = gpu
        spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays)
        merged: list[list[int]] = []
        for begin, end in spans:
            if merged and begin < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([begin, end])
        self._spans = [(begin, end, self._copy_in(begin, end)) for begin, end in merged]
        self.addresses = [self._address(array) for array in arrays]

    def _copy_in(self, begin: int, end: int) -> int:
        whole = np.full(end - begin + 2 * MARGIN, MARGIN_BYTE, np.uint8)
        c.memmove(whole.ctypes.data + MARGIN, begin, end - begin)
        address = c.c_uint64()
        self._gpu.call("cuMemAlloc_v2", c.byref(address), whole.nbytes)
        self._copy("cuMemcpyHtoDAsync_v2", address.value, whole.ctypes.data, whole.nbytes)
        return address.value

    def _copy(self, call: str, to: int, source: int, num_bytes: int) -> None:
        self._gpu.call(call, to, source, num_bytes, LEGACY_STREAM)
        self._gpu.call("cuStreamSynchronize", c.c_void_p(LEGACY_STREAM))

    def _address(self, array: Array) -> int:
        at = array.ctypes.data
        for begin, end, address in self._spans:
            if begin <= at and at + array.nbytes <= end:
                return address + MARGIN + at - begin
        raise AssertionError("an array outside every span")

    def read_back(self) -> None:
        """Host arrays get what the device has; the device's memory is given up."""
        intact = True
        for begin, end, address in self._spans:
            whole = np.empty(end - begin + 2 * MARGIN, np.uint8)
            self._copy("cuMemcpyDtoHAsync_v2", whole.ctypes.data, address, whole.nbytes)
            self._gpu.call("cuMemFree_v2", address)
            margins = np.concatenate((whole[:MARGIN], whole[whole.nbytes - MARGIN :]))
            intact &= bool((margins == MARGIN_BYTE).all())
            c.memmove(begin, whole.ctypes.data + MARGIN, end - begin)
        if not intact:
            raise host_kernels.LaunchFailed("something was written around a buffer")
