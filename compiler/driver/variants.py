"""One program for several kinds of machine: lowered once per kind, built per target, weights stored once per layout.

CPUs of every instruction set share regions, kernels' text and plan, unless one was tuned. Each GPU architecture has its
own: what fits in its shared memory and which tensor cores it has decide tiles and layouts. A weight that two plans read
in the same layout is one tensor of the artifact; in different layouts it is stored once for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from svdqc.compiler.artifact.format import Variant
from svdqc.compiler.codegen.choice import ANALYTIC
from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.lower import Lowered, PlannedTensor, lower
from svdqc.compiler.codegen.region import FusionPlan
from svdqc.compiler.driver.dump import Dump
from svdqc.compiler.driver.progress import Stages
from svdqc.compiler.driver.tuning import Tuning
from svdqc.compiler.ir.dialect import verify
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.dialects import LOWERED
from svdqc.compiler.passes.fuse import CPU_TRAITS, GPU_TRAITS, fuse
from svdqc.compiler.passes.pipeline import LOWER, LOWER_GPU, run_passes
from svdqc.compiler.plan.records import Buffer, Plan
from svdqc.compiler.targets.cpu import CpuTarget
from svdqc.compiler.targets.cuda import CudaTarget
from svdqc.compiler.targets.select import Target, build_code, toolchain_of


@dataclass(frozen=True)
class Family:
    """Targets that share a lowered program."""

    targets: tuple[Target, ...]
    program: Program
    fusion: FusionPlan
    lowered: Lowered


def lower_families(
    program: Program,
    targets: Sequence[Target],
    dump: Dump,
    say: Stages,
    tuning: Tuning | None = None,
) -> list[Family]:
    """The program lowered for each kind of machine among the targets, in their order; `program` stays as it is.

    A CPU with tuning records is a kind of its own.
    """
    tuning = tuning or Tuning()
    groups: dict[object, list[Target]] = {}
    for target in targets:
        shared = isinstance(target, CpuTarget) and tuning.chooser(target) is ANALYTIC
        groups.setdefault("cpu" if shared else target, []).append(target)
    families = []
    for number, members in enumerate(groups.values()):
        copy = program.copy()
        observe = dump if number == 0 else Dump(None)
        stage = "plan" if len(groups) == 1 else f"plan {_kind(members[0])}"
        say(stage, 0, 1)
        fusion = plan_regions(copy, members[0], observe)
        chooser = tuning.chooser(members[0])
        lowered = lower(copy, fusion, partial(say, stage), backend_of(members[0]), chooser)
        observe.regions(fusion, lowered)
        families.append(Family(tuple(members), copy, fusion, lowered))
    return families


def plan_regions(
    program: Program, target: Target | None = None, dump: Dump | None = None
) -> FusionPlan:
    """Lower a canonical (quantized or not) program, in place, and cut it into fused regions; by default for CPUs."""
    on_gpu = isinstance(target, CudaTarget)
    run_passes(program, LOWER_GPU if on_gpu else LOWER, (dump or Dump(None)).after)
    verify(program, LOWERED)
    return fuse(program, GPU_TRAITS if on_gpu else CPU_TRAITS)


def backend_of(target: Target) -> CudaBackend | None:
    """None: the default of `lower`, for CPUs."""
    return CudaBackend(target) if isinstance(target, CudaTarget) else None


def build_variants(
    families: Sequence[Family],
    targets: Sequence[Target],
    jobs: int,
    say: Stages,
    tuning: Tuning | None = None,
) -> tuple[list[Variant], list[PlannedTensor]]:
    """A variant per target, in the targets' order, and the tensors that all plans index."""
    tuning = tuning or Tuning()
    tensors, plans = merge_tensors(families)
    found: dict[Target, Variant] = {}
    for family, plan in zip(families, plans, strict=True):
        for target in family.targets:
            stage = "kernels" if len(targets) == 1 else f"kernels {_short(target)}"
            code = build_code(family.lowered.kernels, target, jobs, partial(say, stage))
            provenance = {"compiler": toolchain_of(target), **tuning.provenance(target)}
            found[target] = Variant(target.name, target.isa_features, code, plan, provenance)
    return [found[target] for target in targets], tensors


def merge_tensors(families: Sequence[Family]) -> tuple[list[PlannedTensor], list[Plan]]:
    """One list of tensors for all families, in order of first use, and each family's plan with indices into it."""
    position: dict[tuple[str, str], int] = {}
    tensors: list[PlannedTensor] = []
    for family in families:
        for tensor in family.lowered.tensors:
            if (tensor.name, tensor.layout) not in position:
                position[tensor.name, tensor.layout] = len(tensors)
                tensors.append(tensor)
    plans = []
    for family in families:
        own = [position[t.name, t.layout] for t in family.lowered.tensors]
        buffers = tuple(_reindexed(b, own) for b in family.lowered.plan.buffers)
        plans.append(replace(family.lowered.plan, buffers=buffers))
    return tensors, plans


def _reindexed(buffer: Buffer, positions: Sequence[int]) -> Buffer:
    if buffer.kind != "weight":
        return buffer
    return replace(buffer, index=positions[buffer.index])


def _kind(target: Target) -> str:
    return "cpu" if isinstance(target, CpuTarget) else target.arch


def _short(target: Target) -> str:
    return target.isa if isinstance(target, CpuTarget) else target.arch
