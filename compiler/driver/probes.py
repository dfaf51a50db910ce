"""A few inputs to measure a model's sensitivities on: some of the calibration samples, or the example inputs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sized
from math import prod
from typing import Any

from torch import Tensor

from svdqc.compiler.driver.calibrate import as_inputs
from svdqc.compiler.ir.program import Program

MOST_PROBES = 8
_REPEATS = 4
_PARAMETERS_FOR_ONE = 8 * 10**9
"""A model of this size is probed once, a smaller one as much more often."""

Sample = Mapping[str, Any]


class ProbeSamples:
    """Samples on their way to calibration; `count` of them are kept.

    Chance decides which: evenly spaced ones would all be of the same step where a drawing's steps follow each other.
    A stream of unknown length is read once, through a reservoir (algorithm R).
    """

    def __init__(self, samples: Iterable[Sample], count: int) -> None:
        self._samples, self._count = samples, count
        self._kept: dict[int, Sample] = {}

    def __iter__(self) -> Iterator[Sample]:
        self._kept, dice = {}, random.Random(1)
        for number, sample in enumerate(self._samples):
            slot = self._slot(number, dice)
            if slot is not None:
                self._kept[slot] = sample
            yield sample

    def kept(self) -> list[Sample]:
        """At most `count` samples. Reads them if nobody has."""
        if not self._kept:
            for _ in self:
                pass
        return [self._kept[slot] for slot in sorted(self._kept)]

    def _slot(self, number: int, dice: random.Random) -> int | None:
        """Where sample `number` is kept, in place of what is there."""
        slot = number if number < self._count else dice.randrange(number + 1)
        return slot if slot < self._count else None


class SizedProbeSamples(ProbeSamples):
    """The same, of a known length: one out of each of `count` equal stretches."""

    def __init__(self, samples: Iterable[Sample], count: int) -> None:
        super().__init__(samples, count)
        total, dice = len(self), random.Random(1)
        edges = [i * total // count for i in range(count + 1)]
        self._slots = {
            dice.randrange(begin, end): slot
            for slot, (begin, end) in enumerate(itertools.pairwise(edges))
            if end > begin
        }

    def __len__(self) -> int:
        assert isinstance(self._samples, Sized)
        return len(self._samples)

    def _slot(self, number: int, dice: random.Random) -> int | None:
        return self._slots.get(number)


def watch(samples: Iterable[Sample], program: Program) -> ProbeSamples:
    kind = SizedProbeSamples if isinstance(samples, Sized) else ProbeSamples
    return kind(samples, num_probes(program))


def num_probes(program: Program) -> int:
    weights = {
        str(n.meta["weight"]) for n in program.graph_module.graph.nodes if n.op == "get_attr"
    }
    parameters = sum(prod(program.weights.spec(name).shape) for name in weights)
    return min(MOST_PROBES, max(1, _PARAMETERS_FOR_ONE // max(parameters, 1)))


def probe_inputs(
    program: Program, inputs: Sample | None, watched: ProbeSamples | None
) -> list[dict[str, Tensor]]:
    """Named inputs of the program: some of the samples, else the example inputs.

    A single example is repeated: the probe's random direction differs each time. Made-up inputs are no use here, see
    passes/allocate.py.
    """
    if watched is not None:
        return [as_inputs(program, sample, i) for i, sample in enumerate(watched.kept())]
    if not inputs:
        return []
    return [as_inputs(program, inputs, 0)] * min(num_probes(program), _REPEATS)
