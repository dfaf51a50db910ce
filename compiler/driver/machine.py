"""What this machine offers: found by looking, without importing anything heavy."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

CU_ATTRIBUTE_MAJOR, CU_ATTRIBUTE_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as the driver names it."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int

    @property
    def arch(self) -> str:
        """`sm_90a` style: the name of its target."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver: the newest CUDA it knows, (13, 0); the status of starting it, 0 if it works; its GPUs."""

    cuda_version: tuple[int, int]
    status: int
    gpus: tuple[Gpu, ...]


def package_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cpu_stepping() -> str:
    """ "family 26, model 2": what tells processors of one name apart; "" where nothing does."""
    found: dict[str, str] = {}
    for line in _cpuinfo():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    if "cpu family" not in found or "model" not in found:
        return ""
    return f"family {found['cpu family']}, model {found['model']}"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def find_gpus() -> list[Gpu]:
    """Every NVIDIA GPU that the driver shows; an empty list where there is no driver or no GPU."""
    driver = find_driver()
    return list(driver.gpus) if driver is not None else []


def find_driver() -> Driver | None:
    """The NVIDIA driver of this machine; None where there is none."""
    try:
        library = ctypes.CDLL(ctypes.util.find_library("cuda") or "libcuda.so.1")
    except OSError:
        return None
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    cuda_version = (version.value // 1000, version.value % 1000 // 10)
    status: int = library.cuInit(0)
    if status == 0:
        status = library.cuDeviceGetCount(ctypes.byref(count))
    num_gpus = count.value if status == 0 else 0
    gpus = tuple(_describe_gpu(library, ordinal) for ordinal in range(num_gpus))
    return Driver(cuda_version, status, gpus)


def _describe_gpu(driver: ctypes.CDLL, ordinal: int) -> Gpu:
    device, value, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (CU_ATTRIBUTE_MAJOR, CU_ATTRIBUTE_MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(), (capability[0], capability[1]), memory.value)
