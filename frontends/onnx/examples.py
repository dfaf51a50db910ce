"""Example inputs: sizes for the dynamic dims that the graph accepts, found under fake tensors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from svdqc.frontends.onnx.errors import OnnxError, OnnxNodeError

if TYPE_CHECKING:
    from svdqc.frontends.onnx.module import OnnxModule

_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)
# Image models halve their input up to six times, so sizes are tried with these factors: coprime but
# for the factor, so no two dims are equal and none divides another.
_FACTORS = (8, 1, 64)
_MOST_MERGERS = 2


@dataclass(frozen=True)
class Examples:
    """Inputs the model runs with.

    inputs  keyword → tensor
    names   dynamic dim as the file names it → the same, or the dim it has to be equal to
    """

    inputs: dict[str, Tensor]
    names: dict[str, str]


def find_examples(module: OnnxModule) -> Examples:
    """Small distinct sizes; dims are made equal one pair at a time, where that lets more nodes run."""
    dims = _dims_of(module)
    first: OnnxNodeError | None = None
    for factor in _FACTORS:
        names = {dim: dim for dim in dims}
        error = _error_of(module, names, factor)
        while error is not None:
            first = first or error
            step = _step(module, names, factor, error)
            if step is None:
                break
            error, names = step
        if error is None:
            return Examples(_inputs(module, _sizes(module, names, factor)), names)
    assert first is not None
    raise OnnxError(
        "inputs",
        f"no sizes found for the dynamic dims {', '.join(dims)} ({first})",
        "export the model with static sizes, or give inputs to compile with",
    ) from first


def _dims_of(module: OnnxModule) -> list[str]:
    """The dynamic dims, those of a first axis (a batch, mostly) before the others."""
    names = dict.fromkeys(
        size for spec in module.graph_inputs for size in spec.shape if isinstance(size, str)
    )
    leading = [spec.shape[0] for spec in module.graph_inputs if len(spec.shape) > 1]
    return sorted(names, key=lambda name: -leading.count(name))


def _step(
    module: OnnxModule, names: dict[str, str], factor: int, error: OnnxNodeError
) -> tuple[OnnxNodeError | None, dict[str, str]] | None:
    """The fewest dims to make equal so that more nodes run, with the next error.

    One pair may not be enough: text + image tokens equal other text + image tokens only if both are.
    """
    frontier = [names]
    for _ in range(_MOST_MERGERS):
        frontier = _mergers(frontier)
        tried = [(_error_of(module, attempt, factor), attempt) for attempt in frontier]
        best = max(tried, key=lambda attempt: _progress(attempt[0]), default=(error, names))
        if _progress(best[0]) > _progress(error):
            return best
    return None


def _mergers(frontier: list[dict[str, str]]) -> list[dict[str, str]]:
    """Every way to make two more dims equal, each once."""
    found = {}
    for names in frontier:
        for keep, drop in combinations(dict.fromkeys(names.values()), 2):
            merged = {dim: keep if name == drop else name for dim, name in names.items()}
            found[tuple(merged.values())] = merged
    return list(found.values())


def _progress(error: OnnxNodeError | None) -> float:
    """How many nodes ran."""
    return float("inf") if error is None else error.num_run


def _sizes(module: OnnxModule, names: dict[str, str], factor: int) -> dict[str, int]:
    """A prime for each dim, times the factor, except for the one taken for the batch."""
    kept = list(dict.fromkeys(names.values()))
    leading = {names.get(str(spec.shape[0])) for spec in module.graph_inputs if len(spec.shape) > 1}
    primes = {
        name: _PRIMES[i % len(_PRIMES)] * (1 if i == 0 and name in leading else factor)
        for i, name in enumerate(kept)
    }
    return {dim: primes[name] for dim, name in names.items()}


def _inputs(module: OnnxModule, sizes: dict[str, int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for spec in module.graph_inputs:
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
        if spec.dtype.is_floating_point:
            inputs[spec.name] = torch.randn(shape, generator=generator).to(spec.dtype)
        elif spec.dtype == torch.bool:
            inputs[spec.name] = torch.ones(shape, dtype=torch.bool)
        else:
            inputs[spec.name] = torch.zeros(shape, dtype=spec.dtype)
    return inputs


def _error_of(module: OnnxModule, names: dict[str, str], factor: int) -> OnnxNodeError | None:
    """What goes wrong when the model runs on shapes alone."""
    inputs = _inputs(module, _sizes(module, names, factor))
    with _quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        try:
            module(**{name: mode.from_tensor(tensor) for name, tensor in inputs.items()})
        except OnnxNodeError as error:
            return error
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Failures are expected here: torch need not log them."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
