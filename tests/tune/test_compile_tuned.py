"""A compilation with records: kernels have the recorded block, the file tells, and equal records give equal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.compiler.programs import ProgramBuilder
from torch import Tensor, nn

import svdqc
from svdqc.compiler.codegen.choice import ANALYTIC, Problem
from svdqc.compiler.codegen.cpu.backend import CpuBackend
from svdqc.compiler.codegen.cuda.backend import CudaBackend
from svdqc.compiler.codegen.lower import Lowered, lower
from svdqc.compiler.codegen.printing.backend import Backend, Block
from svdqc.compiler.driver.tuning import machine_for
from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import aten
from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
from svdqc.compiler.targets.cpu import CPU_TARGETS
from svdqc.compiler.targets.cuda import SM_80
from svdqc.compiler.targets.select import parse_targets
from svdqc.compiler.tune.chooser import Recorded
from svdqc.compiler.tune.errors import AmbiguousMachine, TuningFileUnreadable
from svdqc.compiler.tune.record import Machine, TuningRecord, key_of
from svdqc.compiler.tune.sites import find_sites
from svdqc.compiler.tune.store import append_records
from svdqc.runtime.library import cpu_features

MACHINE = Machine("Test Machine 9000", 4, "", "some compiler")


class Asked:
    """Takes the analytic choice and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Problem, Sequence[Block]]] = []

    def choose(self, problem: Problem, blocks: Sequence[Block]) -> Block:
        self.calls.append((problem, blocks))
        return blocks[0]


def linear_program(rows: int = 96) -> Program:
    """gelu(x @ w.T), x [rows, 64], w [128, 64] in bfloat16."""
    builder = ProgramBuilder()
    x = builder.input(torch.zeros(rows, 64))
    weight = builder.weight("w", torch.zeros(128, 64, dtype=torch.bfloat16))
    wide = builder.call(aten._to_copy.default, weight, dtype=torch.float32)
    return builder.finish(
        builder.call(aten.gelu.default, builder.call(aten.linear.default, x, wide))
    )


def lowered(program: Program, backend: Backend, chooser: Any = ANALYTIC) -> Lowered:
    traits = {"traits": GPU_TRAITS} if isinstance(backend, CudaBackend) else {}
    return lower(program, fuse(program, **traits), backend=backend, chooser=chooser)


def records_for(
    calls: Sequence[tuple[Problem, Sequence[Block]]], target: str, machine: Machine, which: int = 1
) -> list[TuningRecord]:
    """Made by hand: of every problem the block at this position of its list, as far as it goes."""
    found = []
    for problem, blocks in calls:
        choice = blocks[min(which, len(blocks) - 1)].parameters()
        key = key_of(problem, target, machine)
        found.append(TuningRecord(key, tuple(sorted(choice.items())), 1.0, 2.0, 9, 3, True))
    return found


def test_recorded__cpu_block_is_in_the_kernels_name() -> None:
    asked = Asked()
    analytic = lowered(linear_program(), CpuBackend(), asked)
    ((problem, blocks),) = asked.calls
    assert (problem.op, problem.format, problem.n, problem.k) == ("linear", "bf16", 128, 64)
    assert problem.rows == 96
    wanted = next(b for b in blocks if b.columns == 64 and b.rows == 48)
    record = replace(
        records_for(asked.calls, "cpu:avx2", MACHINE)[0],
        choice=tuple(sorted(wanted.parameters().items())),
    )
    chooser = Recorded({record.key: record}, "cpu:avx2", MACHINE)
    tuned = lowered(linear_program(), CpuBackend(), chooser)
    (before,), (after,) = analytic.kernels, tuned.kernels
    assert "__48x64_" not in before
    assert "__48x64_" in after
    assert "task / 2 * 48" in tuned.kernels[after]
    assert (chooser.num_kernels, chooser.num_tuned) == (1, 1)
    assert chooser.provenance()["changed"] == 1


def test_recorded__cuda_tile_is_in_the_code() -> None:
    asked = Asked()
    backend = CudaBackend(SM_80)
    analytic = lowered(linear_program(), backend, asked)
    ((_, blocks),) = asked.calls
    assert {b.tile.stages for b in blocks} >= {2, 3, 4}
    (record,) = records_for(asked.calls, "cuda:sm_80", MACHINE, 3)
    tuned = lowered(
        linear_program(), backend, Recorded({record.key: record}, "cuda:sm_80", MACHINE)
    )
    (before,), (after,) = analytic.kernels.values(), tuned.kernels.values()
    assert blocks[0].tile.cpp in before
    assert blocks[3].tile.cpp in after
    assert blocks[3].tile.cpp not in before


def test_recorded__a_group_has_the_block_of_its_largest_member() -> None:
    """What is asked of the chooser and what is measured is that member; the other takes its tile."""
    builder = ProgramBuilder()
    inputs = [builder.input(torch.zeros(rows, 64)) for rows in (40, 96)]
    weights = [builder.weight(f"w{i}", torch.zeros(128, 64)) for i in range(2)]
    pairs = zip(inputs, weights, strict=True)
    program = builder.finish(*[builder.call(aten.linear.default, *pair) for pair in pairs])
    backend, asked = CudaBackend(SM_80), Asked()
    (analytic,) = lowered(program, backend, asked).kernels.values()
    ((problem, blocks),) = asked.calls
    (site,) = find_sites(program, fuse(program, GPU_TRAITS), backend)
    assert site.problem == problem
    assert (problem.rows, site.launches, site.blocks) == (96, 1, blocks)
    (record,) = records_for(asked.calls, "cuda:sm_80", MACHINE, 3)
    chooser = Recorded({record.key: record}, "cuda:sm_80", MACHINE)
    ((name, tuned),) = lowered(program, backend, chooser).kernels.items()
    assert "_group2__" in name
    assert blocks[3].tile.cpp in tuned
    assert blocks[3].tile.cpp not in analytic


def test_recorded__what_does_not_match_is_analytic() -> None:
    asked = Asked()
    analytic = lowered(linear_program(), CpuBackend(), asked)
    record = records_for(asked.calls, "cpu:avx2", MACHINE)[0]
    problem = record.key.problem
    others = {
        "machine": replace(record, key=replace(record.key, machine=replace(MACHINE, units=5))),
        "target": replace(record, key=replace(record.key, target="cpu:portable")),
        "rows": replace(record, key=replace(record.key, problem=replace(problem, rows=128))),
        "templates": replace(record, key=replace(record.key, problem=replace(problem, sources=""))),
        "choice": replace(record, choice=(("columns", 0), ("rows", 7), ("threads", 0))),
    }
    for name, other in others.items():
        chooser = Recorded({other.key: other}, "cpu:avx2", MACHINE)
        assert lowered(linear_program(), CpuBackend(), chooser).kernels == analytic.kernels, name
        assert (chooser.num_kernels, chooser.num_tuned) == (1, 0), name


def test_blocks__every_one_renders_and_the_analytic_one_twice_alike() -> None:
    """Rendering a region again, with the same block, gives the same kernel: nothing is left over from before."""

    class Last:
        def choose(self, problem: Problem, blocks: Sequence[Block]) -> Block:
            return blocks[self.position % len(blocks)]

        position = 0

    for backend in (CpuBackend(), CudaBackend(SM_80)):
        analytic, names = lowered(linear_program(), backend), set()
        chooser = Last()
        for chooser.position in range(12):
            names.update(lowered(linear_program(), backend, chooser).kernels)
        assert len(names) > 4
        chooser.position = 0
        assert lowered(linear_program(), backend, chooser).kernels == analytic.kernels


# ---- whole compilations


class Tiny(nn.Module):
    """Compiles in a moment: one kernel of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


RECIPE = svdqc.Recipe(precision="none")
INPUTS = {"x": torch.randn(96, 64, generator=torch.Generator().manual_seed(0))}


@pytest.fixture
def tuning(tmp_path: Path) -> Path:
    """Hand-made records of Tiny's kernels for this machine, and for another."""
    from svdqc.compiler.driver import tune as driver
    from svdqc.compiler.driver.progress import Stages

    (target,) = (t for t in parse_targets("cpu", cpu_features(), list))
    program = driver._blank_program(Tiny().eval(), INPUTS, None, RECIPE, [target])
    sites = driver._sites(program, target, Stages(None))
    calls = [(site.problem, site.blocks) for site in sites]
    machine = machine_for(target)
    assert machine is not None
    path = tmp_path / "made.tune"
    append_records(path, records_for(calls, target.name, machine))
    append_records(path, records_for(calls, target.name, MACHINE, 2))
    return path


def compiled(path: Path, **options: Any) -> Any:
    return svdqc.compile(Tiny().eval(), INPUTS, output=path, recipe=RECIPE, **options)


def test_compile__with_records_reproduces_and_tells(tmp_path: Path, tuning: Path) -> None:
    plain = compiled(tmp_path / "plain.svdq")
    one = compiled(tmp_path / "one.svdq", tuning=tuning)
    two = compiled(tmp_path / "two.svdq", tuning=tuning, jobs=1)
    assert one.path.read_bytes() == two.path.read_bytes()
    (told,) = one.report["tuning"]
    assert (told["kernels"], told["tuned"], told["changed"]) == (1, 1, 1)
    assert "tuning" not in plain.report
    made = svdqc.inspect(one.path)["variants"][0]["provenance"]
    assert made["tuning"]["tuned"] == 1
    assert made["tuning"]["machine"] == told["machine"]
    assert "tuning" not in svdqc.inspect(plain.path)["variants"][0]["provenance"]
    outputs = [svdqc.load(a.path)(**INPUTS)[0] for a in (plain, one)]
    assert torch.equal(*outputs)
    assert outputs[0].abs().max() > 0.1


def test_compile__for_another_machine_of_the_file(tmp_path: Path, tuning: Path) -> None:
    here = compiled(tmp_path / "here.svdq", tuning=tuning)
    there = compiled(tmp_path / "there.svdq", tuning=tuning, tuned_on="machine 9000")
    assert there.report["tuning"][0]["machine"] == str(MACHINE)
    assert there.path.read_bytes() != here.path.read_bytes()
    with pytest.raises(AmbiguousMachine, match="fits 0 machines"):
        compiled(tmp_path / "no.svdq", tuning=tuning, tuned_on="H100")


def test_compile__no_record_matches(tmp_path: Path, tuning: Path) -> None:
    lines = tuning.read_text().splitlines(keepends=True)
    other = tmp_path / "other.tune"
    other.write_text("".join(line for line in lines if "9000" in line))
    artifact = compiled(tmp_path / "a.svdq", tuning=other)
    (told,) = artifact.report["tuning"]
    assert told["tuned"] == 0
    assert "Test Machine 9000" in told["known"]
    assert artifact.path.read_bytes() == compiled(tmp_path / "b.svdq").path.read_bytes()
    with pytest.raises(TuningFileUnreadable):
        compiled(tmp_path / "c.svdq", tuning=tmp_path / "absent")


def test_compile__a_tuned_cpu_has_a_plan_of_its_own(tmp_path: Path, tuning: Path) -> None:
    """Targets without records keep the analytic plan; weights are stored once."""
    native = parse_targets("cpu", cpu_features(), list)[0].name
    both = ",".join({native: None, CPU_TARGETS[-1].name: None})
    artifact = compiled(tmp_path / "a.svdq", tuning=tuning, target=both)
    told = {entry["target"]: entry["tuned"] for entry in artifact.report["tuning"]}
    assert told == {native: 1, CPU_TARGETS[-1].name: 0}
    shown = svdqc.inspect(artifact.path)
    assert shown["num_tensors"] == svdqc.inspect(compiled(tmp_path / "b.svdq").path)["num_tensors"]
