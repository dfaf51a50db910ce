"""Searching: candidates that crash, hang, lie or do not compile cost only themselves; interruptions keep records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.compiler.programs import ProgramBuilder, native

from svdqc.compiler.codegen.cpu.backend import CpuBackend
from svdqc.compiler.codegen.kernel import Kernel
from svdqc.compiler.codegen.printing.backend import Block
from svdqc.compiler.ir.rewrite import aten
from svdqc.compiler.passes.fuse import fuse
from svdqc.compiler.passes.pipeline import CANONICALIZE, run_passes
from svdqc.compiler.targets.compile_cache import CompilationFailed
from svdqc.compiler.targets.select import build_code
from svdqc.compiler.tune import measure as measuring
from svdqc.compiler.tune import search as searching
from svdqc.compiler.tune.bench import frame_sources, write_bench
from svdqc.compiler.tune.child import Request, Timing, _difference
from svdqc.compiler.tune.record import Machine, TuningRecord
from svdqc.compiler.tune.search import Outcome, Setting, search
from svdqc.compiler.tune.sites import Site, find_sites
from svdqc.runtime import inspect, load

MACHINE = Machine("Test Machine", 2, "", "")


def sites(*widths: int) -> list[Site]:
    """A kernel of rows for each width: softmax of x [64, width]."""
    builder = ProgramBuilder()
    inputs = [builder.input(torch.zeros(64, width)) for width in widths]
    program = builder.finish(*(builder.call(aten._softmax.default, x, -1, False) for x in inputs))
    run_passes(program, CANONICALIZE)
    return find_sites(program, fuse(program), CpuBackend())


def setting(**changes: Any) -> Setting:
    usual = Setting(native(), MACHINE, "cpu", 2, 3, 0.02, 1 << 20, 1)
    return replace(usual, **changes)


def found(
    kernels: list[Site], how: Setting, **options: Any
) -> tuple[list[Outcome], list[TuningRecord]]:
    records: list[TuningRecord] = []
    outcomes = list(search(kernels, how, records.append, lambda *_: None, **options))
    return outcomes, records


class Spoilt(Site):
    """A site whose candidates at some positions have other code."""

    spoil: dict[int, Callable[[str], str]]

    def kernel(self, block: Block) -> Kernel | None:
        kernel = super().kernel(block)
        assert kernel is not None
        change = self.spoil.get(self.blocks.index(block))
        return kernel if change is None else replace(kernel, source=change(kernel.source))


def spoilt(site: Site, **spoil: Callable[[str], str]) -> Spoilt:
    made = Spoilt(**vars(site))
    made.spoil = {int(position[1:]): change for position, change in spoil.items()}
    return made


def first(statement: str) -> Callable[[str], str]:
    """The kernel with a statement before everything else."""
    return lambda source: source.replace("task_end) {", "task_end) {\n" + statement, 1)


def test_search__records_the_fastest_of_a_real_kernel() -> None:
    """The analytic choice is made a hundred times slower than it is."""
    (site,) = sites(48)
    slow = first("for (volatile int i = 0; i < 300000; ++i) {}")
    (outcome,), (record,) = found([spoilt(site, b0=slow)], setting(candidates=2))
    assert outcome.record == record
    assert outcome.lost == []
    assert record.complete
    assert record.candidates == 2
    assert record.median_us < 0.98 * record.analytic_us
    assert dict(record.choice) in [b.parameters() for b in site.blocks[1:3]]


def test_search__crash_hang_and_lie_cost_only_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    (site,) = sites(48)
    hangs = 3  # as candidates are counted, from the analytic choice on

    def impatient(request: Request) -> Timing | str:
        monkeypatch.setattr(measuring, "START_SECONDS", 2.0 if request.candidate == hangs else 60.0)
        return measuring.measure_apart(request)

    bad = spoilt(
        site,
        b1=first("__builtin_trap();"),
        b2=first('for (;;) __asm__ volatile("");'),
        b3=first("return;"),
    )
    (outcome,), (record,) = found([bad], setting(candidates=4), measure=impatient)
    reasons = [text.split(": ", 1)[1] for text in outcome.lost]
    assert reasons[0].startswith("ended by SIG"), reasons
    assert reasons[1].startswith("took more than"), reasons
    assert "differ" in reasons[2], reasons
    assert len(reasons) == 3
    assert record.candidates == 1
    assert record.complete


def fast(request: Request) -> Timing:
    """A measurement by rule: the higher the candidate, the faster."""
    return Timing(100.0 / request.candidate, 100.0, 5)


def no_build(*_: Any) -> bytes:
    return b"code"


@pytest.fixture
def three() -> list[Site]:
    return sites(48, 80, 112)


def picky(sources: Mapping[str, str], *_: Any) -> bytes:
    """A compiler that stops at the first kernel it does not like."""
    for name, source in sources.items():
        if "not C++;" in source:
            raise CompilationFailed("compile kernels", name, "an error", "")
    return b"code"


def test_search__what_does_not_compile_is_lost(three: list[Site]) -> None:
    bad = first("not C++;")
    options = {"build": picky, "measure": fast}
    (outcome,), (record,) = found([spoilt(three[0], b1=bad)], setting(candidates=2), **options)
    assert ["does not compile" in text for text in outcome.lost] == [True]
    assert record.candidates == 1
    (outcome,), records = found([spoilt(three[0], b0=bad)], setting(candidates=1), **options)
    assert records == []
    assert "analytic" in outcome.lost[-1]


def test_search__interruption_keeps_what_was_measured(three: list[Site]) -> None:
    """Ctrl-C at the second candidate of the second kernel: one whole record, one that is not complete."""
    asked: list[int] = []

    def interrupted(request: Request) -> Timing:
        asked.append(request.candidate)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return fast(request)

    records: list[TuningRecord] = []
    with pytest.raises(KeyboardInterrupt):
        for _ in search(
            three, setting(), records.append, lambda *_: None, build=no_build, measure=interrupted
        ):
            pass
    assert [(r.complete, r.candidates) for r in records] == [(True, 3), (False, 1)]
    assert records[0].key.problem.body == three[0].problem.body
    assert records[1].key.problem.body == three[1].problem.body


def test_search__stops_at_the_deadline_with_what_it_has(
    three: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of its own: four measurements of a kernel take 4 s, there are 6."""
    clock = [1000.0]
    monkeypatch.setattr(searching, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def slowly(request: Request) -> Timing:
        clock[0] += 1.0
        return fast(request)

    how = setting(deadline=clock[0] + 6.0)
    outcomes, records = found(three, how, build=no_build, measure=slowly)
    assert len(outcomes) == 2
    assert [(r.complete, r.candidates) for r in records] == [(True, 3), (False, 2)]


def test_search__no_gain_is_the_analytic_choice(three: list[Site]) -> None:
    """Within 2% there is nothing to choose; and what was only lucky does not stand the second time."""
    seen: dict[str, int] = {}

    def lucky(request: Request) -> Timing:
        seen[request.path] = seen.get(request.path, 0) + 1
        return Timing(70.0 if seen[request.path] == 2 else 99.0, 100.0, 5)

    _, records = found(three[:1], setting(), build=no_build, measure=lucky)
    assert dict(records[0].choice) == three[0].blocks[0].parameters()
    assert records[0].median_us == records[0].analytic_us == 100.0


def test_search__candidates_are_few_and_the_analytic_one_is_first(three: list[Site]) -> None:
    asked: list[int] = []

    def counting(request: Request) -> Timing:
        asked.append(request.candidate)
        return fast(request)

    found(three[:1], setting(candidates=2), build=no_build, measure=counting)
    assert asked == [2, 3, 3]
    assert len(three[0].blocks) > 3


def test_bench__a_file_that_the_runtime_proves(three: list[Site], tmp_path: Path) -> None:
    target = native()
    kernels = [k for b in three[0].blocks[:2] if (k := three[0].kernel(b)) is not None]
    sources = {k.name: k.source for k in kernels} | frame_sources(target)
    code = build_code(sources, target, 2)
    bench = write_bench(tmp_path / "b.svdq", three[0], kernels, code, target, 1 << 20)
    shown = inspect(bench.path)
    assert shown["num_launches"] == bench.first + 2 + 1
    assert shown["dims"][0]["hi"] == 2
    with load(bench.path, threads=2, trust=True, profile=True) as model:
        for candidate in (1, 2):
            model(candidate=np.zeros(candidate, np.uint8))
            times = [launch.microseconds for launch in model.profile()]
            assert times[bench.first + candidate - 1] > 0
            assert times[bench.first + 2 - candidate] == 0, "it has no tasks"
            assert min(times) >= 0


def test_difference__bits_sums_in_another_order_and_codes_next_to_each_other() -> None:
    floats = np.linspace(-1, 1, 500, dtype=np.float32)
    assert _difference(floats, floats.copy()) == ""
    assert _difference(floats, floats + np.float32(1e-5)) == ""
    assert "differ by" in _difference(floats, floats + np.float32(1e-3))
    spoilt = floats.copy()
    spoilt[3] = np.nan
    assert "not numbers" in _difference(floats, spoilt)

    codes = np.arange(-100, 100, dtype=np.int8)
    for value, step, wrong in [(5, 1, False), (5, -1, False), (5, 2, True), (5, 16, False)]:
        other = codes.copy()
        other[other == value] = value + step
        assert bool(_difference(codes, other)) == wrong, (value, step)
    assert "codes differ" in _difference(codes, codes + np.int8(1)), "every one of them"
    other = codes.copy()
    other[other == 0x0F] = 0x10 - 0x10  # low nibble -1 to 0
    assert _difference(codes, other) == ""
