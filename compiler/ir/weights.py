"""Weights that stay where they are until somebody reads them.

A model's tensors are named and described without being loaded: a FLUX-size model is captured, inspected
and planned with no weight in memory, and quantized with one layer's weights at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True)
class WeightSpec:
    """Shape and dtype of a stored tensor, known without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class WeightStore(ABC):
    """Named tensors, read one at a time. Implementations must be safe to read from several threads."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Every name, in a stable order."""

    @abstractmethod
    def spec(self, name: str) -> WeightSpec:
        """Shape and dtype, without reading the data."""

    @abstractmethod
    def load(self, name: str) -> torch.Tensor:
        """The tensor on the CPU, contiguous; read on each call, never cached."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()


class MemoryWeights(WeightStore):
    """Tensors that are in memory already (an nn.Module's state, folded constants)."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)

    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def spec(self, name: str) -> WeightSpec:
        tensor = self._tensors[name]
        return WeightSpec(tuple(tensor.shape), tensor.dtype)

    def load(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach().contiguous()

    def put(self, name: str, tensor: torch.Tensor) -> None:
        self._tensors[name] = tensor

    def take(self, name: str) -> torch.Tensor:
        return self._tensors.pop(name)


class LayeredWeights(WeightStore):
    """A writable layer over a read-only store: passes add and derive tensors, the base stays as it is.

    A derived tensor is a function of the base, evaluated at each `load`, so it costs no memory until it
    is asked for (a transposed, cast or concatenated weight).
    """

    def __init__(self, base: WeightStore) -> None:
        self.base = base
        self._own = MemoryWeights({})
        self._derived: dict[str, tuple[WeightSpec, Callable[[], torch.Tensor]]] = {}

    def names(self) -> tuple[str, ...]:
        return (*self.base.names(), *self._own.names(), *self._derived)

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._derived or name in self.base

    def spec(self, name: str) -> WeightSpec:
        if name in self._own:
            return self._own.spec(name)
        if name in self._derived:
            return self._derived[name][0]
        return self.base.spec(name)

    def load(self, name: str) -> torch.Tensor:
        if name in self._own:
            return self._own.load(name)
        if name in self._derived:
            return self._derived[name][1]().detach().contiguous()
        return self.base.load(name)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Keep `tensor` in memory under a fresh name."""
        assert name not in self, f"weight {name!r} exists already"
        self._own.put(name, tensor.detach())

    def derive(self, name: str, spec: WeightSpec, compute: Callable[[], torch.Tensor]) -> None:
        """Define a fresh name as `compute()`, evaluated at each load."""
        assert name not in self, f"weight {name!r} exists already"
        self._derived[name] = (spec, compute)

    def in_memory(self) -> list[tuple[str, torch.Tensor]]:
        """What `put` keeps."""
        return [(name, self._own.load(name)) for name in self._own.names()]

    def drop(self, name: str, read: Callable[[], torch.Tensor]) -> None:
        """Keep a tensor in memory no longer: `read` gives it back at each load."""
        spec = self._own.spec(name)
        self._own.take(name)
        self._derived[name] = (spec, read)
