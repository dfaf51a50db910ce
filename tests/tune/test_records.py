"""Tuning records: what a file holds, what it forgives, and that only equal keys are equal."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from svdqc.compiler.codegen.choice import Problem
from svdqc.compiler.tune.errors import (
    AmbiguousMachine,
    NotATuningFile,
    TuningFileUnreadable,
    TuningFileUnwritable,
)
from svdqc.compiler.tune.record import Machine, TuningKey, TuningRecord, bucket, key_of
from svdqc.compiler.tune.store import (
    append_records,
    check_appendable,
    read_if_there,
    read_records,
)

MACHINE = Machine("Some CPU (family 1, model 2)", 8, "", "g++ 12.2")
PROBLEM = Problem("linear_s4", "s4", 3072, 768, 64, 32, 128, "linear_s4:f32:3072", "ab" * 32)


def record(problem: Problem = PROBLEM, machine: Machine = MACHINE, rows: int = 24) -> TuningRecord:
    key = key_of(problem, "cpu:avx2", machine)
    choice = (("columns", 0), ("rows", rows), ("threads", 0))
    return TuningRecord(key, choice, 81.25, 97.5, 120, 9, True)


def test_records__round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.tune"
    first, second = record(), record(replace(PROBLEM, n=1024))
    append_records(path, [first])
    append_records(path, [second])
    found = read_records(path)
    assert found.by_key == {first.key: first, second.key: second}
    assert found.notes == []
    assert path.read_bytes().count(b"\n") == 2


def test_records__last_of_a_key_counts(tmp_path: Path) -> None:
    append_records(tmp_path / "a", [record(rows=24), record(rows=48)])
    (found,) = read_records(tmp_path / "a").by_key.values()
    assert dict(found.choice)["rows"] == 48


def test_records__torn_last_line_is_ignored_said_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.tune"
    kept, lost = record(), record(replace(PROBLEM, k=64))
    append_records(path, [kept, lost])
    path.write_bytes(path.read_bytes()[:-7])
    found = read_records(path)
    assert set(found.by_key) == {kept.key}
    assert len(found.notes) == 1
    assert "torn" in found.notes[0]
    append_records(path, [lost])
    found = read_records(path)
    assert set(found.by_key) == {kept.key, lost.key}
    assert found.notes == []


@pytest.mark.parametrize("name", [f.name for f in fields(Problem)])
def test_records__every_field_of_a_problem_counts(name: str) -> None:
    value = getattr(PROBLEM, name)
    other = replace(PROBLEM, **{name: value + "x" if isinstance(value, str) else value + 100})
    assert key_of(other, "cpu:avx2", MACHINE) != key_of(PROBLEM, "cpu:avx2", MACHINE)


@pytest.mark.parametrize("name", [f.name for f in fields(Machine)])
def test_records__every_field_of_a_machine_counts(name: str) -> None:
    value = getattr(MACHINE, name)
    other = replace(MACHINE, **{name: value + "x" if isinstance(value, str) else value + 1})
    assert key_of(PROBLEM, "cpu:avx2", other) != key_of(PROBLEM, "cpu:avx2", MACHINE)
    assert key_of(PROBLEM, "cpu:avx512vnni", MACHINE) != key_of(PROBLEM, "cpu:avx2", MACHINE)


def test_records__equality_decides_and_not_the_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TuningKey, "__hash__", lambda self: 7)
    one, two = record(rows=12), record(replace(PROBLEM, group=128), rows=48)
    append_records(tmp_path / "a", [one, two])
    found = read_records(tmp_path / "a").by_key
    assert found[one.key] == one
    assert found[two.key] == two
    assert record(replace(PROBLEM, n=8)).key not in found


def test_records__rows_share_buckets() -> None:
    assert [bucket(rows) for rows in (1, 63, 64)] == [1, 63, 64]
    assert {bucket(rows) for rows in range(129, 145)} == {144}
    assert bucket(145) == 160
    assert bucket(4096) == 4096
    for rows in range(1, 5000):
        assert rows <= bucket(rows) <= rows * 9 / 8
        assert bucket(bucket(rows)) == bucket(rows)
    near = replace(PROBLEM, rows=127)
    assert key_of(near, "cpu:avx2", MACHINE) == key_of(PROBLEM, "cpu:avx2", MACHINE)


def changed(**values: object) -> str:
    """A record's line with other fields, a dot reaching into it."""
    told = json.loads(record().line())
    for name, value in values.items():
        *path, last = name.split("__")
        place = told
        for part in path:
            place = place[part]
        place[last] = value
    return json.dumps(told) + "\n"


def test_records__newer_fields_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(changed(temperature=41.5, noise={"p10": 1}))
    assert read_records(tmp_path / "a").by_key == {record().key: record()}


@pytest.mark.parametrize("values", [{"version": 2}, {"key__problem__swizzle": 3}, {"key__mig": 1}])
def test_records__newer_meaning_is_passed_over_and_said(
    tmp_path: Path, values: dict[str, object]
) -> None:
    (tmp_path / "a").write_text(changed(**values) + record().line() + "\n")
    found = read_records(tmp_path / "a")
    assert set(found.by_key) == {record().key}
    assert "passed over 1 of a newer svdqc" in found.notes[0]


@pytest.mark.parametrize(
    "line",
    [
        "these are not records\n",
        "{}\n",
        "[1]\n",
        changed(key__problem__n="3072"),
        changed(choice=3),
        changed(median_us=None),
        "\xff\n",
        "[" * 100_000 + "\n",
    ],
)
def test_records__something_else_is_refused_by_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(record().line().encode() + b"\n" + line.encode("latin-1"))
    with pytest.raises(NotATuningFile, match="line 2"):
        read_records(path)


def test_records__absent_file(tmp_path: Path) -> None:
    with pytest.raises(TuningFileUnreadable, match="No such file"):
        read_records(tmp_path / "none")
    assert read_if_there(tmp_path / "none").by_key == {}


def test_records__unwritable_places_are_told_and_left_alone(tmp_path: Path) -> None:
    for place in (tmp_path / "no" / "a.tune", Path("/dev/full")):
        with pytest.raises(TuningFileUnwritable, match="cannot be written"):
            append_records(place, [record()])
    check_appendable(tmp_path / "fresh")
    assert list(tmp_path.iterdir()) == []


def test_records__machine_by_a_part_of_its_description(tmp_path: Path) -> None:
    gpus = [Machine("NVIDIA H100 PCIe", 114, "13.0", "nvcc 13"), Machine("NVIDIA L4", 58, "", "")]
    append_records(tmp_path / "a", [record(machine=m) for m in (MACHINE, *gpus)])
    found = read_records(tmp_path / "a")
    assert found.machine("cpu:avx2", "h100") == gpus[0]
    for text in ("NVIDIA", "nothing"):
        with pytest.raises(AmbiguousMachine, match="H100 PCIe, 114 SMs"):
            found.machine("cpu:avx2", text)
