"""linear(x, W) → linear_s4(quantize_s4(x), …): smoothing, a low-rank branch and a 4-bit residual (arXiv 2411.05007).

Linears that read the same input in a block are quantized as one: they share smoothing, codes and down-projection.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import Any, TypeVar

import torch
from torch.fx import Node

from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import Rewriter, aten, is_call
from svdqc.compiler.passes.emit_quantized import emit
from svdqc.compiler.passes.linear_groups import LinearGroup, weight_node
from svdqc.compiler.passes.merge_linears import replace_by_slices
from svdqc.compiler.quantize.linear import LinearSamples, QuantizedLinear, quantize_linear
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import num_bytes

GELU_SHIFT = 0.171875
"""GELU is never below -0.17; with this shift its values fit unsigned codes."""

T = TypeVar("T")
LayerProgress = Callable[[int, int, str], None]


def svdquant(
    program: Program,
    groups: list[LinearGroup],
    samples: Mapping[str, LinearSamples],
    recipes: Mapping[str, Recipe],
    progress: LayerProgress | None = None,
    jobs: int = 0,
) -> list[dict[str, Any]]:
    """Quantize each group by the recipe of its name; returns a record per group for the report.

    A group whose precision is "none" stays as it is. `jobs` groups at once (0: one per core).
    """
    rw, records = Rewriter(program), []
    groups = [group for group in groups if recipes[group.name].precision != "none"]
    results = in_order(
        groups, lambda group: _quantize(program, group, samples, recipes[group.name]), jobs
    )
    if progress is not None:
        progress(0, len(groups), "")
    for done, (group, (weight_shape, result)) in enumerate(zip(groups, results, strict=True)):
        _rewrite(rw, group, result)
        records.append(_record(group, weight_shape, result))
        if progress is not None:
            progress(done + 1, len(groups), group.name)
    rw.finish()
    return records


def _quantize(
    program: Program, group: LinearGroup, samples: Mapping[str, LinearSamples], recipe: Recipe
) -> tuple[tuple[int, ...], QuantizedLinear]:
    weight = torch.cat([_load_weight(program, n) for n in group.linears])
    shift = GELU_SHIFT if is_call(group.x, aten.gelu.default) else None
    found = samples.get(group.name)
    result = quantize_linear(weight, found, recipe, nonnegative_after_shift=shift, name=group.name)
    return tuple(weight.shape), result


def in_order(
    groups: list[LinearGroup], work: Callable[[LinearGroup], T], jobs: int
) -> Iterator[T]:
    """Results in the order of the groups, a few groups ahead at the most: memory stays bounded.

    Each group is worked on by one thread, so its numbers do not depend on how many there are.
    """
    workers = jobs or os.cpu_count() or 1
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            ahead: deque[Future[T]] = deque()
            for group in groups:
                ahead.append(pool.submit(work, group))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
    finally:
        torch.set_num_threads(previous)


def _load_weight(program: Program, linear: Node) -> torch.Tensor:
    node = weight_node(linear)
    assert node is not None
    return program.weights.load(node.meta["weight"]).to(torch.float32)


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


def _record(group: LinearGroup, shape: tuple[int, ...], q: QuantizedLinear) -> dict[str, Any]:
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
