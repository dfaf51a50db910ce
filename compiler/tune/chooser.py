"""A chooser that takes what was measured where there is a record, and the analytic model's choice elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from svdqc.compiler.codegen.choice import Problem
from svdqc.compiler.codegen.printing.backend import Block
from svdqc.compiler.tune.record import Machine, TuningKey, TuningRecord, key_of


class Recorded:
    """For one target, tuned for one machine. Remembers which of the problems it was asked had a record."""

    def __init__(
        self, records: Mapping[TuningKey, TuningRecord], target: str, machine: Machine
    ) -> None:
        self._records, self.target, self.machine = records, target, machine
        self._asked: dict[TuningKey, TuningRecord | None] = {}
        self._changed: set[TuningKey] = set()

    def choose(self, problem: Problem, blocks: Sequence[Block]) -> Block:
        """The recorded block, if the region can still have it."""
        key = key_of(problem, self.target, self.machine)
        record = self._records.get(key)
        fitting = [] if record is None else [b for b in blocks if _is(b, record)]
        self._asked[key] = record if fitting else None
        if not fitting:
            return blocks[0]
        if fitting[0] != blocks[0]:
            self._changed.add(key)
        return fitting[0]

    @property
    def num_kernels(self) -> int:
        """Distinct problems asked for."""
        return len(self._asked)

    @property
    def num_tuned(self) -> int:
        """Those that had a record."""
        return sum(record is not None for record in self._asked.values())

    def provenance(self) -> dict[str, Any]:
        """For the artifact: the machine, how many kernels had records and how many are others than the analytic
        model's, and one name for the records that were used."""
        used = sorted(record.line() for record in self._asked.values() if record is not None)
        return {
            "machine": str(self.machine),
            "kernels": self.num_kernels,
            "tuned": self.num_tuned,
            "changed": len(self._changed),
            "records": hashlib.sha256("\n".join(used).encode()).hexdigest(),
        }


def _is(block: Block, record: TuningRecord) -> bool:
    return block.parameters() == dict(record.choice)
