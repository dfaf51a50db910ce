"""Host values: small tensors whose elements are known while tracing, as Python numbers or symbols.

Shape arithmetic (Shape → Gather → Mul → Concat → Reshape) runs on these, so a dynamic dim stays a
torch.SymInt and never becomes the content of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Number: TypeAlias = "bool | int | float | torch.SymInt | torch.SymFloat | torch.SymBool"
Items: TypeAlias = "npt.NDArray[np.object_]"

# Constants of up to this many elements can take part in shape arithmetic.
MOST_HOST_ELEMENTS = 64

SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)

# Folding happens in Python numbers: exact in int64 and bool, and correctly rounded in f32 and f64.
FOLDED_DTYPES = frozenset({torch.int64, torch.int32, torch.bool, torch.float32, torch.float64})


class Host:
    """A small tensor of known elements.

    items    object array in the tensor's shape; elements are Python numbers or symbols
    dtype    the tensor's element type
    source   the same tensor, if it exists already (an initializer)
    """

    __slots__ = ("dtype", "items", "source")

    def __init__(
        self, items: Items, dtype: torch.dtype, source: Callable[[], Tensor] | None = None
    ) -> None:
        self.items, self.dtype, self.source = items, dtype, source

    @property
    def shape(self) -> tuple[int, ...]:
        return self.items.shape

    @property
    def numel(self) -> int:
        return self.items.size

    def flat(self) -> list[Any]:
        return [self.items[index] for index in np.ndindex(self.items.shape)]

    def is_static(self) -> bool:
        return not any(isinstance(item, SYMBOLS) for item in self.flat())

    def number(self) -> Any:
        """The only element."""
        (item,) = self.flat()
        return item

    def tensor(self) -> Tensor:
        if self.source is not None:
            return self.source()
        if self.is_static():
            return torch.tensor(self.items.tolist(), dtype=self.dtype)
        scalars = [torch.scalar_tensor(item, dtype=self.dtype) for item in self.flat()]
        if self.shape == ():
            return scalars[0]
        return torch.stack(scalars).reshape(self.shape)


Value: TypeAlias = "Tensor | Host"


def host(values: Iterable[Number], shape: Sequence[int], dtype: torch.dtype) -> Host:
    """A host value of `values` in row-major order."""
    items = np.empty(tuple(shape), dtype=object)
    flat = [_rounded(value, dtype) for value in values]
    assert len(flat) == items.size, f"{len(flat)} values for shape {tuple(shape)}"
    for index, value in zip(np.ndindex(items.shape), flat, strict=True):
        items[index] = value
    return Host(items, dtype)


def host_vector(values: Sequence[Number], dtype: torch.dtype = torch.int64) -> Host:
    return host(values, (len(values),), dtype)


def host_scalar(value: Number, dtype: torch.dtype = torch.int64) -> Host:
    return host([value], (), dtype)


def host_array(items: Any, dtype: torch.dtype) -> Host:
    """A host value of an object array (numpy drops rank 0 to a bare object: restored here)."""
    if not isinstance(items, np.ndarray):
        return host([items], (), dtype)
    return host(Host(items, dtype).flat(), items.shape, dtype)


def host_of_tensor(tensor: Tensor, source: Callable[[], Tensor] | None = None) -> Host:
    """The elements of a real (not fake) tensor."""
    values = tensor.reshape(-1).tolist()
    made = host(values, tuple(tensor.shape), tensor.dtype)
    return Host(made.items, tensor.dtype, source)


def sym_max(a: Any, b: Any) -> Any:
    """The larger of two sizes, numbers or symbols."""
    return torch.sym_max(a, b)  # type: ignore[no-untyped-call]


def sym_min(a: Any, b: Any) -> Any:
    """The smaller of two sizes, numbers or symbols."""
    return torch.sym_min(a, b)  # type: ignore[no-untyped-call]


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    """`value` as an element of `dtype`: Python floats of an f32 tensor are rounded to f32."""
    if isinstance(value, SYMBOLS):
        return value
    if dtype == torch.float32:
        value = float(value)
        return float(np.float32(value)) if math.isfinite(value) and abs(value) < 3.4e38 else value
    if dtype == torch.bool:
        return bool(value)
    if dtype.is_floating_point:
        return float(value)
    if dtype.is_complex:
        return complex(value)
    return int(value)
