"""What tuning has to do with a build: this machine as records name it, and the choosers of a compilation."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svdqc.compiler.codegen.choice import ANALYTIC, Chooser
from svdqc.compiler.driver.machine import cpu_name, cpu_stepping
from svdqc.compiler.targets.cpu import CpuTarget
from svdqc.compiler.targets.cuda import CudaTarget, target_for
from svdqc.compiler.targets.select import Target, toolchain_of
from svdqc.compiler.tune.chooser import Recorded
from svdqc.compiler.tune.errors import CannotTune
from svdqc.compiler.tune.record import Machine
from svdqc.compiler.tune.store import Records, read_records
from svdqc.runtime import gpus
from svdqc.runtime.device_memory import Gpu
from svdqc.runtime.library import cpu_features
from svdqc.runtime.model import gpu_index

CU_ATTRIBUTE_MULTIPROCESSORS = 16


def machine_for(target: Target, device: str = "", threads: int = 0) -> Machine | None:
    """This machine, if it can run the target's kernels: `threads` of its CPU (0: all), or the GPU `device` ("": the
    first that fits)."""
    if isinstance(target, CpuTarget):
        if not set(target.isa_features) <= set(cpu_features()):
            return None
        name = f"{cpu_name()} ({cpu_stepping()})" if cpu_stepping() else cpu_name()
        return Machine(name, threads or usable_threads(), "", toolchain_of(target))
    found = gpus()
    for gpu in found["gpus"]:
        if gpu["device"] == (device or gpu["device"]) and _runs(target, gpu):
            sms = _multiprocessors(gpu_index(gpu["device"]) or 0)
            return Machine(gpu["name"], sms, found["driver"], toolchain_of(target))
    return None


def required_machine(target: Target, device: str = "", threads: int = 0) -> Machine:
    """The same, or what is missing here."""
    machine = machine_for(target, device, threads)
    if machine is not None:
        return machine
    if isinstance(target, CpuTarget):
        missing = sorted(set(target.isa_features) - set(cpu_features()))
        remedy = "tune on a machine that has them, or for --target cpu"
        raise CannotTune("tune", target.name, f"this processor lacks {', '.join(missing)}", remedy)
    found = gpus()
    names = ", ".join(f"{g['device']} {g['name']} ({g['target']})" for g in found["gpus"])
    why = f"the GPUs here are {names}" if names else found["reason"] or "there is no GPU"
    what = f"nothing here can measure its kernels{' on ' + device if device else ''}: {why}"
    remedy = "tune on a machine with such a GPU, or for --target cpu"
    raise CannotTune("tune", target.name, what, remedy)


def gpu_device(target: CudaTarget, device: str = "") -> str:
    """The name of the GPU that `machine_for` found."""
    fitting = (g["device"] for g in gpus()["gpus"] if _runs(target, g))
    return device or next(fitting)


def usable_threads() -> int:
    """As many as a session takes by itself: what the process may use, within a container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    try:
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
    except (OSError, ValueError):  # none, or "max"
        return count
    return max(1, min(count, -(-quota // period))) if period else count


def _runs(target: CudaTarget, gpu: Mapping[str, Any]) -> bool:
    major, minor = map(int, gpu["compute_capability"].split("."))
    return target_for((major, minor)) == target


def _multiprocessors(ordinal: int) -> int:
    value = ctypes.c_int()
    Gpu(ordinal).call(
        "cuDeviceGetAttribute", ctypes.byref(value), CU_ATTRIBUTE_MULTIPROCESSORS, ordinal
    )
    return value.value


# ---- a compilation


@dataclass
class Tuning:
    """The records that a compilation uses. on: text that names the machine to build for, None: this one."""

    path: str = ""
    records: Records | None = None
    on: str | None = None
    _choosers: dict[Target, Recorded] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None, on: str | None = None) -> Tuning:
        """Reads the file, if there is one to read; before any long work."""
        return cls() if path is None else cls(str(path), read_records(path), on)

    def chooser(self, target: Target) -> Chooser:
        """By the records of the target's machine; analytic where there are none."""
        if self.records is None:
            return ANALYTIC
        if target not in self._choosers:
            machine = (
                machine_for(target)
                if self.on is None
                else self.records.machine(target.name, self.on)
            )
            if machine is None or machine not in self.records.machines(target.name):
                return ANALYTIC
            self._choosers[target] = Recorded(self.records.by_key, target.name, machine)
        return self._choosers[target]

    def provenance(self, target: Target) -> dict[str, Any]:
        """For the target's variant: {"tuning": …}, or nothing where no record matched."""
        chooser = self._choosers.get(target)
        if chooser is None or chooser.num_tuned == 0:
            return {}
        return {"tuning": chooser.provenance()}

    def report(self, targets: Sequence[Target]) -> list[dict[str, Any]]:
        """What is to be said of each target after the build; nothing if no file was given."""
        if self.records is None:
            return []
        return [self._told(target) for target in targets]

    def _told(self, target: Target) -> dict[str, Any]:
        assert self.records is not None
        chooser = self._choosers.get(target)
        if chooser is not None:
            return {"target": target.name, **chooser.provenance()}
        known = "; ".join(map(str, self.records.machines(target.name))) or "no machine"
        return {"target": target.name, "tuned": 0, "known": known}
