"""What is known of one kernel on one machine: a line of a tuning file.

    {"version": 1, "key": {"problem": {…}, "target": "cpu:avx2", "machine": {…}}, "choice": {"rows": 24, …},
     "median_us": 81.2, "analytic_us": 97.9, "repetitions": 120, "candidates": 9, "complete": true}

Records are found by equality of the whole key. A field beside `key` that is not known here is ignored: a newer svdqc
wrote it. A key with an unknown field says more than can be compared here, and is passed over, as is a newer version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from svdqc.compiler.codegen.choice import Problem

VERSION = 1
EXACT_ROWS = 64
BUCKETS_PER_OCTAVE = 8


class NewerRecord(Exception):
    """The line says what this version cannot compare."""


@dataclass(frozen=True)
class Machine:
    """What a measurement holds for.

    device     the processor or GPU, as it names itself
    units      threads that run kernels, or multiprocessors
    driver     of the GPU: the newest CUDA that it knows; "" for CPUs
    toolchain  what compiles kernels, with its version
    """

    device: str
    units: int
    driver: str
    toolchain: str

    def __str__(self) -> str:
        if not self.driver:
            return f"{self.device}, {self.units} threads, {self.toolchain}"
        return f"{self.device}, {self.units} SMs, driver {self.driver}, {self.toolchain}"


@dataclass(frozen=True)
class TuningKey:
    """problem has its rows rounded up to the bucket: `key_of` makes one."""

    problem: Problem
    target: str
    machine: Machine


@dataclass(frozen=True)
class TuningRecord:
    """choice       `Block.parameters` of what was fastest
    median_us    of the choice; analytic_us: of the analytic model's choice, in turn with it in the same process
    repetitions  of each of the two
    candidates   how many blocks were measured beside the analytic one; complete: all that were to be
    """

    key: TuningKey
    choice: tuple[tuple[str, int], ...]
    median_us: float
    analytic_us: float
    repetitions: int
    candidates: int
    complete: bool

    def line(self) -> str:
        """One line of a file, without its end."""
        told = {"version": VERSION, **asdict(self), "choice": dict(self.choice)}
        return json.dumps(told, sort_keys=True, separators=(",", ":"))


def key_of(problem: Problem, target: str, machine: Machine) -> TuningKey:
    return TuningKey(replace(problem, rows=bucket(problem.rows)), target, machine)


def bucket(rows: int) -> int:
    """Rows that share a record: exact up to 64, then eight steps an octave, named by the largest."""
    if rows <= EXACT_ROWS:
        return rows
    step = (1 << ((rows - 1).bit_length() - 1)) // BUCKETS_PER_OCTAVE
    return -(-rows // step) * step


def parse_record(line: str) -> TuningRecord:
    """Raises NewerRecord, or ValueError for what is no record."""
    told = json.loads(line)
    if not isinstance(told, dict) or not isinstance(told.get("version"), int):
        raise ValueError("no record")
    if told["version"] > VERSION:
        raise NewerRecord(f"version {told['version']}")
    try:
        key = told["key"]
        _known_only(key, TuningKey)
        return TuningRecord(
            TuningKey(_parse(key["problem"], Problem), str(key["target"]), _machine(key)),
            tuple(sorted((str(name), int(value)) for name, value in told["choice"].items())),
            float(told["median_us"]),
            float(told["analytic_us"]),
            int(told["repetitions"]),
            int(told["candidates"]),
            bool(told["complete"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no record: {error}") from error


def _machine(key: Mapping[str, Any]) -> Machine:
    machine: Machine = _parse(key["machine"], Machine)
    return machine


def _parse(told: Mapping[str, Any], kind: Any) -> Any:
    """A flat dataclass of texts and integers."""
    _known_only(told, kind)
    for field in fields(kind):
        if type(told[field.name]).__name__ != field.type:
            raise ValueError(f"{field.name} is no {field.type}")
    return kind(**told)


def _known_only(told: Mapping[str, Any], kind: Any) -> None:
    unknown = set(told) - {field.name for field in fields(kind)}
    if unknown:
        raise NewerRecord(f"its key has {', '.join(sorted(unknown))}")
