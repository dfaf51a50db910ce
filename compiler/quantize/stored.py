"""A quantized linear as named tensors and text, and back, to the bit: what a long compilation keeps of finished layers.

Also the key that such a layer is kept under: it names everything the numbers follow from.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdqc.compiler.quantize.linear import LinearSamples, QuantizedLinear
from svdqc.compiler.quantize.ranges import ActivationFormat
from svdqc.compiler.quantize.recipe import Recipe


def to_stored(layer: QuantizedLinear) -> tuple[dict[str, Tensor], str]:
    """(tensors by field, canonical JSON of the other fields)."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            rest[field.name] = dataclasses.asdict(value)
        else:
            rest[field.name] = value
    return tensors, json.dumps(rest, sort_keys=True)


def from_stored(tensors: Mapping[str, Tensor], text: str) -> QuantizedLinear:
    """The inverse of `to_stored`."""
    fields: dict[str, Any] = {**tensors, **json.loads(text)}
    fields["activation"] = ActivationFormat(**fields["activation"])
    fields["notes"] = tuple(fields["notes"])
    return QuantizedLinear(**fields)


def layer_key(
    names: Iterable[str],
    weights: Iterable[Tensor],
    samples: LinearSamples | None,
    recipe: Recipe,
    shift: float | None,
    device: str,
) -> str:
    """Of the layers' names and weights, their samples, the recipe, the place and the code that quantizes: 32 digits."""
    parts = [*weights]
    if samples is not None:
        parts += [samples.fit] if samples.held_out is None else [samples.fit, samples.held_out]
    rest = [list(names), len(parts), dataclasses.asdict(recipe), shift, device, _code_version()]
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for part in parts:
        digest.update(tensor_digest(part))
    return digest.hexdigest()[:32]


def tensor_digest(tensor: Tensor) -> bytes:
    """sha256 of a tensor's type, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()


@functools.cache
def _code_version() -> str:
    """Of this folder's code, and of the library whose arithmetic it uses on this processor."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    library = f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
    return f"{digest.hexdigest()} {library}"
