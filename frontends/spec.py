"""Names for nested inputs and outputs. Needs no torch: anything with `.shape` and `.dtype` is a tensor.

{"x": t0, "cond": [{"mask": t1}, None], "scale": 1.5}   ->   {"x": t0, "cond.0.mask": t1}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


def is_tensor_like(value: object) -> bool:
    """Whether `value` is an array: torch, numpy, or anything with a shape and a dtype."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def walk(value: Any, path: str = "", leaf: type | None = None) -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts, lists, tuples and dataclasses, with their dotted paths, in order.

    Instances of `leaf` are leaves whatever they are made of.
    """
    children: Iterator[tuple[str, Any]]
    if leaf is not None and isinstance(value, leaf):
        yield path, value
        return
    if isinstance(value, Mapping):
        children = ((str(key), child) for key, child in value.items())
    elif isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", range(len(value)))
        children = ((str(key), child) for key, child in zip(names, value, strict=True))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        children = ((field.name, getattr(value, field.name)) for field in fields)
    else:
        yield path, value
        return
    for key, child in children:
        yield from walk(child, f"{path}.{key}" if path else key, leaf)


def flatten_inputs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a model's keyword arguments by dotted name; None and Python scalars are left out.

    These are the names of `Program.inputs`, so `program.run(flatten_inputs(kwargs))` runs the model on
    the arguments that its forward takes.
    """
    return {name: leaf for name, leaf in walk(kwargs) if is_tensor_like(leaf)}
