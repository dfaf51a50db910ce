"""Dynamic dims: what the user writes, where it binds, and what torch.export is told.

Text, for the command line: entries separated by commas.

    height=64:128:8                     64 <= height <= 128, a multiple of 8; the model knows where it is
    tokens@hidden_states.1=16:4096      axis 1 of the input `hidden_states`
    batch@x.0+y.0=1:4                   several axes share one dim
    2*tokens@mask.1                     an axis whose size is derived: factor*name+offset, no range
    batch=1                             a fixed size (for a model that makes up its own example inputs)

Python: `{"height": (64, 128, 8), "batch": "1:4", "x": {1: ("tokens", 16, 4096), 2: "2*tokens+1"}}`.

A dim with multiple m is given to torch.export as `m * unit`, not as a plain dim with a divisibility
guard: sizes such as `(height - 1) // 2 + 1`, which a strided convolution makes, then simplify to
`4 * unit` and equal the ones they are added to. So the symbol in the graph counts units:
`program.dims[symbol]` is the dim the user knows (64..128, multiple 8), and dim = multiple * symbol.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import lcm
from typing import Any

from svdqc.compiler.ir.program import Dim
from svdqc.frontends.errors import DynamicSpecError, UnknownDimError, UnusableInputsError

GRAMMAR = "write name=lo:hi[:multiple], or name@input.axis+input.axis=lo:hi[:multiple]"
_EXPRESSION = re.compile(r"(?:(\d+) *\* *)?([A-Za-z_]\w*) *([+-] *\d+)?")
_BINDING = re.compile(r"(.+)\.(\d+)")


@dataclass(frozen=True)
class Binding:
    """Axis `axis` of the input called `input` has size `factor * dim + offset`."""

    input: str
    axis: int
    factor: int = 1
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.input}.{self.axis}"

    def size(self, dim: int) -> int:
        return self.factor * dim + self.offset


@dataclass(frozen=True)
class NamedAxis:
    """Where a model family has a dim of a well-known name, and what its sizes must be a multiple of."""

    bindings: tuple[Binding, ...]
    multiple: int = 1


@dataclass
class DimRequest:
    """One dim as the user asked for it; `bindings` empty when only the name was given."""

    name: str
    lo: int = -1
    hi: int = -1
    multiple: int = 1
    bindings: list[Binding] = field(default_factory=list)

    @property
    def has_range(self) -> bool:
        return self.lo >= 0

    def text(self) -> str:
        step = f":{self.multiple}" if self.multiple > 1 else ""
        return f"{self.name}={self.lo}:{self.hi}{step}"


def parse_dynamic(dynamic: str | Mapping[Any, Any] | None) -> dict[str, DimRequest]:
    """The requested dims by name. See the module's grammar."""
    requests: dict[str, DimRequest] = {}
    if dynamic is None:
        return requests
    if isinstance(dynamic, str):
        for entry in filter(None, (part.strip() for part in dynamic.split(","))):
            left, _, sizes = entry.partition("=")
            _add_entry(requests, left.strip(), sizes.strip() or None, entry)
    elif isinstance(dynamic, Mapping):
        for key, value in dynamic.items():
            if not isinstance(key, str):
                raise DynamicSpecError(repr(key), "a key that is not a string", GRAMMAR)
            if isinstance(value, Mapping):
                _add_axes(requests, key, value)
            else:
                _add_entry(requests, key, value, f"{key}={value}")
    else:
        raise DynamicSpecError(str(dynamic), f"a {type(dynamic).__name__}", GRAMMAR)
    for request in requests.values():
        if not request.has_range:
            raise DynamicSpecError(request.name, "a dim without a range", GRAMMAR)
    return requests


def _add_entry(requests: dict[str, DimRequest], left: str, sizes: Any, entry: str) -> None:
    expression, _, places = left.partition("@")
    name, factor, offset = _parse_expression(expression, entry)
    request = requests.setdefault(name, DimRequest(name))
    if sizes is not None:
        if (factor, offset) != (1, 0):
            raise DynamicSpecError(entry, "a range for a derived size", "give the range to the dim")
        _set_range(request, sizes, entry)
    for place in filter(None, places.split("+")):
        match = _BINDING.fullmatch(place.strip())
        if match is None:
            raise DynamicSpecError(
                entry, f"the place {place!r}", "write it as input.axis, as in x.1"
            )
        request.bindings.append(Binding(match[1], int(match[2]), factor, offset))


def _add_axes(requests: dict[str, DimRequest], input_name: str, axes: Mapping[Any, Any]) -> None:
    for axis, value in axes.items():
        entry = f"{input_name}: {{{axis}: {value!r}}}"
        if not isinstance(axis, int) or axis < 0:
            raise DynamicSpecError(entry, f"the axis {axis!r}", "an axis is an int >= 0")
        sizes: Any = None
        expression = value
        if isinstance(value, Dim):
            expression, sizes = value.name, value
        elif isinstance(value, (tuple, list)) and value:
            expression, sizes = value[0], tuple(value[1:]) or None
        if not isinstance(expression, str):
            raise DynamicSpecError(
                entry, f"the dim {expression!r}", 'write ("name", lo, hi, multiple)'
            )
        expression, _, text = expression.partition("=")
        name, factor, offset = _parse_expression(expression, entry)
        request = requests.setdefault(name, DimRequest(name))
        request.bindings.append(Binding(input_name, axis, factor, offset))
        if sizes is not None or text:
            _set_range(request, text if sizes is None else sizes, entry)


def _parse_expression(text: str, entry: str) -> tuple[str, int, int]:
    match = _EXPRESSION.fullmatch(text.strip())
    if match is None or match[1] == "0":
        raise DynamicSpecError(entry, f"the dim {text!r}", GRAMMAR)
    return match[2], int(match[1] or 1), int((match[3] or "0").replace(" ", ""))


def _set_range(request: DimRequest, sizes: Any, entry: str) -> None:
    try:
        if isinstance(sizes, Dim):
            numbers = [sizes.lo, sizes.hi, sizes.multiple]
        elif isinstance(sizes, str):
            numbers = [int(part) for part in sizes.split(":")]
        elif isinstance(sizes, int):
            numbers = [sizes]
        else:
            numbers = [int(part) for part in sizes]
    except (TypeError, ValueError):
        raise DynamicSpecError(entry, f"the range {sizes!r}", GRAMMAR) from None
    if len(numbers) == 1:
        numbers *= 2
    if len(numbers) == 2:
        numbers.append(1)
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] or numbers[2] < 1:
        raise DynamicSpecError(
            entry, f"the range {sizes!r}", f"1 <= lo <= hi is required; {GRAMMAR}"
        )
    found = (numbers[0], numbers[1], numbers[2])
    if request.has_range and found != (request.lo, request.hi, request.multiple):
        raise DynamicSpecError(entry, f"a second range; the first is {request.text()}", "give one")
    request.lo, request.hi, request.multiple = found


def resolve(
    requests: Mapping[str, DimRequest],
    shapes: Mapping[str, tuple[int, ...]],
    named: Mapping[str, NamedAxis],
) -> list[DimRequest]:
    """Find the axes of every requested dim, check the example sizes against its range.

    shapes  example input name → shape
    named   what the model family (or the ONNX file) calls its axes
    Returns the dims that stay dynamic; one with lo == hi is fixed, and only checked.
    """
    resolved: list[DimRequest] = []
    taken: dict[tuple[str, int], str] = {}
    for request in requests.values():
        request = _bind(request, shapes, named)
        for binding in request.bindings:
            owner = taken.setdefault((binding.input, binding.axis), request.name)
            if owner != request.name:
                raise DynamicSpecError(
                    request.name, f"{binding} belongs to {owner!r} already", "give an axis one dim"
                )
        _check_examples(request, shapes)
        if request.lo < request.hi:
            resolved.append(request)
    return resolved


def adjusted(request: DimRequest, named: Mapping[str, NamedAxis]) -> DimRequest:
    """The request with the family's multiple worked in; its bounds must be legal sizes."""
    known = named.get(request.name)
    step = lcm(request.multiple, known.multiple if known and not request.bindings else 1)
    if request.lo % step or request.hi % step:
        lo, hi = -(-request.lo // step) * step, request.hi // step * step
        write = f"write {request.name}={lo}:{hi}:{step}" if lo <= hi else "widen the range"
        raise DynamicSpecError(request.text(), f"bounds that are not multiples of {step}", write)
    return DimRequest(request.name, request.lo, request.hi, step, list(request.bindings))


def example_size(request: DimRequest, default: int, avoid: Collection[int] = ()) -> int:
    """A size to trace with: inside the range, and at least two units, since one is taken for a constant.

    avoid  sizes that the model may treat apart: the one its tables are built for, the other side's
    """
    step = request.multiple
    falling = range(request.hi, max(request.lo, 2 * step) - 1, -step)
    usable: list[int] = [size for size in (default, *falling) if size in falling]
    preferred = [size for size in usable if size not in avoid]
    return [*preferred, *usable, request.hi][0]


def _bind(
    request: DimRequest, shapes: Mapping[str, tuple[int, ...]], named: Mapping[str, NamedAxis]
) -> DimRequest:
    bound = adjusted(request, named)
    if not bound.bindings and bound.name in named:
        bound.bindings = [b for b in named[bound.name].bindings if b.input in shapes]
    elif not bound.bindings and bound.name == "batch":
        bound.bindings = _batch_axes(shapes)
    if not bound.bindings:
        known = ", ".join(sorted({*named, "batch"}))
        raise UnknownDimError(
            bound.name,
            f"no axis of that name (known here: {known})",
            f"say where it is: '{bound.name}@input.axis={bound.lo}:{bound.hi}'; "
            f"inputs: {_describe(shapes)}",
        )
    for binding in bound.bindings:
        if binding.input not in shapes or binding.axis >= len(shapes[binding.input]):
            raise UnknownDimError(
                bound.name, f"no axis {binding}", f"name one of the inputs: {_describe(shapes)}"
            )
    return bound


def _batch_axes(shapes: Mapping[str, tuple[int, ...]]) -> list[Binding]:
    ranked = [(name, shape) for name, shape in shapes.items() if shape]
    return [Binding(name, 0) for name, shape in ranked if shape[0] == ranked[0][1][0]]


def _check_examples(request: DimRequest, shapes: Mapping[str, tuple[int, ...]]) -> None:
    sizes: dict[int, Binding] = {}
    for binding in request.bindings:
        size = shapes[binding.input][binding.axis]
        dim, rest = divmod(size - binding.offset, binding.factor)
        legal = rest == 0 and request.lo <= dim <= request.hi and dim % request.multiple == 0
        if not legal:
            raise UnusableInputsError(
                request.name,
                f"the example input has size {size} at {binding}",
                f"give example inputs inside {request.text()}",
            )
        sizes.setdefault(dim, binding)
    if len(sizes) > 1:
        found = ", ".join(f"{dim} at {binding}" for dim, binding in sizes.items())
        raise UnusableInputsError(
            request.name, f"different sizes: {found}", "give example inputs in which they agree"
        )
    smallest = 2 * request.multiple
    if request.lo < request.hi and next(iter(sizes)) < smallest:
        raise UnusableInputsError(
            request.name,
            f"the example size is {next(iter(sizes))}",
            f"give example inputs with {request.name} >= {smallest}: "
            "tracing takes a size of one unit for a constant",
        )


def _describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name}{list(shape)}" for name, shape in shapes.items()) or "none"


def dynamic_shapes(kwargs: Mapping[str, Any], dims: Iterable[DimRequest]) -> dict[str, Any]:
    """What torch.export takes: the structure of `kwargs` with {axis: Dim} or None at each leaf."""
    import torch
    from torch.export import Dim as ExportDim

    per_input: dict[str, dict[int, Any]] = {}
    for request in dims:
        unit = ExportDim(
            unit_name(request),
            min=request.lo // request.multiple,
            max=request.hi // request.multiple,
        )
        for binding in request.bindings:
            factor = request.multiple * binding.factor
            size: Any = unit if factor == 1 else factor * unit
            size = size + binding.offset if binding.offset > 0 else size
            size = size - -binding.offset if binding.offset < 0 else size
            per_input.setdefault(binding.input, {})[binding.axis] = size

    def build(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {k: build(v, f"{path}.{k}" if path else str(k)) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            items = [build(item, f"{path}.{i}") for i, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        return per_input.get(path, {}) if isinstance(value, torch.Tensor) else None

    shapes: dict[str, Any] = build(kwargs, "")
    return shapes


def unit_name(request: DimRequest) -> str:
    """Name of the torch.export Dim: the dim itself, or `_name` for the unit of a dim with a multiple."""
    return request.name if request.multiple == 1 else f"_{request.name}"
