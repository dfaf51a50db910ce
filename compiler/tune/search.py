"""Find the fastest block of each kernel: candidates best first, built together, measured apart, within a budget."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from svdqc.compiler.codegen.kernel import Kernel
from svdqc.compiler.targets.compile_cache import CompilationFailed
from svdqc.compiler.targets.cpu import CpuTarget
from svdqc.compiler.targets.cuda import CudaTarget
from svdqc.compiler.targets.cuda_build import free_memory
from svdqc.compiler.targets.select import Target, build_code
from svdqc.compiler.tune.bench import Bench, frame_sources, write_bench
from svdqc.compiler.tune.child import Request, Timing
from svdqc.compiler.tune.measure import Measure, measure_apart
from svdqc.compiler.tune.record import Machine, TuningRecord, key_of
from svdqc.compiler.tune.sites import Site

WORTH = 0.97
"""A block is another choice only if it takes at most this part of the analytic choice's time, measured again: where
code happens to lie makes a difference of two percent."""
UNIT_BYTES = 1 << 29
"""What a C++ compiler takes for a kernel's candidates in one translation unit: measured 350 MB, rounded up."""
CONFIRMED = 3
"""Times as long the best candidate is measured again: the best of many is in part the luckiest."""

Build = Callable[[Mapping[str, str], Target, int], bytes]
Tell = Callable[[int, int, str, float | None], None]
"""Kernels done, of how many, what is being done, the part of the time that has gone."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and how.

    candidates  blocks to measure of each kernel, beside the analytic one
    seconds     of repetitions for each candidate
    flush_bytes that pass through the caches between two runs of a kernel
    deadline    on time.monotonic(); None: none
    """

    target: Target
    machine: Machine
    device: str
    threads: int
    candidates: int
    seconds: float
    flush_bytes: int
    jobs: int = 0
    deadline: float | None = None

    @property
    def is_over(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass
class Outcome:
    """Of one kernel: its record, or None where nothing was measured; lost: candidates that gave no time, and why."""

    site: Site
    record: TuningRecord | None
    lost: list[str] = field(default_factory=list)


def search(
    sites: Sequence[Site],
    setting: Setting,
    keep: Callable[[TuningRecord], None],
    tell: Tell,
    *,
    build: Build = build_code,
    measure: Measure = measure_apart,
) -> Iterator[Outcome]:
    """Tune kernel after kernel; each record is handed to `keep` before the next kernel begins.

    At the deadline, and when this generator is interrupted, the kernel being measured is kept as far as it got.
    """
    began, done = time.monotonic(), 0

    def say(name: str, detail: str) -> None:
        share = None
        if setting.deadline is not None:
            share = (time.monotonic() - began) / max(setting.deadline - began, 1e-9)
        tell(done, len(sites), f"{name}: {detail}", share)

    at_once = _kernels_at_once(setting)
    for first in range(0, len(sites), at_once):
        batch = sites[first : first + at_once]
        if setting.is_over:
            return
        with tempfile.TemporaryDirectory(prefix="svdqc-tune-") as folder:
            searches = [_Kernel(site, setting, Path(folder), build, measure) for site in batch]
            say(batch[0].name, "building")
            # All compilers first, then all measurements: they would disturb each other.
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(_Kernel.build, searches))
            for one in searches:
                if setting.is_over:
                    return
                try:
                    one.measure(partial(say, one.site.name))
                finally:
                    record = one.record()
                    if record is not None:
                        keep(record)
                done += 1
                yield Outcome(one.site, record, one.lost)


def _kernels_at_once(setting: Setting) -> int:
    """How many kernels are built together. For GPUs one: its candidates are compiled apart, in parallel."""
    if isinstance(setting.target, CudaTarget):
        return 1
    return max(1, min(setting.jobs or os.cpu_count() or 1, free_memory() // UNIT_BYTES))


class _Kernel:
    """The search for one kernel's block."""

    def __init__(
        self, site: Site, setting: Setting, folder: Path, build: Build, measure: Measure
    ) -> None:
        self.site, self.setting, self.folder = site, setting, folder
        self._build, self._measure = build, measure
        self.lost: list[str] = []
        self._kernels: list[Kernel] = []
        self._code = b""
        self._times: list[tuple[Kernel, Timing]] = []
        self._best: tuple[Kernel, Timing] | None = None
        self._complete = False

    def build(self) -> None:
        """Compile the candidates; those that a compiler rejects are lost."""
        with _rendering:
            self._kernels = self._candidates()
        self._code = self._built()
        if not self._kernels or self._kernels[0].block != self.site.blocks[0]:
            self.lost.append("the analytic choice itself cannot be built")
            self._kernels = []

    def measure(self, say: Callable[[str], None]) -> None:
        if not self._kernels:
            return
        setting, kernels = self.setting, self._kernels
        path = self.folder / f"{kernels[0].name}.svdq"
        bench = write_bench(
            path, self.site, kernels, self._code, setting.target, setting.flush_bytes
        )
        for position, kernel in enumerate(kernels[1:], 2):
            if setting.is_over:
                return
            say(f"candidate {position - 1} of {len(kernels) - 1}")
            timing = self._one(bench, position, kernel, setting.seconds)
            if timing is not None:
                self._times.append((kernel, timing))
        if not self._times:
            self._alone(bench)
        else:
            kernel = min(self._times, key=_ratio)[0]
            say("measuring the best again")
            again = self._one(bench, kernels.index(kernel) + 1, kernel, CONFIRMED * setting.seconds)
            self._best = None if again is None else (kernel, again)
        path.unlink()
        self._complete = True

    def record(self) -> TuningRecord | None:
        """What is known now; None if nothing is."""
        best = self._best or min(self._times, key=_ratio, default=None)
        if best is None:
            return None
        kernel, timing = best
        worth = timing.median_us <= WORTH * timing.analytic_us
        chosen = kernel if worth else self._kernels[0]
        return TuningRecord(
            key_of(self.site.problem, self.setting.target.name, self.setting.machine),
            tuple(sorted(chosen.block.parameters().items())),
            timing.median_us if worth else timing.analytic_us,
            timing.analytic_us,
            timing.repetitions,
            len(self._times),
            self._complete,
        )

    def _candidates(self) -> list[Kernel]:
        """Distinct kernels, the analytic choice first, as many as the setting wants."""
        found: dict[str, Kernel] = {}
        for block in self.site.blocks:
            kernel = self.site.kernel(block)
            if kernel is not None:
                found.setdefault(kernel.name, kernel)
            if len(found) > self.setting.candidates:
                break
        return list(found.values())

    def _built(self) -> bytes:
        """The code of the candidates that a compiler accepts; the others are dropped."""
        target, jobs = self.setting.target, self.setting.jobs
        frame = frame_sources(target)
        if isinstance(target, CpuTarget):
            # One translation unit: what the candidates share is parsed and compiled once.
            unit = "\n".join([*(k.source for k in self._kernels), *frame.values()])
            try:
                return self._build({f"{self._kernels[0].name} and variants": unit}, target, 1)
            except CompilationFailed:
                pass  # each apart, to see which it was
        while self._kernels:
            try:
                return self._build({k.name: k.source for k in self._kernels} | frame, target, jobs)
            except CompilationFailed as error:
                rest = [kernel for kernel in self._kernels if kernel.name != error.subject]
                if len(rest) == len(self._kernels):
                    raise
                self.lost.append(f"{error.subject}: does not compile")
                self._kernels = rest
        return b""

    def _one(self, bench: Bench, position: int, kernel: Kernel, seconds: float) -> Timing | None:
        setting = self.setting
        found = self._measure(
            Request(bench.path, bench.first, position, setting.device, setting.threads, seconds)
        )
        why = found if isinstance(found, str) else found.wrong
        if why:
            self.lost.append(f"{kernel.name}: {why}")
            return None
        assert isinstance(found, Timing)
        return found

    def _alone(self, bench: Bench) -> None:
        """There is no candidate beside the analytic choice, or none gave a time: its own time is told."""
        timing = self._one(bench, 1, self._kernels[0], self.setting.seconds)
        if timing is not None:
            self._best = (self._kernels[0], timing)


def _ratio(measured: tuple[Kernel, Timing]) -> float:
    return measured[1].median_us / measured[1].analytic_us


_rendering = threading.Lock()
"""Rendering a region's kernels fills tables that its program's regions share."""
