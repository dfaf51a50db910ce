"""Record what flows into the layers to be quantized: sampled tokens, split in fitting and held-out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from svdqc.compiler.ir.interpreter import run_program
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.linear_groups import LinearGroup
from svdqc.compiler.quantize.linear import LinearSamples
from svdqc.errors import SvdqcError

FIT_TOKENS = 2048
HELD_OUT_TOKENS = 512


class UnfitSamples(SvdqcError):
    """A calibration sample does not fit the model."""


class NoSamples(SvdqcError):
    """Calibration was asked for with nothing to calibrate on."""


@dataclass
class _Reservoir:
    """A uniform sample of rows of a stream whose length is not known (reservoir sampling, algorithm R, by blocks)."""

    capacity: int
    generator: torch.Generator
    seen: int = 0
    rows: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        rows = rows.reshape(-1, rows.shape[-1]).to(torch.float32)
        held = rows[:0] if self.rows is None else self.rows
        room = self.capacity - held.shape[0]
        held = torch.cat([held, rows[:room]]) if room > 0 else held
        rest = rows[room:] if room > 0 else rows
        position = self.seen + max(room, 0)
        if rest.shape[0]:
            numbers = torch.arange(position, position + rest.shape[0]) + 1
            slots = (
                torch.rand(rest.shape[0], generator=self.generator, dtype=torch.float64) * numbers
            ).long()
            kept = slots < self.capacity
            held = held.clone()
            held[slots[kept]] = rest[kept]
        self.seen += rows.shape[0]
        self.rows = held

    def distinct(self) -> Tensor:
        """[tokens, in_features] without repetitions."""
        assert self.rows is not None, "a calibrated layer was never reached"
        rows: Tensor = torch.unique(self.rows, dim=0)
        return rows


def calibrate(
    program: Program,
    groups: list[LinearGroup],
    samples: Iterable[Mapping[str, Any]],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, LinearSamples]:
    """Run the float graph on every sample; returns the input tokens of each group by its name."""
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[Node, list[str]] = {}
    for group in groups:
        inputs.setdefault(group.x, []).append(group.name)
    fit = {node: _Reservoir(FIT_TOKENS, generator) for node in inputs}
    held_out = {node: _Reservoir(HELD_OUT_TOKENS, generator) for node in inputs}
    total = len(samples) if isinstance(samples, Sized) else 0
    count = 0
    for sample in samples:
        chosen = held_out if _is_held_out(count, total) else fit

        def observe(node: Node, value: Any, into: dict[Node, _Reservoir] = chosen) -> None:
            if node in into:
                into[node].add(value)

        run_program(program, as_inputs(program, sample, count), observe)
        count += 1
        if progress is not None:
            progress(count, max(total, count))
    if count == 0:
        raise NoSamples(
            "calibrate",
            "calibration",
            "no samples",
            "give at least one input dict, or calibration none",
        )
    return {
        name: _layer_samples(fit[node], held_out[node], generator)
        for node, names in inputs.items()
        for name in names
    }


def _is_held_out(number: int, total: int) -> bool:
    """Whole samples are held out, the last fifth of them: tokens of one picture resemble each other, and steps of one
    drawing follow each other, so held-out tokens of the same samples would flatter every choice they judge.
    """
    if total:
        return total >= 5 and number >= total - total // 5
    return number % 5 == 4


def _layer_samples(
    fit: _Reservoir, held_out: _Reservoir, generator: torch.Generator
) -> LinearSamples:
    """Distinct tokens only: a word that every prompt repeats would count as many. A single sample is cut by tokens."""
    rows = fit.distinct()
    if held_out.rows is not None:
        return LinearSamples(rows, held_out.distinct())
    shuffled = rows[torch.randperm(rows.shape[0], generator=generator)]
    cut = max(rows.shape[0] - HELD_OUT_TOKENS, rows.shape[0] * 4 // 5)
    return LinearSamples(shuffled[:cut], shuffled[cut:])


def as_inputs(program: Program, sample: Mapping[str, Any], number: int) -> dict[str, Tensor]:
    """A sample as the program's named inputs; says what does not fit."""
    from svdqc.frontends.spec import flatten_inputs

    flat = flatten_inputs(sample)
    found: dict[str, Tensor] = {}
    placeholders = [n for n in program.graph_module.graph.nodes if n.op == "placeholder"]
    for spec, node in zip(program.inputs, placeholders, strict=True):
        if spec.name not in flat:
            raise UnfitSamples(
                "calibrate",
                f"sample {number}",
                f"input {spec.name!r} is missing",
                f"give {', '.join(s.name for s in program.inputs)}",
            )
        value = torch.as_tensor(flat[spec.name]).to(spec.dtype)
        wanted = node.meta["val"].shape
        same_rank = value.dim() == len(wanted)
        if not same_rank or any(
            isinstance(w, int) and w != s for s, w in zip(value.shape, wanted, strict=True)
        ):
            raise UnfitSamples(
                "calibrate",
                f"sample {number}",
                f"input {spec.name!r} is {list(value.shape)}, not {list(wanted)}",
                "record the samples with the shapes being compiled, or make the axis dynamic",
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UnfitSamples(
                "calibrate",
                f"sample {number}",
                f"input {spec.name!r} holds NaN or infinity",
                "leave the sample out",
            )
        found[spec.name] = value
    return found
