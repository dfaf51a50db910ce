"""How much each quantized layer's error matters to the model's output, for all layers at once.

Let a group of linears be missing a share e of its output's energy. The model's output then misses about s e of its
own energy, and s is what is measured here. An error in the coded weight is the same for every token, so tokens of one
direction add up; elements of the weight err independently, in proportion to the size of their output channel and,
under smoothing, to the inverse root of their input channel's RMS:

    y_error[t] = x_hat[t] @ d.T      x_hat = x / sqrt(rms(x))      E d[n, k]^2 ~ b[n] = |w[n]|^2

With g the gradient, by y, of the model's output along a random direction of unit variance, the energy that the output
misses is sum_n b[n] |g[:, n] @ x_hat|^2: one backward pass gives it for every layer. The errors of coded activations
differ by token, but follow the same pattern closely enough: on the emoji model s is within 30 % of what quantizing one
layer alone does (one standard deviation), and the sum over the layers foretells the error of the whole within 10 %.

Only one block is differentiated at a time: a forward pass keeps what is alive where a block begins, and each block,
from the last to the first, runs once more from there with gradients. So memory holds one block's weights and
intermediate values, and the cost is about four forward passes a probe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.linear_groups import LinearGroup, block_name, weight_node

Values = dict[Node, Any]

_GROUPS_PER_SEGMENT = 8
_SMALLEST_RMS = 1e-3
_TOKEN_BYTES = 1 << 28
_FEWEST_TOKENS, _MOST_TOKENS = 8, 128


@dataclass(frozen=True)
class Probed:
    """By the group's name.

    sensitivity  share of the output's energy lost per share of the group's output energy lost
    tokens       some of the group's inputs: [tokens, in_features] f32
    """

    sensitivity: dict[str, float]
    tokens: dict[str, Tensor]


def probe_groups(
    program: Program,
    groups: Sequence[LinearGroup],
    probes: Sequence[Mapping[str, Tensor]],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Probed:
    """Measure all groups.

    probes    named inputs of the program; their sensitivities are averaged
    progress  called with (segments done, segments in all)
    """
    cut = _Cut.of(program, groups)
    total, done = len(probes) * len(cut.segments), 0
    found = dict.fromkeys((g.name for g in groups), 0.0)
    seen = _Tokens.of(groups, len(probes))
    generator = torch.Generator().manual_seed(seed)
    for probe in probes:
        starts, outputs = _forward(program, cut, probe, seen)
        pull = _output_gradients(program, outputs, generator)
        for segment, start in zip(reversed(cut.segments), reversed(starts), strict=True):
            pull, measured = _backward(program, cut, segment, start, pull)
            for name, share in measured.items():
                found[name] += share / len(probes)
            done += 1
            if progress is not None:
                progress(done, total)
    return Probed(found, {name: torch.cat(rows) for name, rows in seen.rows.items()})


@dataclass(frozen=True)
class _Segment:
    """Nodes [begin, end) of the graph; `live` are the values from before that it or a later one reads."""

    begin: int
    end: int
    live: tuple[Node, ...]


@dataclass(frozen=True)
class _Cut:
    """The graph from its first quantized linear on, in segments of about a block. last_use: by node, an index."""

    nodes: list[Node]
    last_use: dict[Node, int]
    segments: list[_Segment]
    group_of: dict[Node, LinearGroup]

    @staticmethod
    def of(program: Program, groups: Sequence[LinearGroup]) -> _Cut:
        nodes = list(program.graph_module.graph.nodes)
        index = {node: i for i, node in enumerate(nodes)}
        last_use = {node: max((index[user] for user in node.users), default=-1) for node in nodes}
        ordered = sorted(groups, key=lambda g: index[g.linears[0]])
        begins: list[int] = []
        held, block = 0, ""
        for group in ordered:
            if not begins or block_name(group.name) != block or held == _GROUPS_PER_SEGMENT:
                begins.append(index[group.linears[0]])
                held, block = 0, block_name(group.name)
            held += 1
        ends = [*begins[1:], len(nodes)]
        segments = [
            _Segment(
                begin,
                end,
                tuple(n for n in nodes[:begin] if last_use[n] >= begin and n.op != "get_attr"),
            )
            for begin, end in zip(begins, ends, strict=True)
        ]
        return _Cut(nodes, last_use, segments, {n: g for g in groups for n in g.linears})


@dataclass
class _Tokens:
    """Collects up to `most` evenly spaced tokens of each group's input from each probe."""

    most: int
    rows: dict[str, list[Tensor]]

    @staticmethod
    def of(groups: Sequence[LinearGroup], num_probes: int) -> _Tokens:
        widths = sum(int(g.x.meta["val"].shape[-1]) for g in groups)
        most = _TOKEN_BYTES // (4 * max(widths * num_probes, 1))
        return _Tokens(max(_FEWEST_TOKENS, min(most, _MOST_TOKENS)), {g.name: [] for g in groups})

    def add(self, group: LinearGroup, x: Tensor) -> None:
        flat = x.reshape(-1, x.shape[-1])
        stride = -(-flat.shape[0] // self.most)
        self.rows[group.name].append(flat[::stride].float())


def _forward(
    program: Program, cut: _Cut, probe: Mapping[str, Tensor], seen: _Tokens
) -> tuple[list[Values], tuple[Tensor, ...]]:
    """What is alive at the start of each segment, and the program's outputs."""
    values: Values = {}
    starts: list[Values] = []
    begins = {segment.begin: segment for segment in cut.segments}
    placeholders = iter([probe[spec.name] for spec in program.inputs])
    outputs: tuple[Tensor, ...] = ()
    with torch.no_grad():
        for i, node in enumerate(cut.nodes):
            if i in begins:
                starts.append({n: values[n] for n in begins[i].live})
            if node.op == "placeholder":
                values[node] = next(placeholders)
            elif node.op == "output":
                outputs = tuple(_value(program, values, n) for n in node.args[0])  # type: ignore[union-attr,arg-type]
            elif node.op != "get_attr":
                values[node] = _run(program, values, node)
            group = cut.group_of.get(node)
            if group is not None and node is group.linears[0]:
                seen.add(group, values[group.x])
            for read in node.all_input_nodes:
                if cut.last_use[read] == i:
                    values.pop(read, None)
    return starts, outputs


def _output_gradients(
    program: Program, outputs: tuple[Tensor, ...], generator: torch.Generator
) -> dict[Node, Tensor]:
    """v / |output|, v of unit variance: the outputs' relative energies count alike."""
    (node,) = (n for n in program.graph_module.graph.nodes if n.op == "output")
    floats = [
        (n, value)
        for n, value in zip(node.args[0], outputs, strict=True)
        if isinstance(n, Node) and value.is_floating_point()
    ]
    pull: dict[Node, Tensor] = {}
    for n, value in floats:
        size = value.float().norm().clamp_min(1e-30) * math.sqrt(len(floats))
        v = torch.randn(value.shape, generator=generator) / size
        pull[n] = pull[n] + v.to(value.dtype) if n in pull else v.to(value.dtype)
    return pull


@dataclass
class _Meter:
    """Adds up sum_n b[n] |g[:, n] @ x_hat|^2 of a group's linears, and what to divide by."""

    pulled: float = 0.0
    products: float = 0.0
    energy: float = 0.0

    def share(self) -> float:
        return self.pulled * self.energy / self.products if self.products > 0 else 0.0


@dataclass
class _Tape:
    """The values of one segment that gradients flow between."""

    leaves: dict[Node, Any] = field(default_factory=dict)
    meters: dict[str, _Meter] = field(default_factory=dict)


def _backward(
    program: Program, cut: _Cut, segment: _Segment, start: Values, pull: dict[Node, Tensor]
) -> tuple[dict[Node, Tensor], dict[str, float]]:
    """From the gradients of what the segment leaves behind to those of what it reads, and its groups' shares."""
    tape, first = _Tape(), segment is cut.segments[0]
    values: Values = {}
    for node, value in start.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            value = tape.leaves[node] = value.detach().requires_grad_(not first)
        values[node] = value
    with torch.enable_grad():
        for i in range(segment.begin, segment.end):
            node = cut.nodes[i]
            if node.op in ("get_attr", "output"):
                continue
            value = _run(program, values, node)
            if node in cut.group_of:
                value = _watched(program, values, node, value, cut.group_of[node], tape)
            values[node] = value
            for read in node.all_input_nodes:
                if cut.last_use[read] == i and read not in pull:
                    values.pop(read, None)
    ends = [(values[n], g) for n, g in pull.items() if n in values and values[n].requires_grad]
    if ends:
        torch.autograd.backward([v for v, _ in ends], [g for _, g in ends])
    before = {n: leaf.grad for n, leaf in tape.leaves.items() if leaf.grad is not None}
    return before, {name: meter.share() for name, meter in tape.meters.items()}


def _watched(
    program: Program, values: Values, node: Node, y: Tensor, group: LinearGroup, tape: _Tape
) -> Tensor:
    """y [..., out_features], with a hook that measures the gradient that reaches it."""
    weight = weight_node(node)
    assert weight is not None
    x = values[group.x].detach().float()
    w = program.weights.load(weight.meta["weight"]).detach().float()
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    linear = y.detach().float()
    if isinstance(bias, Node):
        linear = linear - _value(program, values, bias).detach().float()
    x_hat = x.reshape(-1, x.shape[-1])  # [tokens, in_features]
    rms = x_hat.square().mean(0).sqrt()
    x_hat = x_hat / rms.clamp_min(float(rms.max()) * _SMALLEST_RMS + 1e-30).sqrt()
    b = w.square().sum(1)  # [out_features]
    meter = tape.meters.setdefault(group.name, _Meter())
    meter.products += float(x_hat.square().sum() * b.sum())
    meter.energy += float(linear.square().sum())

    def measure(gradient: Tensor) -> None:
        pulled = gradient.float().reshape(-1, gradient.shape[-1]).T @ x_hat
        meter.pulled += float(pulled.square().sum(1) @ b)

    if not y.requires_grad:
        y = y.detach().requires_grad_()
    y.register_hook(measure)
    return y


def _run(program: Program, values: Values, node: Node) -> Any:
    assert node.op == "call_function", node.format_node()
    args = map_arg(node.args, lambda n: _value(program, values, n))
    kwargs = map_arg(node.kwargs, lambda n: _value(program, values, n))
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _value(program: Program, values: Values, node: Node) -> Any:
    """Weights are read where they are used, and not kept."""
    return program.weights.load(node.meta["weight"]) if node.op == "get_attr" else values[node]
