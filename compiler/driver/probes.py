"""A few inputs to measure a model's sensitivities on: some of the calibration samples, or made-up inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from math import prod
from typing import Any

import torch
from torch import Tensor

from svdqc.compiler.driver.calibrate import as_inputs
from svdqc.compiler.ir.program import Program
from svdqc.errors import SvdqcError
from svdqc.frontends import default_inputs

MOST_PROBES = 8
_PARAMETERS_FOR_ONE = 8 * 10**9
"""A model of this size is probed once, a smaller one as much more often."""

Sample = Mapping[str, Any]


class ProbeSamples:
    """Samples on their way to calibration; a few of them, evenly spaced, are kept.

    Works on an iterable that can be read only once, and whose length is not known: every `stride`-th sample is kept,
    and when there are twice too many, every second of those.
    """

    def __init__(self, samples: Iterable[Sample], count: int) -> None:
        self._samples, self._count = samples, count
        self._kept: list[Sample] = []

    def __iter__(self) -> Iterator[Sample]:
        self._kept, stride = [], 1
        for number, sample in enumerate(self._samples):
            if number % stride == 0:
                if len(self._kept) == 2 * self._count:
                    self._kept, stride = self._kept[::2], stride * 2
                if number % stride == 0:
                    self._kept.append(sample)
            yield sample

    def kept(self) -> list[Sample]:
        """At most `count` samples. Reads them if nobody has."""
        if not self._kept:
            for _ in self:
                pass
        count = min(self._count, len(self._kept))
        return [self._kept[i * len(self._kept) // count] for i in range(count)]


class SizedProbeSamples(ProbeSamples):
    """The same, of a known length."""

    def __len__(self) -> int:
        assert isinstance(self._samples, Sized)
        return len(self._samples)


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
    program: Program, model: Any, inputs: Sample | None, dynamic: Any, watched: ProbeSamples | None
) -> list[dict[str, Tensor]]:
    """Named inputs of the program: some of the samples, else the example inputs, else what can be made up.

    What is not a sample is repeated: the probe's random direction differs each time.
    """
    if watched is not None:
        return [as_inputs(program, sample, i) for i, sample in enumerate(watched.kept())]
    return [_example(program, model, inputs, dynamic)] * min(num_probes(program), 4)


def _example(
    program: Program, model: Any, inputs: Sample | None, dynamic: Any
) -> dict[str, Tensor]:
    try:
        example = inputs if inputs else default_inputs(model, dynamic=dynamic)
        return as_inputs(program, example, 0)
    except SvdqcError:
        return _random_inputs(program)


def _random_inputs(program: Program) -> dict[str, Tensor]:
    """Normal numbers, and zeros for what counts or selects, of the sizes the program was captured with."""
    dice = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    for spec in program.inputs:
        shape = [int(size) for size in spec.shape]
        if spec.dtype.is_floating_point:
            made[spec.name] = torch.randn(shape, generator=dice).to(spec.dtype)
        else:
            made[spec.name] = torch.zeros(shape, dtype=spec.dtype)
    return made
