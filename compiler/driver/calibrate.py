"""Record what flows into the layers to be quantized: sampled tokens, split in fitting and held-out.

The float graph is run in segments (driver/segments.py), each on every sample, so that a model larger than memory is
read once. What is between segments, and the tokens, lie in the work folder; an interrupted calibration goes on after
the last segment that was finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from svdqc.compiler.artifact.graph import dump_graph
from svdqc.compiler.driver.reservoir import TokenSample
from svdqc.compiler.driver.segments import SEGMENT_BYTES, SegmentRunner, Values, cut
from svdqc.compiler.driver.work_folder import WorkFolder
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.linear_groups import LinearGroup
from svdqc.compiler.quantize.linear import LinearSamples
from svdqc.compiler.quantize.stored import tensor_digest
from svdqc.errors import SvdqcError
from svdqc.frontends.spec import flatten_inputs

Sample = Mapping[str, Any]
CalibrationProgress = Callable[[int, int], None]


class UnfitSamples(SvdqcError):
    """A calibration sample does not fit the model."""


class NoSamples(SvdqcError):
    """Calibration was asked for with nothing to calibrate on."""


class StoredSamples(Mapping[str, LinearSamples]):
    """The tokens of each group by its name, read from the work folder when they are asked for."""

    def __init__(self, work: WorkFolder, pieces: Mapping[str, str]) -> None:
        self._work, self._pieces = work, pieces

    def __getitem__(self, name: str) -> LinearSamples:
        tensors, _ = self._work.read(self._pieces[name])
        return LinearSamples(tensors["fit"], tensors["held_out"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def calibrate(
    program: Program,
    groups: Sequence[LinearGroup],
    samples: Iterable[Sample],
    work: WorkFolder,
    seed: int = 0,
    progress: CalibrationProgress | None = None,
    device: str = "cpu",
    segment_bytes: int = SEGMENT_BYTES,
) -> Mapping[str, LinearSamples]:
    """The input tokens of each group by its name. `samples` are read twice; see `rewindable`."""
    key, total = _key(program, groups, samples, (seed, device, segment_bytes))
    names = {group.x: group.name for group in reversed(groups)}
    tokens = {node: _piece(key, name) for node, name in names.items()}
    segments = cut(program, tokens, segment_bytes)
    sampled = [[n for n in segment.nodes if n in tokens] for segment in segments]
    sampled[0] += [n for n in _placeholders(program) if n in tokens]
    begin = _unfinished(work, key, [[tokens[n] for n in nodes] for nodes in sampled], total)
    for number in range(begin, len(segments)):
        segment, last = segments[number], number + 1 == len(segments)
        found = {n: TokenSample(seed, names[n]) for n in sampled[number]}
        runner = SegmentRunner(program, segment, device)
        for at, values in enumerate(_values(program, samples, work, key, number, segment.live_in)):
            observe = partial(_add, found, _is_held_out(at, total))
            for node in values if number == 0 else ():
                observe(node, values[node])
            passed = runner.run({n: values[n] for n in segment.live_in}, observe)
            if not last:
                _save(work, _between(key, number, at), passed)
            if progress is not None:
                progress(number * total + at + 1, len(segments) * total)
        for node, sample in found.items():
            fit, held_out = sample.result()
            work.write(tokens[node], {"fit": fit, "held_out": held_out})
        work.write(_passed(key, number), {"samples": torch.tensor(total)})
        for at in range(total if number else 0):
            work.discard(_between(key, number - 1, at))
    return StoredSamples(work, {group.name: tokens[group.x] for group in groups})


def _add(found: Mapping[Node, TokenSample], held_out: bool, node: Node, value: Any) -> None:
    if node in found:
        (found[node].held_out if held_out else found[node].fit).add(value)


def _unfinished(work: WorkFolder, key: str, tokens: list[list[str]], total: int) -> int:
    """The first segment to run: all before it have left their tokens, and the last of them what it passed on."""
    for number in reversed(range(len(tokens))):
        whole = work.has(_passed(key, number))
        whole = whole and all(work.has(piece) for nodes in tokens[: number + 1] for piece in nodes)
        if number + 1 < len(tokens):
            whole = whole and all(work.has(_between(key, number, at)) for at in range(total))
        if whole:
            return number + 1
    return 0


def rewindable(samples: Iterable[Sample], work: WorkFolder) -> Iterable[Sample]:
    """The samples as something that can be read twice: what a generator gives goes to the work folder first."""
    if iter(samples) is not samples:
        return samples
    spilled = _SpilledInputs(work)
    for sample in samples:
        spilled.add(sample)
    return spilled


class _SpilledInputs:
    def __init__(self, work: WorkFolder) -> None:
        self._work, self._count = work, 0

    def add(self, sample: Sample) -> None:
        tensors = {name: torch.as_tensor(value) for name, value in flatten_inputs(sample).items()}
        self._work.write(f"sample-{self._count}", tensors)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        for number in range(self._count):
            yield self._work.read(f"sample-{number}")[0]


def _is_held_out(number: int, total: int) -> bool:
    """Whole samples are held out, the last fifth of them: tokens of one picture resemble each other, and steps of one
    drawing follow each other, so held-out tokens of the same samples would flatter every choice they judge.
    """
    return total >= 5 and number >= total - total // 5


def _key(
    program: Program, groups: Sequence[LinearGroup], samples: Iterable[Sample], rest: object
) -> tuple[str, int]:
    """A digest of the model, the groups and the samples, and how many samples there are. Says what does not fit."""
    digest = hashlib.sha256(dump_graph(program))
    digest.update(repr([[group.names for group in groups], rest, torch.__version__]).encode())
    total = 0
    for sample in samples:
        for name, value in as_inputs(program, sample, total).items():
            digest.update(name.encode() + tensor_digest(value))
        total += 1
    if total == 0:
        raise NoSamples(
            "calibrate",
            "calibration",
            "no samples",
            "give at least one input dict, or calibration none",
        )
    weights = {n.meta["weight"] for n in program.graph_module.graph.nodes if n.op == "get_attr"}
    for name in sorted(weights):
        digest.update(tensor_digest(program.weights.load(name)))
    return digest.hexdigest()[:16], total


def _piece(key: str, name: str) -> str:
    return f"tokens-{key}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _passed(key: str, segment: int) -> str:
    return f"segment-{key}-{segment}"


def _between(key: str, segment: int, sample: int) -> str:
    return f"between-{key}-{segment}-{sample}"


def _placeholders(program: Program) -> list[Node]:
    return [n for n in program.graph_module.graph.nodes if n.op == "placeholder"]


def _values(
    program: Program,
    samples: Iterable[Sample],
    work: WorkFolder,
    key: str,
    segment: int,
    live: Sequence[Node],
) -> Iterator[Values]:
    """Of each sample, what the segment reads: the inputs, or what the segment before left."""
    if segment == 0:
        names = {
            spec.name: n for spec, n in zip(program.inputs, _placeholders(program), strict=True)
        }
        for at, sample in enumerate(samples):
            inputs = as_inputs(program, sample, at)
            yield {node: inputs[name] for name, node in names.items()}
        return
    total = int(work.read(_passed(key, segment - 1))[0]["samples"])
    for at in range(total):
        yield _load(work, _between(key, segment - 1, at), live)


def _save(work: WorkFolder, piece: str, values: Values) -> None:
    tensors = {}
    for node, value in values.items():
        parts = value if isinstance(value, (tuple, list)) else [value]
        for at, part in enumerate(parts):
            exact = torch.float64 if isinstance(part, float) else None
            tensors[f"{node.name}.{at}"] = torch.as_tensor(part, dtype=exact)
    work.write(piece, tensors, durable=False)


def _load(work: WorkFolder, piece: str, live: Sequence[Node]) -> Values:
    tensors, _ = work.read(piece)
    values: Values = {}
    for node in live:
        example = node.meta["val"]
        if isinstance(example, (tuple, list)):
            values[node] = tuple(tensors[f"{node.name}.{at}"] for at in range(len(example)))
        elif isinstance(example, Tensor):
            values[node] = tensors[f"{node.name}.0"]
        else:
            values[node] = tensors[f"{node.name}.0"].item()
    return values


def as_inputs(program: Program, sample: Mapping[str, Any], number: int) -> dict[str, Tensor]:
    """A sample as the program's named inputs; says what does not fit."""
    flat = flatten_inputs(sample)
    found: dict[str, Tensor] = {}
    for spec, node in zip(program.inputs, _placeholders(program), strict=True):
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
