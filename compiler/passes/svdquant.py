"""linear(x, W) → linear_s4(quantize_s4(x), …): smoothing, a low-rank branch and a 4-bit residual (arXiv 2411.05007).

Linears that read the same input in a block are quantized as one: they share smoothing, codes and down-projection.

First every group is quantized, in any order, and its result laid aside (in a work folder, for a model that is larger
than memory); then the graph is rewritten, in order, with constants that are read back when they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from math import prod
from typing import Any, Protocol

import torch

from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import Rewriter, aten, is_call
from svdqc.compiler.passes.emit_quantized import emit
from svdqc.compiler.passes.linear_groups import LinearGroup, weight_node
from svdqc.compiler.passes.merge_linears import replace_by_slices
from svdqc.compiler.passes.parallel import in_order, in_parallel
from svdqc.compiler.quantize.linear import LinearSamples, QuantizedLinear, quantize_linear
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import num_bytes
from svdqc.compiler.quantize.stored import layer_key

GELU_SHIFT = 0.171875
"""GELU is never below -0.17; with this shift its values fit unsigned codes."""

__all__ = ["GELU_SHIFT", "MemoryResults", "Results", "in_order", "load_group", "svdquant"]

LARGE_BYTES = 1 << 16
"""A constant of this size is read back from the results when it is needed, not kept."""

LayerProgress = Callable[[int, int, str, float], None]
"""Groups done, of how many, the name of the last, the share of the work done."""


class Results(Protocol):
    """Where finished groups are laid aside, by a key that names everything their numbers follow from."""

    def has(self, key: str) -> bool: ...

    def save(self, key: str, layer: QuantizedLinear) -> None: ...

    def load(self, key: str) -> QuantizedLinear: ...

    def spill(self, key: str, name: str, tensor: torch.Tensor) -> Callable[[], torch.Tensor] | None:
        """A function that reads `tensor`, part of the group's constants, back; None to keep it in memory."""


class MemoryResults:
    """Results in memory."""

    def __init__(self) -> None:
        self._layers: dict[str, QuantizedLinear] = {}

    def has(self, key: str) -> bool:
        return key in self._layers

    def save(self, key: str, layer: QuantizedLinear) -> None:
        self._layers[key] = layer

    def load(self, key: str) -> QuantizedLinear:
        return self._layers[key]

    def spill(self, key: str, name: str, tensor: torch.Tensor) -> None:
        return None


def svdquant(
    program: Program,
    groups: list[LinearGroup],
    samples: Mapping[str, LinearSamples],
    recipes: Mapping[str, Recipe],
    progress: LayerProgress | None = None,
    jobs: int = 0,
    results: Results | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Quantize each group by the recipe of its name; returns a record per group for the report.

    A group whose precision is "none" stays as it is. `jobs` groups at once (0: one per core). Groups that `results`
    has already are not repeated. device: where the numbers are computed, "cpu" or "cuda".
    """
    results = MemoryResults() if results is None else results
    groups = [group for group in groups if recipes[group.name].precision != "none"]
    keys = _quantize_all(program, groups, samples, recipes, progress, jobs, results, device)
    rw, records = Rewriter(program), []
    for group in groups:
        layer = results.load(keys[group.name])
        _rewrite(rw, group, layer)
        _spill(program, keys[group.name], results)
        records.append(_record(group, layer))
    rw.finish()
    return records


def _quantize_all(
    program: Program,
    groups: list[LinearGroup],
    samples: Mapping[str, LinearSamples],
    recipes: Mapping[str, Recipe],
    progress: LayerProgress | None,
    jobs: int,
    results: Results,
    device: str,
) -> dict[str, str]:
    """The key of each group's result."""

    def work(group: LinearGroup, check: Callable[[str], None]) -> str:
        weights = _weights(program, group)
        found, recipe = samples.get(group.name), recipes[group.name]
        shift = GELU_SHIFT if is_call(group.x, aten.gelu.default) else None
        key = layer_key(group.names, weights, found, recipe, shift, device)
        if not results.has(key):
            weight = torch.cat([w.to(device, torch.float32) for w in weights])
            del weights
            with nullcontext() if device == "cpu" else torch.device(device):
                layer = quantize_linear(
                    weight,
                    None if found is None else _moved(found, device),
                    recipe,
                    nonnegative_after_shift=shift,
                    progress=check,
                    name=group.name,
                )
            results.save(key, layer)
        return key

    def memory(group: LinearGroup) -> int:
        width = int(group.x.meta["val"].shape[-1])
        grams = _GRAMS * width * width if group.name in samples else 0
        return 4 * (_COPIES * _num_values(group) + grams)

    keys: dict[str, str] = {}
    total, done = sum(map(_num_values, groups)), 0
    if progress is not None:
        progress(0, len(groups), "", 0.0)
    workers = 1 if device != "cpu" else jobs or os.cpu_count() or 1
    for group, key in in_parallel(groups, memory, work, workers):
        keys[group.name] = key
        done += _num_values(group)
        if progress is not None:
            progress(len(keys), len(groups), group.name, done / total)
    return keys


_COPIES, _GRAMS = 8, 8
"""Of a weight, and with samples of its input's Gram matrix, both in f32, while a group is quantized."""


def _num_values(group: LinearGroup) -> int:
    return sum(prod(weight.meta["val"].shape) for n in group.linears if (weight := weight_node(n)))


def _moved(samples: LinearSamples, device: str) -> LinearSamples:
    held_out = None if samples.held_out is None else samples.held_out.to(device)
    return LinearSamples(samples.fit.to(device), held_out)


def _spill(program: Program, key: str, results: Results) -> None:
    """Leave the constants that the last rewrite added where they can be read back."""
    for name, tensor in program.weights.in_memory():
        if tensor.numel() * tensor.element_size() >= LARGE_BYTES:
            read = results.spill(key, name, tensor)
            if read is not None:
                program.weights.drop(name, read)


def load_group(program: Program, group: LinearGroup) -> torch.Tensor:
    """The group's weights, stacked: [ΣN, K] f32."""
    return torch.cat([w.to(torch.float32) for w in _weights(program, group)])


def _weights(program: Program, group: LinearGroup) -> list[torch.Tensor]:
    nodes = [weight_node(n) for n in group.linears]
    return [program.weights.load(n.meta["weight"]) for n in nodes if n is not None]


def _rewrite(rw: Rewriter, group: LinearGroup, q: QuantizedLinear) -> None:
    bias = _bias(rw.program, group, q)
    with rw.before(group.linears[0]):
        replace_by_slices(rw, group, emit(rw, group.name, group.x, q, bias))


def _bias(program: Program, group: LinearGroup, q: QuantizedLinear) -> torch.Tensor | None:
    """[ΣN] f32: the linears' biases, plus what the shift and the mean error need; None if all are zero."""
    parts, found = [], q.bias_delta is not None
    for linear in group.linears:
        node = linear.args[2] if len(linear.args) > 2 else linear.kwargs.get("bias")
        width = int(linear.meta["val"].shape[-1])
        if node is None:
            parts.append(torch.zeros(width))
        else:
            source = node.args[0] if is_call(node, aten._to_copy.default) else node  # type: ignore[union-attr]
            parts.append(program.weights.load(source.meta["weight"]).to(torch.float32))  # type: ignore[union-attr]
            found = True
    bias = torch.cat(parts)
    if not found:
        return None
    return bias if q.bias_delta is None else bias + q.bias_delta


def _record(group: LinearGroup, q: QuantizedLinear) -> dict[str, Any]:
    shape = tuple(q.w_codes.shape)
    rank, in_features = q.lora_down.shape
    group_size = in_features // q.w_scale.shape[1]
    return {
        "layers": list(group.names),
        "shape": list(shape),
        "precision": q.precision,
        "rank": rank,
        "range": q.activation.range,
        "rotated": q.activation.rotate,
        "num_bytes": num_bytes(q.precision, shape[0], in_features, rank, group_size),
        "num_bytes_bf16": 2 * prod(shape),
        "metrics": {k: float(v) for k, v in q.metrics.items()},
        "notes": list(q.notes),
    }
