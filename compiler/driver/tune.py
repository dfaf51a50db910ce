"""From a model to tuning records: its kernels, planned without its weights, measured on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from svdqc.compiler.codegen.cpu.backend import CpuBackend
from svdqc.compiler.driver.compile import capabilities, capture_canonical
from svdqc.compiler.driver.precisions import resolved
from svdqc.compiler.driver.progress import Progress, Stages
from svdqc.compiler.driver.tuning import gpu_device, required_machine, usable_threads
from svdqc.compiler.driver.variants import backend_of, plan_regions
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.allocate import wants_allocation
from svdqc.compiler.passes.blank import blank_quantized
from svdqc.compiler.passes.linear_groups import linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups, recipes_of
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.targets.cuda import CudaTarget
from svdqc.compiler.targets.select import Target, parse_targets
from svdqc.compiler.tune.errors import CannotTune
from svdqc.compiler.tune.record import TuningRecord, key_of
from svdqc.compiler.tune.search import Outcome, Setting, search
from svdqc.compiler.tune.sites import Site, find_sites
from svdqc.compiler.tune.store import append_records, check_appendable, read_if_there
from svdqc.runtime.errors import UnknownDevice
from svdqc.runtime.library import cpu_features
from svdqc.runtime.model import gpu_index

CANDIDATES = 12
SECONDS = 0.4
LEAST_FLUSH, MOST_FLUSH = 1 << 22, {"cpu": 1 << 26, "cuda": 1 << 28}
"""Bytes that pass through the caches between two runs of a kernel: as many as the model has, or as caches hold."""


@dataclass
class TunedKernel:
    """One distinct kernel. state: "tuned" or "skipped" (recorded before), or why there is no whole record."""

    target: str
    name: str
    where: str
    launches: int
    state: str
    analytic_us: float = 0.0
    tuned_us: float = 0.0
    choice: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Tuned over analytic; None where it was not measured."""
        return self.tuned_us / self.analytic_us if self.analytic_us else None


@dataclass
class TuneReport:
    """path, the machines, every kernel of every target; notes: what is to be said beside."""

    path: Path
    machines: dict[str, str] = field(default_factory=dict)
    kernels: list[TunedKernel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def estimate(self, target: str) -> tuple[float, float]:
        """µs of a run with analytic and with tuned kernels: the sum over launches of what has a record."""
        known = [k for k in self.kernels if k.target == target and k.analytic_us]
        analytic = sum(k.launches * k.analytic_us for k in known)
        return analytic, sum(k.launches * k.tuned_us for k in known)


def tune_model(
    model: Any,
    inputs: Mapping[str, Any] | None = None,
    *,
    output: str | os.PathLike[str],
    target: str = "native",
    recipe: Recipe | None = None,
    dynamic: str | Mapping[str, Any] | None = None,
    budget_seconds: float | None = None,
    candidates: int = CANDIDATES,
    device: str = "",
    threads: int = 0,
    jobs: int = 0,
    again: bool = False,
    progress: Progress | None = None,
) -> TuneReport:
    """Tune a model's kernels; the arguments are those of `svdqc.tune`."""
    began, say, report = time.monotonic(), Stages(progress), TuneReport(Path(output))
    targets = parse_targets(target, cpu_features(), capabilities)
    gpu = _gpu_name(device)
    machines = {one: required_machine(one, gpu, threads) for one in targets}
    report.machines = {one.name: str(machine) for one, machine in machines.items()}
    known = read_if_there(output)
    report.notes += known.notes
    check_appendable(output)
    asked = recipe or Recipe()
    if wants_allocation(asked):
        remedy = (
            "tune with the ranks that it will have, such as --rank 32 and --rank 64, into one file"
        )
        found = "ranks are chosen while compiling, from samples; kernels depend on them"
        raise CannotTune("tune", "--rank auto or --budget", found, remedy)

    say("capture", 0, 1)
    program = _blank_program(model, inputs, dynamic, asked, targets)
    say("capture", 1, 1)
    deadline = None if budget_seconds is None else began + budget_seconds
    for one in targets:
        machine = machines[one]
        sites = _sites(program, one, say)
        waiting = []
        for site in sites:
            record = known.by_key.get(key_of(site.problem, one.name, machine))
            if record is None or again or not record.complete:
                waiting.append(site)
            else:
                report.kernels.append(_told(one, site, record, "skipped"))
        setting = Setting(
            one,
            machine,
            gpu_device(one, gpu) if isinstance(one, CudaTarget) else "cpu",
            threads or usable_threads(),
            candidates,
            SECONDS,
            _flush_bytes(program, one),
            jobs,
            deadline,
        )
        stage = "tune" if len(targets) == 1 else f"tune {one.name}"
        outcomes = _search(waiting, setting, output, say, stage)
        for outcome in outcomes:
            state = _state(outcome)
            told = _told(one, outcome.site, outcome.record, state)
            told.lost = outcome.lost
            report.kernels.append(told)
        left = waiting[len(outcomes) :]
        report.kernels += [_told(one, site, None, "no time left") for site in left]
    return report


def _search(
    sites: Sequence[Site],
    setting: Setting,
    output: str | os.PathLike[str],
    say: Stages,
    stage: str,
) -> list[Outcome]:
    def keep(record: TuningRecord) -> None:
        append_records(output, [record])

    def tell(done: int, total: int, detail: str, share: float | None) -> None:
        say(stage, done, total, detail, None if share is None else min(1.0, share))

    outcomes = list(search(sites, setting, keep, tell))
    say(stage, max(len(sites), 1), max(len(sites), 1))
    return outcomes


def _blank_program(
    model: Any, inputs: Any, dynamic: Any, recipe: Recipe, targets: Sequence[Target]
) -> Program:
    """The canonical program, its layers quantized in shape only."""
    recipe = resolved(recipe, ",".join(one.name for one in targets))
    canonical = capture_canonical(model, inputs, dynamic, recipe)
    groups = quantized_groups(canonical.decisions, linear_groups(canonical.program))
    recipes = recipes_of(groups, canonical.decisions, recipe)
    blank_quantized(canonical.program, groups, recipes)
    return canonical.program


def _sites(program: Program, target: Target, say: Stages) -> list[Site]:
    copy = program.copy()
    say("plan", 0, 1)
    fusion = plan_regions(copy, target)
    sites = find_sites(copy, fusion, backend_of(target) or CpuBackend())
    say("plan", 1, 1)
    return sites


def _flush_bytes(program: Program, target: Target) -> int:
    nodes = [n for n in program.graph_module.graph.nodes if n.op == "get_attr"]
    specs = {n.meta["weight"]: program.weights.spec(n.meta["weight"]) for n in nodes}
    total = sum(prod(s.shape) * _stored_bits(s.dtype.itemsize) // 8 for s in specs.values())
    most = MOST_FLUSH["cuda" if isinstance(target, CudaTarget) else "cpu"]
    return max(LEAST_FLUSH, min(most, total))


def _stored_bits(itemsize: int) -> int:
    """Codes of one byte are stored in a nibble, by and large."""
    return 4 if itemsize == 1 else 8 * itemsize


def _gpu_name(device: str) -> str:
    """ "cuda:0" for "cuda"; "" where no GPU is asked for."""
    if device in ("", "cpu", "auto"):
        return ""
    index = gpu_index(device)
    if index is None:
        raise UnknownDevice(device)
    return f"cuda:{index}"


def _state(outcome: Outcome) -> str:
    if outcome.record is None:
        return "; ".join(outcome.lost) or "no time left"
    return "tuned" if outcome.record.complete else "no time left for all candidates"


def _told(target: Target, site: Site, record: TuningRecord | None, state: str) -> TunedKernel:
    told = TunedKernel(target.name, site.name, site.label, site.launches, state)
    if record is not None:
        told.analytic_us, told.tuned_us = record.analytic_us, record.median_us
        told.choice = dict(record.choice)
    return told
