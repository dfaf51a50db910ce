"""A graph cut into segments, each run on every sample before the next one begins.

Only one segment's weights are in memory, and each weight is read once however many samples there are; between
segments a sample is the values that later segments read.

Segments are cut where a bound on the weights' bytes asks for it, at the place nearby where the fewest bytes live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from svdqc.compiler.ir.program import Program

Observer = Callable[[Node, Any], None]
Values = dict[Node, Any]

SEGMENT_BYTES = 1 << 30
_EXAMPLE_SIZE = 64


@dataclass(frozen=True)
class Segment:
    """nodes to run in order; live_in, live_out: what is read from before and by later ones."""

    nodes: tuple[Node, ...]
    live_in: tuple[Node, ...]
    live_out: tuple[Node, ...]


def cut(program: Program, wanted: Iterable[Node], limit: int = SEGMENT_BYTES) -> list[Segment]:
    """The segments that compute the `wanted` nodes; one takes at most `limit` bytes of weights, or one node's."""
    graph = program.graph_module.graph
    needed, constants = _ancestors(wanted), _constants(graph)
    nodes = [n for n in graph.nodes if n in needed - constants and n.op == "call_function"]
    last_use = {
        i: at for at, n in enumerate(nodes) for i in n.all_input_nodes if i not in constants
    }
    bounds = [0, *_cuts(nodes, last_use, constants, limit), len(nodes)]
    position = {n: at for at, n in enumerate(nodes)}
    segments = []
    for start, stop in pairwise(bounds):
        inside = nodes[start:stop]
        # What only passes through counts as read, so that a sample is whole between segments.
        alive = [n for n in graph.nodes if n in last_use]
        live_in = [n for n in alive if position.get(n, -1) < start <= last_use[n]]
        live_out = [n for n in alive if position.get(n, -1) < stop <= last_use[n]]
        segments.append(Segment(tuple(inside), tuple(live_in), tuple(live_out)))
    return segments


class SegmentRunner:
    """Runs one segment on one sample after the other; its weights are read once, cast, and kept."""

    def __init__(self, program: Program, segment: Segment, device: str = "cpu") -> None:
        self._program, self._segment, self._device = program, segment, device
        self._constants: Values = {}
        kept = set(segment.live_out)
        self._last_use = {i: n for n in segment.nodes for i in n.all_input_nodes if i not in kept}

    def run(self, values: Mapping[Node, Any], observe: Observer) -> Values:
        """The values of `live_out` from those of `live_in`; `observe` sees each node's value."""
        known: Values = {n: moved(v, self._device) for n, v in values.items()}
        with torch.no_grad():
            for node in self._segment.nodes:
                known[node] = self._evaluate(node, lambda i: self._value(i, known))
                observe(node, known[node])
                for i in node.all_input_nodes:
                    if self._last_use.get(i) is node:
                        known.pop(i, None)
        return {n: known[n] for n in self._segment.live_out}

    def _value(self, node: Node, known: Values) -> Any:
        return known[node] if node in known else self._constant(node)

    def _constant(self, node: Node) -> Any:
        """Of weights alone: evaluated once, where it is first read."""
        if node not in self._constants:
            if node.op == "get_attr":
                value: Any = moved(self._program.weights.load(node.meta["weight"]), self._device)
            else:
                value = self._evaluate(node, self._constant)
                for source in node.all_input_nodes:
                    if len(source.users) == 1:  # the weight as stored, of which this is the cast
                        self._constants.pop(source, None)
            self._constants[node] = value
        return self._constants[node]

    def _evaluate(self, node: Node, value_of: Callable[[Node], Any]) -> Any:
        kwargs = dict(map_arg(node.kwargs, value_of))
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device(self._device)
        return node.target(*map_arg(node.args, value_of), **kwargs)  # type: ignore[operator]


def moved(value: Any, device: str) -> Any:
    """Tensors, and tuples of them, on the device; all else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(moved(v, device) for v in value)
    return value


def _constants(graph: Graph) -> set[Node]:
    """Nodes that follow from weights alone."""
    found: set[Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        computed = node.op == "call_function" and bool(inputs) and found.issuperset(inputs)
        if node.op == "get_attr" or computed:
            found.add(node)
    return found


def _ancestors(wanted: Iterable[Node]) -> set[Node]:
    found: set[Node] = set()
    waiting = list(wanted)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _cuts(
    nodes: list[Node], last_use: Mapping[Node, int], constants: set[Node], limit: int
) -> list[int]:
    """Positions before which to cut."""
    live = _live_bytes(nodes, last_use)
    cuts: list[int] = []
    start, held, seen = 0, 0, set[Node]()
    history: list[int] = []  # bytes of weights held after each node of this segment
    at = 0
    while at < len(nodes):
        fresh = [i for i in nodes[at].all_input_nodes if i in constants and i not in seen]
        more = sum(_num_bytes(i.meta["val"]) for i in fresh)
        if held + more > limit and at > start:
            first = next((i for i, h in enumerate(history) if h >= limit // 2), len(history) - 1)
            place = min(range(start + first + 1, at + 1), key=lambda p: (live[p], -p))
            cuts.append(place)
            start = at = place
            held, seen, history = 0, set(), []
            continue
        held += more
        seen.update(fresh)
        history.append(held)
        at += 1
    return cuts


def _live_bytes(nodes: list[Node], last_use: Mapping[Node, int]) -> list[int]:
    """Bytes of values made before each position and read at or after it."""
    change = [0] * (len(nodes) + 2)
    for at, node in enumerate(nodes):
        if last_use.get(node, at) > at:
            change[at + 1] += _num_bytes(node.meta["val"])
            change[last_use[node] + 1] -= _num_bytes(node.meta["val"])
    total, live = 0, []
    for step in change:
        total += step
        live.append(total)
    return live


def _num_bytes(value: Any) -> int:
    if isinstance(value, (tuple, list)):
        return sum(map(_num_bytes, value))
    if not isinstance(value, torch.Tensor):
        return 0
    return prod(_example_size(s) for s in value.shape) * value.element_size()


def _example_size(size: int | torch.SymInt) -> int:
    """A dynamic size counts as its example: to ask it for its value would fix it."""
    if isinstance(size, int):
        return size
    hint = getattr(size.node, "_hint", None)
    return hint if isinstance(hint, int) else _EXAMPLE_SIZE
