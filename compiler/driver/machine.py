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

    @property
    def arch(self) -> str:
        """`sm_90a` style: the name of its target."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


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


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def find_gpus() -> list[Gpu]:
    """Every NVIDIA GPU that the driver shows; an empty list where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL(ctypes.util.find_library("cuda") or "libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    return [_describe_gpu(driver, ordinal) for ordinal in range(count.value)]


def _describe_gpu(driver: ctypes.CDLL, ordinal: int) -> Gpu:
    device, value = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in (CU_ATTRIBUTE_MAJOR, CU_ATTRIBUTE_MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(), (capability[0], capability[1]))
