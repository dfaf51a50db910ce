"""Where stored values live: a buffer and the strides of the value in it."""

from __future__ import annotations

from dataclasses import dataclass

from svdqc.compiler.codegen.ops.registry import Index
from svdqc.compiler.codegen.scalar import ITEM_BYTES
from svdqc.compiler.ir.intexpr import ONE, ZERO, IntExpr, prod
from svdqc.compiler.ir.symbols import Shape


@dataclass(frozen=True)
class BufferKey:
    """kind "input", "output", "weight" or "arena"; `name` is unique within the kind. `layout` is a weight's packing."""

    kind: str
    name: str
    layout: str = "dense"


@dataclass(frozen=True)
class Storage:
    """A value in memory: element idx is at offset + sum(idx * strides), in elements of `dtype`."""

    buffer: BufferKey
    dtype: str
    shape: Shape
    strides: Shape
    offset: IntExpr = ZERO

    def address(self, idx: Index) -> IntExpr:
        position = self.offset
        for i, stride in zip(idx, self.strides, strict=True):
            position = position + i * stride
        return position

    @property
    def extent(self) -> IntExpr:
        """How far the last element reaches from the first, in elements."""
        last = ONE
        for size, stride in zip(self.shape, self.strides, strict=True):
            last = last + (size - 1) * stride
        return last

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]


def dense_strides(shape: Shape, order: tuple[int, ...] | None = None) -> Shape:
    """Strides of a dense tensor whose axes lie in memory in `order`, outermost first (row-major by default)."""
    strides: list[IntExpr] = [ZERO] * len(shape)
    step = ONE
    for axis in reversed(order or tuple(range(len(shape)))):
        strides[axis] = step
        step = step * shape[axis]
    return tuple(strides)


def dense(
    buffer: BufferKey, dtype: str, shape: Shape, order: tuple[int, ...] | None = None
) -> Storage:
    return Storage(buffer, dtype, shape, dense_strides(shape, order))


def dense_bytes(dtype: str, shape: Shape) -> IntExpr:
    return prod(shape) * ITEM_BYTES[dtype]
