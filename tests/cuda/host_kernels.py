"""Run CUDA kernels on the CPU, through the host back end of the intrinsic layer.

    kernels = HostKernels({"softmax": source})
    kernels.launch("softmax", [x, y], [num_rows], grid_x=num_rows)

Buffers are numpy arrays; the kernel reads and writes them in place.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from svdqc.compiler.targets.cuda import CudaTarget
from svdqc.compiler.targets.cuda_host import build_host

# Orders in which fibres run: lowest thread first, highest first, pseudo-random.
SCHEDULES = (0, 1, 12345)

num_launches = 0  # of this process; tests/cuda/conftest.py counts them
gpu: CudaTarget | None = None  # that launches run on (tests/gpu/on_gpu.py); None: the host back end


def has(operation: str) -> bool:
    """Whether launches may use a tensor-core operation (CudaTarget.tensor_ops): the host back end has all."""
    return gpu is None or operation in gpu.tensor_ops


def machine(target: CudaTarget) -> CudaTarget:
    """What to generate code for: `target`, or the GPU that launches run on."""
    return target if gpu is None else gpu


class LaunchFailed(Exception):
    """The kernel cannot finish, or did something that a GPU would not define; the text says what."""


@dataclass(frozen=True)
class KernelInfo:
    """What a kernel was compiled for."""

    num_threads: int
    shared_bytes: int
    num_buffers: int
    num_scalars: int


class HostKernels:
    """Kernels (name → CUDA source) as functions of this process."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(build_host(sources, jobs=1))
            file.flush()
            self._library = ctypes.CDLL(file.name)
        self._library.svdq_host_error.restype = ctypes.c_char_p

    def info(self, name: str) -> KernelInfo:
        words = (ctypes.c_uint32 * 4).in_dll(self._library, f"{name}_info")
        return KernelInfo(*words)

    def launch(
        self,
        name: str,
        buffers: Sequence[np.ndarray[Any, Any]],
        scalars: Sequence[int] = (),
        *,
        grid_x: int,
        schedule: int = 0,
        os_threads: int = 1,
    ) -> None:
        """Run grid_x CTAs; LaunchFailed where a GPU's result would not be defined."""
        info = self.info(name)
        assert (len(buffers), len(scalars)) == (info.num_buffers, info.num_scalars)
        assert all(buffer.flags.c_contiguous for buffer in buffers)
        block = (ctypes.c_int64 * (len(buffers) + len(scalars)))(
            *(buffer.ctypes.data for buffer in buffers), *scalars
        )
        global num_launches
        num_launches += 1
        self._library.svdq_host_configure(os_threads, schedule)
        getattr(self._library, name)(block, ctypes.c_uint32(grid_x))
        error = self._library.svdq_host_error()
        if error is not None:
            raise LaunchFailed(error.decode())


def guarded(
    num_elements: int, dtype: Any, alignment: int = 64
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(array, whole): an output poisoned with 0xff bytes, inside a larger array whose margins must stay 0xa5."""
    size = num_elements * np.dtype(dtype).itemsize
    whole = np.full(size + 4 * alignment, 0xA5, np.uint8)
    begin = -whole.ctypes.data % alignment + alignment
    whole[begin : begin + size] = 0xFF
    return whole[begin : begin + size].view(dtype), whole


def margins_untouched(array: np.ndarray[Any, Any], whole: np.ndarray[Any, Any]) -> bool:
    """Nothing was written around `array`, one of guarded's."""
    begin = array.ctypes.data - whole.ctypes.data
    before, after = whole[:begin], whole[begin + array.nbytes :]
    return bool((before == 0xA5).all() and (after == 0xA5).all())
