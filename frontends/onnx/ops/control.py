"""Branches and loops that are decided while the model is compiled."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from svdqc.frontends.onnx.call import Call, require_tensor
from svdqc.frontends.onnx.host import Value, host_scalar
from svdqc.frontends.onnx.registry import onnx_op

# A loop is unrolled: each iteration adds its body to the graph.
MOST_ITERATIONS = 4096


@onnx_op("If", host="all")
def if_(call: Call, condition: Value) -> list[Value]:
    chosen = bool(call.host(condition, "the branch").number())
    return call.run_graph(call.required("then_branch" if chosen else "else_branch"), [])


@onnx_op("Loop", host="all")
def loop(
    call: Call, trip_count: Value | None, condition: Value | None = None, *initial: Value
) -> list[Value]:
    """Unrolled, so the number of iterations must be known. Scanned outputs are stacked on axis 0."""
    body = call.required("body")
    iterations = MOST_ITERATIONS
    if trip_count is not None:
        (iterations,) = call.static_ints(trip_count, "the trip count")
        if iterations > MOST_ITERATIONS:
            raise call.error(f"{iterations} iterations", f"at most {MOST_ITERATIONS} are unrolled")
    carried: list[Value] = list(initial)
    scanned: list[list[Value]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    going: Value = host_scalar(True, torch.bool) if condition is None else condition
    step = 0
    while step < iterations and bool(call.host(going, "the number of iterations").number()):
        results = call.run_graph(body, [host_scalar(step), going, *carried])
        # A condition that is passed through keeps an absent one absent.
        going, results = results[0], results[1:]
        carried, extra = results[: len(carried)], results[len(carried) :]
        for column, value in zip(scanned, extra, strict=True):
            column.append(value)
        step += 1
    if scanned and step == 0:
        raise call.error("a loop without iterations that stacks outputs", "remove the loop")
    return [*carried, *(_stacked(column, 0) for column in scanned)]


@onnx_op("Scan", host="all")
def scan(call: Call, *inputs: Value) -> list[Value]:
    """Unrolled over an axis of the last inputs; the first ones are the state."""
    body, num_scanned = call.required("body"), call.required("num_scan_inputs")
    num_states = len(inputs) - num_scanned
    states: list[Value] = list(inputs[:num_states])
    num_stacked = len(body.outputs) - num_states
    in_axes = call.attribute("scan_input_axes", [0] * num_scanned)
    in_reversed = call.attribute("scan_input_directions", [0] * num_scanned)
    out_axes = call.attribute("scan_output_axes", [0] * num_stacked)
    out_reversed = call.attribute("scan_output_directions", [0] * num_stacked)
    slices = []
    for value, axis, backwards in zip(inputs[num_states:], in_axes, in_reversed, strict=True):
        tensor = require_tensor(value)
        if not isinstance(tensor.shape[axis], int):
            raise call.error("a scan over a dynamic dim", "make that dim static")
        parts = list(tensor.unbind(axis))
        slices.append(parts[::-1] if backwards else parts)
    stacked: list[list[Value]] = [[] for _ in range(num_stacked)]
    for step in zip(*slices, strict=True):
        results = call.run_graph(body, [*states, *step])
        states = results[:num_states]
        for column, value in zip(stacked, results[num_states:], strict=True):
            column.append(value)
    outputs: list[Value] = [
        _stacked(column[::-1] if backwards else column, axis)
        for column, axis, backwards in zip(stacked, out_axes, out_reversed, strict=True)
    ]
    return [*states, *outputs]


def _stacked(values: Sequence[Value], axis: int) -> torch.Tensor:
    return torch.stack([require_tensor(value) for value in values], dim=axis)
