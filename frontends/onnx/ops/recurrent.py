"""Recurrent layers, unrolled over a static number of steps, and state-space layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.registry import onnx_op

Activation = Callable[[Tensor], Tensor]

DEFAULT_ACTIVATIONS = {
    "RNN": ["Tanh"],
    "GRU": ["Sigmoid", "Tanh"],
    "LSTM": ["Sigmoid", "Tanh", "Tanh"],
}


@dataclass(frozen=True)
class Weights:
    """One direction of a layer.

    x, h      [gates · hidden, features], [gates · hidden, hidden]
    x_bias    [gates · hidden], as h_bias
    peephole  [3 · hidden] of an LSTM
    """

    x: Tensor
    h: Tensor
    x_bias: Tensor
    h_bias: Tensor
    peephole: Tensor | None
    activations: list[Activation]
    hidden: int


State = tuple[Tensor, Tensor]
Step = Callable[[Call, Weights, Tensor, State], State]


def _activation(call: Call, name: str) -> Activation:
    known: dict[str, Activation] = {
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "Relu": torch.relu,
        "Softsign": lambda x: x / (1 + x.abs()),
        "Softplus": F.softplus,
    }
    if name not in known:
        raise call.error(f"activation {name!r}", f"use one of {', '.join(known)}")
    return known[name]


def _rnn_step(call: Call, w: Weights, x: Tensor, state: State) -> State:
    hidden = w.activations[0](F.linear(x, w.x, w.x_bias) + F.linear(state[0], w.h, w.h_bias))
    return hidden, state[1]


def _gru_step(call: Call, w: Weights, x: Tensor, state: State) -> State:
    """Gates in the order update, reset, hidden."""
    update_x, reset_x, new_x = F.linear(x, w.x, w.x_bias).chunk(3, dim=-1)
    n = w.hidden
    update_h, reset_h = F.linear(state[0], w.h[: 2 * n], w.h_bias[: 2 * n]).chunk(2, dim=-1)
    update, reset = w.activations[0](update_x + update_h), w.activations[0](reset_x + reset_h)
    if call.flag("linear_before_reset"):
        new_h = reset * F.linear(state[0], w.h[2 * n :], w.h_bias[2 * n :])
    else:
        new_h = F.linear(reset * state[0], w.h[2 * n :], w.h_bias[2 * n :])
    new = w.activations[1](new_x + new_h)
    return (1 - update) * new + update * state[0], state[1]


def _lstm_step(call: Call, w: Weights, x: Tensor, state: State) -> State:
    """Gates in the order input, output, forget, cell."""
    gates = F.linear(x, w.x, w.x_bias) + F.linear(state[0], w.h, w.h_bias)
    take, give, keep, new = gates.chunk(4, dim=-1)
    if w.peephole is not None:
        take_p, give_p, keep_p = w.peephole.chunk(3)
    else:
        take_p = give_p = keep_p = torch.zeros_like(state[1])
    gate, squash, show = w.activations
    take = gate(take + take_p * state[1])
    keep = 1 - take if call.flag("input_forget") else gate(keep + keep_p * state[1])
    cell = keep * state[1] + take * squash(new)
    return gate(give + give_p * cell) * show(cell), cell


@onnx_op("RNN")
def rnn(call: Call, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    return _recurrent(call, _rnn_step, 1, list(inputs))[:2]


@onnx_op("GRU")
def gru(call: Call, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    return _recurrent(call, _gru_step, 3, list(inputs))[:2]


@onnx_op("LSTM")
def lstm(call: Call, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    return _recurrent(call, _lstm_step, 4, list(inputs))


def _recurrent(
    call: Call, step: Step, num_gates: int, inputs: list[Tensor | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps [steps, directions, batch, hidden], the last one, and the last cell state."""
    x, w, r, bias, lengths, hidden, cell, peephole = inputs + [None] * (8 - len(inputs))
    assert x is not None
    assert w is not None
    assert r is not None
    if call.has("clip"):
        raise call.error("a clipped recurrent layer", "export the model without clip")
    if call.flag("layout"):
        x = x.transpose(0, 1)
        hidden = None if hidden is None else hidden.transpose(0, 1)
        cell = None if cell is None else cell.transpose(0, 1)
    if not isinstance(x.shape[0], int):
        raise call.error("a recurrent layer over a dynamic dim", "make the number of steps static")
    size = call.required("hidden_size")
    kind = call.attribute("direction", "forward")
    names = call.attribute("activations") or DEFAULT_ACTIVATIONS[call.node.op_type] * w.shape[0]
    per_direction = len(names) // w.shape[0]
    zeros = torch.zeros([x.shape[1], size], dtype=x.dtype)
    sequences, finals, cells = [], [], []
    for d in range(w.shape[0]):
        gate_bias = torch.zeros([2 * num_gates * size], dtype=x.dtype) if bias is None else bias[d]
        weights = Weights(
            x=w[d],
            h=r[d],
            x_bias=gate_bias[: num_gates * size],
            h_bias=gate_bias[num_gates * size :],
            peephole=None if peephole is None else peephole[d],
            activations=[
                _activation(call, name)
                for name in names[d * per_direction : (d + 1) * per_direction]
            ],
            hidden=size,
        )
        state = (zeros if hidden is None else hidden[d], zeros if cell is None else cell[d])
        backwards = kind == "reverse" or d == 1
        outputs, state = _run(call, step, weights, x, state, lengths, backwards)
        sequences.append(outputs)
        finals.append(state[0])
        cells.append(state[1])
    y, last, last_cell = torch.stack(sequences, 1), torch.stack(finals), torch.stack(cells)
    if call.flag("layout"):
        return y.permute(2, 0, 1, 3), last.transpose(0, 1), last_cell.transpose(0, 1)
    return y, last, last_cell


def _run(
    call: Call,
    step: Step,
    weights: Weights,
    x: Tensor,
    state: State,
    lengths: Tensor | None,
    backwards: bool,
) -> tuple[Tensor, State]:
    """Rows of the batch that have ended keep their state, and give zeros."""
    outputs: list[Any] = [None] * x.shape[0]
    positions = range(x.shape[0])
    for t in reversed(positions) if backwards else positions:
        moved = step(call, weights, x[t], state)
        if lengths is None:
            state = moved
            outputs[t] = state[0]
            continue
        going = (t < lengths).unsqueeze(-1)
        state = (
            torch.where(going, moved[0], state[0]),
            torch.where(going, moved[1], state[1]),
        )
        outputs[t] = torch.where(going, moved[0], torch.zeros_like(moved[0]))
    return torch.stack(outputs), state


@onnx_op("CausalConvWithState", since=27)
def causal_conv_with_state(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution of [batch, channels, length] that sees the past only."""
    reach = weight.shape[2] - 1
    wide = F.pad(x, [reach, 0]) if past is None else torch.cat([past, x], dim=2)
    y = F.conv1d(wide, weight, bias, groups=int(x.shape[1]))
    if call.attribute("activation", "none") != "none":
        y = F.silu(y)
    return y, wide.narrow(2, wide.shape[2] - reach, reach)


@onnx_op("LinearAttention", since=27)
def linear_attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A running sum of k · vᵀ [batch, heads, d_k, d_v], read by each query; f32 inside.

    Per step, with `decay` the state shrinks by exp(decay); with `beta` only what the state does not
    return for the key yet is written to it (the delta rule).
    """
    batch, steps = query.shape[0], query.shape[1]
    if not isinstance(steps, int):
        raise call.error("LinearAttention over a dynamic dim", "make the number of tokens static")
    heads, kv_heads = call.required("q_num_heads"), call.required("kv_num_heads")
    q, k, v = (
        x.to(torch.float32).reshape(batch, steps, n, -1)
        for x, n in ((query, heads), (key, kv_heads), (value, kv_heads))
    )
    scale = call.attribute("scale", 0.0) or float(q.shape[-1]) ** -0.5
    shape = [batch, kv_heads, k.shape[-1], v.shape[-1]]
    state = torch.zeros(shape) if past is None else past.to(torch.float32)
    outputs = []
    for t in range(steps):
        k_t, v_t = k[:, t], v[:, t]  # [batch, heads, d]
        if decay is not None:
            shrink = decay[:, t].to(torch.float32).reshape(batch, kv_heads, -1)
            state = state * torch.exp(shrink).unsqueeze(-1)
        if beta is not None:
            known = torch.matmul(k_t.unsqueeze(-2), state).squeeze(-2)
            v_t = beta[:, t].to(torch.float32).unsqueeze(-1) * (v_t - known)
        state = state + k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        read = state.repeat_interleave(heads // kv_heads, dim=1)
        outputs.append(torch.matmul(q[:, t].unsqueeze(-2), read).squeeze(-2) * scale)
    y = torch.stack(outputs, dim=1).flatten(2)
    return y.to(query.dtype), state.to(query.dtype if past is None else past.dtype)
