"""The emoji model drawn in float and with its linears replaced by quantized ones, many prompts at once.

The model is captured and canonicalized as for a compilation, and its layers are chosen and grouped by the same passes,
so a replaced layer computes what its kernels compute up to the rounding of f32. All versions draw from equal noise.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "emoji"
if str(EXAMPLE) not in sys.path:
    sys.path.insert(0, str(EXAMPLE))

from draw import MODEL, EagerModel  # noqa: E402
from sampling import GUIDANCE, NUM_STEPS, Words, model_inputs, psnr, unpatchify  # noqa: E402

from svdqc.compiler.driver.compile import capture_canonical  # noqa: E402
from svdqc.compiler.ir.rewrite import aten, is_call  # noqa: E402
from svdqc.compiler.passes.linear_groups import linear_groups, weight_node  # noqa: E402
from svdqc.compiler.passes.select_layers import quantized_groups  # noqa: E402
from svdqc.compiler.quantize.codecs import decode_activation, encode_activation  # noqa: E402
from svdqc.compiler.quantize.hadamard import rotate_offline  # noqa: E402
from svdqc.compiler.quantize.linear import (  # noqa: E402
    LinearSamples,
    QuantizedLinear,
    quantize_linear,
)
from svdqc.compiler.quantize.recipe import Recipe  # noqa: E402
from svdqc.compiler.quantize.reference import (  # noqa: E402
    dequantize_weight,
    smooth_activation,
)

GELU_SHIFT = 0.171875
GRID = 8
FIT_TOKENS, HELD_OUT_TOKENS = 2048, 512
Observer = Callable[[int, Node, Tensor], None]
Layer = Callable[[Tensor], Tensor]
"""x [..., in_features] -> the outputs of a group's linears side by side, without bias."""


def prompts(count: int) -> tuple[list[str], list[str]]:
    """Evenly spaced names to draw, and all the others: to calibrate with."""
    names = (MODEL / "prompts.txt").read_text().splitlines()
    drawn = names[:: max(len(names) // count, 1)][:count]
    return drawn, [name for name in names if name not in drawn]


class EmojiModel:
    """The canonical program for calls of `rows` rows, in f32, and what is to be quantized in it.

    weights  group -> its linears' weights, stacked        shifts  group -> what makes its input >= 0, or None
    """

    def __init__(self, rows: int) -> None:
        eager = EagerModel(dtype="float32")
        self.words = Words.open(MODEL)
        latents = np.zeros((rows, GRID * GRID, 48), np.float32)
        inputs = model_inputs(latents, *self.words.encode([""] * rows), 0.5, GRID)
        recipe = Recipe(modulation="keep")  # one row per image: no 4-bit activations there
        canonical = capture_canonical(eager.module, eager.tensors(inputs), None, recipe)
        self.rows, self.program = rows, canonical.program
        self.groups = quantized_groups(canonical.decisions, linear_groups(self.program))
        self.weights = {
            g.name: torch.cat([self._weight(linear) for linear in g.linears]) for g in self.groups
        }
        self.shifts = {
            g.name: GELU_SHIFT if is_call(g.x, aten.gelu.default) else None for g in self.groups
        }
        self._stored: dict[str, Tensor] = {}

    def _weight(self, linear: Node) -> Tensor:
        node = weight_node(linear)
        assert node is not None
        return self.program.weights.load(node.meta["weight"]).to(torch.float32)

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        layers: Mapping[str, Layer],
        observe: Callable[[Node, Tensor], None] | None = None,
    ) -> Tensor:
        """The output [rows, 64, 48] with the groups named in `layers` replaced."""
        run = _Replaced(self, layers, observe)
        with torch.inference_mode():
            outputs = run.run(*(inputs[spec.name] for spec in self.program.inputs))
        return outputs[0]  # type: ignore[no-any-return]

    def stored(self, name: str) -> Tensor:
        if name not in self._stored:
            self._stored[name] = self.program.weights.load(name)
        return self._stored[name]

    def quantized(self, samples: Mapping[str, LinearSamples], recipe: Recipe) -> dict[str, Layer]:
        """Every group of `weights` by svdqc; without samples for it, from its weights alone."""
        return {
            name: simulate(
                quantize_linear(
                    weight,
                    samples.get(name),
                    recipe,
                    nonnegative_after_shift=self.shifts[name],
                    name=name,
                )
            )
            for name, weight in self.weights.items()
        }


class _Replaced(Interpreter):
    """Runs the program; the first linear of a replaced group computes the group."""

    def __init__(
        self,
        model: EmojiModel,
        layers: Mapping[str, Layer],
        observe: Callable[[Node, Tensor], None] | None,
    ) -> None:
        super().__init__(model.program.graph_module, garbage_collect_values=True)
        self._model, self._layers, self._observe = model, layers, observe
        self._outputs: dict[Node, Tensor] = {}
        self._group_of = {n: g for g in model.groups if g.name in layers for n in g.linears}

    def run_node(self, n: Node) -> Any:
        if n.op == "get_attr":
            return self._model.stored(n.meta["weight"])
        if n not in self._group_of:
            value = super().run_node(n)
            if self._observe is not None:
                self._observe(n, value)
            return value
        if n not in self._outputs:
            group = self._group_of[n]
            widths = [linear.meta["val"].shape[-1] for linear in group.linears]
            together = self._layers[group.name](self.env[group.x])
            self._outputs.update(zip(group.linears, together.split(widths, -1), strict=True))
        y = self._outputs[n]
        return y if len(n.args) < 3 or n.args[2] is None else y + self.env[n.args[2]]  # type: ignore[index]


def flat(layer: Layer) -> Layer:
    """A layer of [tokens, in_features] for inputs of any rank."""
    return lambda x: layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def simulate(q: QuantizedLinear) -> Layer:
    """A quantized linear on decoded codes: its exact reference up to the rounding of f32, and several times as fast."""
    weight = dequantize_weight(q.w_codes, q.w_scale)
    down, up = q.lora_down.to(torch.float32), q.lora_up.to(torch.float32)

    def layer(x: Tensor) -> Tensor:
        x_hat = smooth_activation(x.reshape(-1, x.shape[-1]), q.inv_smooth, q.activation)
        x_rot = rotate_offline(x_hat) if q.activation.rotate else x_hat
        coded = decode_activation(*encode_activation(x_rot, q.activation))
        y = coded @ weight.T + (x_hat @ down.T) @ up.T
        y = y if q.bias_delta is None else y + q.bias_delta
        return y.reshape(*x.shape[:-1], -1)

    return layer


def draw(
    model: EmojiModel,
    names: list[str],
    seeds: list[int],
    layers: Mapping[str, Layer],
    num_steps: int = NUM_STEPS,
    observe: Observer | None = None,
) -> np.ndarray:
    """Pictures [prompts, 32, 32, 3], as examples/emoji/sampling.py draws them, all prompts in one call a step.

    Rows without words come first, then rows with them. `observe` is shown the step, each node and its value.
    """
    assert 2 * len(names) == model.rows, (len(names), model.rows)
    empty, given = model.words.encode([""] * len(names)), model.words.encode(names)
    hidden, pooled = (np.concatenate(pair) for pair in zip(empty, given, strict=True))
    shape = (1, GRID * GRID, 48)
    noise = [np.random.default_rng(seed).standard_normal(shape) for seed in seeds]
    latents = np.concatenate(noise).astype(np.float32)
    for step in range(num_steps):
        both = np.concatenate([latents, latents])
        arrays = model_inputs(both, hidden, pooled, 1.0 - step / num_steps, GRID)
        inputs = {name: torch.from_numpy(value) for name, value in arrays.items()}
        see = None if observe is None else partial(observe, step)
        v_empty, v_text = model(inputs, layers, see).numpy().reshape(2, *latents.shape)
        latents = latents - (v_empty + GUIDANCE * (v_text - v_empty)) / np.float32(num_steps)
    return np.stack([unpatchify(picture, GRID) for picture in latents])


def likeness(first: np.ndarray, second: np.ndarray) -> list[float]:
    """PSNR of each pair of pictures, in dB."""
    found = [psnr(a, b) for a, b in zip(first, second, strict=True)]
    assert all(math.isfinite(value) for value in found), (
        "pictures equal to the bit: nothing was quantized"
    )
    return found


def sample_tokens(
    model: EmojiModel, names: list[str], num_steps: int = NUM_STEPS, seed: int = 0
) -> dict[str, LinearSamples]:
    """What each group reads while the names are drawn in float: of each prompt one step, its turn among the steps.

    Distinct tokens only, and the tokens of every fifth prompt are held out, as in a compilation with one sample per
    prompt. The names are drawn in batches of as many as the model takes; what is left over is not used.
    """
    batch = model.rows // 2
    found: dict[Node, dict[bool, list[Tensor]]] = {g.x: {True: [], False: []} for g in model.groups}
    for start in range(0, len(names) - batch + 1, batch):

        def observe(step: int, node: Node, value: Tensor, start: int = start) -> None:
            for i in range(batch):
                if node in found and (start + i) % num_steps == step:
                    rows = value[[i, batch + i]].reshape(-1, value.shape[-1])
                    found[node][(start + i) % 5 == 4].append(rows)

        seeds = list(range(10_000 + start, 10_000 + start + batch))
        draw(model, names[start : start + batch], seeds, {}, num_steps, observe)
    g = torch.Generator().manual_seed(seed)
    return {
        group.name: LinearSamples(
            _some(found[group.x][False], FIT_TOKENS, g),
            _some(found[group.x][True], HELD_OUT_TOKENS, g),
        )
        for group in model.groups
    }


def _some(parts: list[Tensor], count: int, g: torch.Generator) -> Tensor:
    rows = torch.unique(torch.cat(parts), dim=0)
    return rows[torch.randperm(rows.shape[0], generator=g)[:count]]
