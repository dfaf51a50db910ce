"""How a model family's inputs are described: shapes whose entries are numbers or names of dims.

From one description follow the example inputs, and where the dims `batch`, `height`, `width` (in latent
units) and `text` bind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch

from svdqc.frontends.dims import Binding, DimRequest, NamedAxis, adjusted, example_size
from svdqc.frontends.errors import DynamicSpecError
from svdqc.frontends.spec import walk

Shape = tuple[int | str, ...]
SEED = 20241105
MODEL = "model"  # the dtype of the model's weights


@dataclass(frozen=True)
class Input:
    """An example input: `fill(shape, generator)` in `dtype` ("model": that of the weights)."""

    sizes: Shape
    fill: Callable[[tuple[int, ...], torch.Generator], torch.Tensor]
    dtype: torch.dtype | str = MODEL


@dataclass(frozen=True)
class Family:
    """The inputs of one model, from its config alone.

    inputs     the keyword arguments of forward, nested as it takes them; leaves: Input or constants
    sizes      dim name → example size (batch is 2: a size of 1 would be taken for a constant)
    multiples  dim name → what its sizes must be a multiple of
    packed     name of the dim that counts patches of `patch` x `patch` latent pixels, if there is one
    """

    inputs: Mapping[str, Any]
    sizes: Mapping[str, int]
    multiples: Mapping[str, int] = field(default_factory=dict)
    packed: str | None = None
    patch: int = 2

    def axes(self) -> dict[str, NamedAxis]:
        """Where each named dim is, read off the inputs' shapes."""
        found: dict[str, list[Binding]] = {}
        for name, leaf in walk(self.inputs, leaf=Input):
            if isinstance(leaf, Input):
                for axis, size in enumerate(leaf.sizes):
                    if isinstance(size, str):
                        found.setdefault(size, []).append(Binding(name, axis))
        return {
            name: NamedAxis(tuple(bindings), self.multiples.get(name, 1))
            for name, bindings in found.items()
        }

    def examples(self, requests: Mapping[str, DimRequest], dtype: torch.dtype) -> dict[str, Any]:
        """Example inputs whose sizes lie in the requested ranges; the same on every call."""
        axes = self.axes()
        sizes = dict(self.sizes)
        for name in sorted(sizes.keys() & requests.keys()):
            side = name in ("height", "width")
            avoid = {self.sizes[name], sizes.get("height", 0)} if side else set()
            sizes[name] = example_size(adjusted(requests[name], axes), sizes[name], avoid)
        generator = torch.Generator().manual_seed(SEED)

        def build(value: Any) -> Any:
            if isinstance(value, Input):
                shape = tuple(sizes[n] if isinstance(n, str) else n for n in value.sizes)
                return value.fill(shape, generator).to(
                    dtype if isinstance(value.dtype, str) else value.dtype
                )
            if isinstance(value, Mapping):
                return {key: build(child) for key, child in value.items()}
            if isinstance(value, (list, tuple)):
                return type(value)(build(child) for child in value)
            return value

        examples: dict[str, Any] = build(self.inputs)
        return examples

    def unpacked(self, requests: dict[str, DimRequest]) -> dict[str, DimRequest]:
        """Height and width of a packed family, as the range of its token count."""
        pair = [requests.get(name) for name in ("height", "width")]
        if self.packed is None or not any(pair) or self.packed in requests:
            return requests
        height, width = pair
        if height is None or width is None or height.bindings or width.bindings:
            raise DynamicSpecError(
                (height or width or DimRequest("height")).text(),
                "one side of a picture that this model sees as a sequence",
                f"give height and width, or {self.packed}=lo:hi",
            )
        step = {"height": NamedAxis((), self.patch), "width": NamedAxis((), self.patch)}
        sides = [adjusted(side, step) for side in (height, width)]
        area = self.patch * self.patch
        tokens = DimRequest(
            self.packed,
            sides[0].lo * sides[1].lo // area,
            sides[0].hi * sides[1].hi // area,
            sides[0].multiple * sides[1].multiple // area,
        )
        rest = {name: dim for name, dim in requests.items() if name not in ("height", "width")}
        return {**rest, self.packed: tokens}


# --- kinds of input ----------------------------------------------------------------------------------


def normal(*sizes: int | str) -> Input:
    """Latents, embeddings: standard normal, in the dtype of the weights."""
    return Input(sizes, lambda shape, generator: torch.randn(shape, generator=generator))


def steps(*sizes: int | str) -> Input:
    """Timesteps in 0..1000, float32."""
    return Input(
        sizes, lambda shape, generator: torch.rand(shape, generator=generator) * 1000, torch.float32
    )


def fractions(*sizes: int | str) -> Input:
    """Flow-matching times in 0..1, float32."""
    return Input(
        sizes, lambda shape, generator: torch.rand(shape, generator=generator), torch.float32
    )


def constant(value: float, *sizes: int | str, dtype: torch.dtype | str = torch.float32) -> Input:
    """One value everywhere: guidance scales, full masks, class labels."""
    return Input(sizes, lambda shape, generator: torch.full(shape, value), dtype)


def grid(tokens: int | str) -> Input:
    """(0, row, column) of each token of a square picture, float32 [tokens, 3]."""

    def fill(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        index = torch.arange(shape[0])
        side = max(isqrt(shape[0]), 1)
        return torch.stack([torch.zeros_like(index), index // side, index % side], dim=-1)

    return Input((tokens, 3), fill, torch.float32)
