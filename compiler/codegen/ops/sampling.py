"""Values between the elements of a grid: interpolation to another size, and sampling at given places.

A place along an axis is read through *taps*: elements and their weights. The axes' taps are multiplied out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch.fx import Node

from svdqc.compiler.codegen.ops.registry import (
    ElementContext,
    Index,
    argument,
    compute_dtype,
    dtype_of,
    element_rule,
)
from svdqc.compiler.codegen.scalar import Const, IndexValue, Op, Scalar, cast, where
from svdqc.compiler.ir.intexpr import IntExpr

CUBIC = -0.75
"""The free coefficient of cubic convolution that PyTorch takes."""


@dataclass(frozen=True)
class Tap:
    """element: an index (i64); weight: None for 1; inside: None if the element surely exists, else its value counts
    only where this holds."""

    element: Scalar
    weight: Scalar | None = None
    inside: Scalar | None = None


def _interpolated(
    ctx: ElementContext, source: Node, lead: Index, taps: Sequence[Sequence[Tap]], dtype: str
) -> Scalar:
    """Σ over one tap per axis of its weights' product times source[lead, elements]."""
    sizes = ctx.shape(source)

    def at(axis: int, prefix: Index, inside: Scalar | None) -> Scalar:
        if axis == len(taps):
            value = cast(ctx.read(source, prefix), dtype)
            return value if inside is None else where(inside, value, Const(0.0, dtype))
        terms = []
        for tap in taps[axis]:
            element = ctx.indirects.index(tap.element, sizes[len(prefix)])
            both = inside if tap.inside is None else _and(inside, tap.inside)
            value = at(axis + 1, (*prefix, element), both)
            terms.append(value if tap.weight is None else _op("mul", tap.weight, value))
        return reduce(lambda a, b: _op("add", a, b), terms)

    return at(0, lead, None)


def _op(name: str, *operands: Scalar) -> Scalar:
    return Op(name, operands, operands[0].dtype)


def _and(lhs: Scalar | None, rhs: Scalar) -> Scalar:
    return rhs if lhs is None else Op("logical_and", (lhs, rhs), "bool")


def _real(value: float, like: Scalar) -> Scalar:
    return Const(float(value), like.dtype)


def _shifted(value: Scalar, by: float) -> Scalar:
    return _op("add", value, _real(by, value))


def _clamped(value: Scalar, size: IntExpr) -> Scalar:
    """Within 0 … size - 1; of a whole or a real number."""
    zero, last = cast(Const(0, "i64"), value.dtype), cast(IndexValue(size - 1), value.dtype)
    return _op("minimum", _op("maximum", value, zero), last)


# --- taps: where a value between elements comes from ---------------------------------------------------


def _linear_taps(place: Scalar, size: IntExpr, dtype: str) -> list[Tap]:
    """(1 - t) · x[⌊p⌋] + t · x[⌊p⌋ + 1], t = p - ⌊p⌋; the last element has itself for a neighbour."""
    low = _op("floor", place)
    weight = cast(_op("sub", place, low), dtype)
    first = cast(low, "i64")
    return [
        Tap(_clamped(first, size), _op("sub", _real(1.0, weight), weight)),
        Tap(_clamped(_op("add", first, Const(1, "i64")), size), weight),
    ]


def _cubic_taps(place: Scalar, size: IntExpr, dtype: str) -> list[Tap]:
    """Cubic convolution of four elements; outside the grid the nearest one counts."""
    low = _op("floor", place)
    weights = _cubic_weights(cast(_op("sub", place, low), dtype))
    return [
        Tap(_clamped(cast(_shifted(low, offset), "i64"), size), weight)
        for offset, weight in zip((-1, 0, 1, 2), weights, strict=True)
    ]


def _cubic_weights(t: Scalar) -> list[Scalar]:
    def polynomial(x: Scalar, *coefficients: float) -> Scalar:
        """Horner's scheme, the highest power first."""
        result = _real(coefficients[0], x)
        for coefficient in coefficients[1:]:
            result = _shifted(_op("mul", result, x), coefficient)
        return result

    def near(x: Scalar) -> Scalar:
        return polynomial(x, CUBIC + 2, -(CUBIC + 3), 0.0, 1.0)

    def far(x: Scalar) -> Scalar:
        return polynomial(x, CUBIC, -5 * CUBIC, 8 * CUBIC, -4 * CUBIC)

    rest = _op("sub", _real(1.0, t), t)
    return [far(_shifted(t, 1.0)), near(t), near(rest), far(_shifted(rest, 1.0))]


# --- interpolation to another size ---------------------------------------------------------------------


def _scales(node: Node, num_axes: int, position: int) -> list[float | None]:
    """How much larger the result was asked to be, per axis, where a factor was given and not a size."""
    if str(node.target).endswith(".vec"):
        factors = argument(node, position, "scale_factors")
        return [None] * num_axes if factors is None else [float(factor) for factor in factors]
    given: list[Any] = [*node.args[position : position + num_axes]]
    given += [node.kwargs.get(f"scales_{axis}") for axis in "dhw"[3 - num_axes :][len(given) :]]
    return [None if factor is None else float(factor) for factor in given]


@element_rule(
    "aten.upsample_nearest1d.default",
    "aten.upsample_nearest2d.default",
    "aten.upsample_nearest3d.default",
    "aten.upsample_nearest1d.vec",
    "aten.upsample_nearest2d.vec",
    "aten.upsample_nearest3d.vec",
    kind="view",
)
def _upsample_nearest(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    """⌊i · in / out⌋ in integers, exact; for a broken factor ⌊i · (1 / factor)⌋ in f32, as PyTorch computes it."""
    source = node.args[0]
    assert isinstance(source, Node)
    sizes, outs = ctx.shape(source), ctx.shape(node)
    own = list(idx)
    for axis, factor in enumerate(_scales(node, len(sizes) - 2, 2), 2):
        if factor is None or factor == int(factor):
            own[axis] = (idx[axis] * sizes[axis]) // outs[axis]
        else:
            place = _op("mul", cast(IndexValue(idx[axis]), "f32"), Const(1.0 / factor, "f32"))
            element = _clamped(cast(_op("floor", place), "i64"), sizes[axis])
            own[axis] = ctx.indirects.index(element, sizes[axis])
    return ctx.read(source, tuple(own))


def _upsample(taps: Callable[..., list[Tap]], clamp_low: bool, *targets: str) -> None:
    @element_rule(*targets)
    def rule(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
        """Interpolation along the axes behind the channels, with or without aligned corners."""
        source = node.args[0]
        assert isinstance(source, Node)
        sizes, outs = ctx.shape(source), ctx.shape(node)
        align = bool(argument(node, 2, "align_corners", False))
        dtype = compute_dtype(dtype_of(node))
        all_taps = []
        for axis, factor in enumerate(_scales(node, len(sizes) - 2, 3), 2):
            place = _source_place(idx[axis], sizes[axis], outs[axis], align, factor)
            if clamp_low and not align:
                place = _op("maximum", place, _real(0.0, place))
            all_taps.append(taps(place, sizes[axis], dtype))
        return cast(_interpolated(ctx, source, idx[:2], all_taps, dtype), dtype_of(node))


_upsample(
    _linear_taps,
    True,
    "aten.upsample_linear1d.default",
    "aten.upsample_linear1d.vec",
    "aten.upsample_bilinear2d.default",
    "aten.upsample_bilinear2d.vec",
)
_upsample(_cubic_taps, False, "aten.upsample_bicubic2d.default", "aten.upsample_bicubic2d.vec")


def _source_place(
    i: IntExpr, size: IntExpr, out: IntExpr, align: bool, factor: float | None
) -> Scalar:
    """The source coordinate of output element i, f32 (torch's area_pixel_compute_source_index before its clamp)."""
    place = cast(IndexValue(i), "f32")
    if align:
        steps = cast(IndexValue(size - 1), "f32"), cast(IndexValue(out - 1), "f32")
        return _op("mul", place, _op("div", *steps)) if out.lower() > 1 else Const(0.0, "f32")
    if factor is not None:
        ratio: Scalar = Const(1.0 / factor, "f32")
    else:
        ratio = _op("div", cast(IndexValue(size), "f32"), cast(IndexValue(out), "f32"))
    return _shifted(_op("mul", _shifted(place, 0.5), ratio), -0.5)


# --- sampling at given places --------------------------------------------------------------------------

BILINEAR, NEAREST, BICUBIC = 0, 1, 2
ZEROS, BORDER, REFLECTION = 0, 1, 2


@element_rule("aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def _grid_sampler(ctx: ElementContext, node: Node, idx: Index) -> Scalar:
    """source [n, c, (d,) h, w] at grid [n, …, 2 or 3], whose coordinates (x, y(, z)) run from -1 to 1."""
    source, grid, mode, padding, align = node.args[:5]
    assert isinstance(source, Node)
    sizes, dtype = ctx.shape(source)[2:], compute_dtype(dtype_of(node))
    taps = []
    for axis, size in enumerate(sizes):
        coordinate = (idx[0], *idx[2:], IntExpr.of(len(sizes) - 1 - axis))
        place = _unnormalized(ctx.operand(grid, coordinate, dtype), size, bool(align))
        taps.append(_grid_taps(place, size, int(mode), int(padding), bool(align)))  # type: ignore[arg-type]
    return cast(_interpolated(ctx, source, idx[:2], taps, dtype), dtype_of(node))


def _unnormalized(coordinate: Scalar, size: IntExpr, align: bool) -> Scalar:
    """-1 … 1 as places: of the outermost elements' centres if corners are aligned, else of their edges."""
    extent = cast(IndexValue(size - 1 if align else size), coordinate.dtype)
    scaled = _op("mul", _shifted(coordinate, 1.0), extent)
    return _op("mul", scaled if align else _shifted(scaled, -1.0), _real(0.5, scaled))


def _grid_taps(place: Scalar, size: IntExpr, mode: int, padding: int, align: bool) -> list[Tap]:
    if mode == BICUBIC:  # its four elements are mapped into the grid one by one
        low = _op("floor", place)
        weights: list[Any] = [*_cubic_weights(_op("sub", place, low))]
        places = [_mapped(_shifted(low, o), size, padding, align) for o in (-1, 0, 1, 2)]
    else:
        place = _mapped(place, size, padding, align)
        if mode == NEAREST:
            weights, places = [None], [_op("round", place)]
        else:
            low = _op("floor", place)
            weight = _op("sub", place, low)
            weights = [_op("sub", _real(1.0, weight), weight), weight]
            places = [low, _shifted(low, 1.0)]
    last = cast(IndexValue(size - 1), place.dtype)
    taps = []
    for p, weight in zip(places, weights, strict=True):
        inside = _and(
            Op("ge", (p, _real(0.0, p)), "bool"),
            Op("le", (p, last), "bool"),
        )
        taps.append(Tap(cast(_clamped(p, size), "i64"), weight, inside))
    return taps


def _mapped(place: Scalar, size: IntExpr, padding: int, align: bool) -> Scalar:
    """A place outside of the grid as the one that counts for it; zeros: it stays outside."""
    if padding == ZEROS:
        return place
    return _clamped(_reflected(place, size, align) if padding == REFLECTION else place, size)


def _reflected(place: Scalar, size: IntExpr, align: bool) -> Scalar:
    """Mirrored at the outermost centres (aligned) or edges until it lies between them."""
    low = _real(0.0 if align else -0.5, place)
    span = cast(IndexValue(size - 1 if align else size), place.dtype)
    if align:  # a single element is all there is
        span = _op("maximum", span, _real(1.0, span))
    distance = _op("abs", _op("sub", place, low))
    rest = _op("fmod", distance, span)
    halves = _op("mul", _op("floor", _op("div", distance, span)), _real(0.5, span))
    even = Op("eq", (halves, _op("floor", halves)), "bool")
    return _op("add", where(even, rest, _op("sub", span, rest)), low)
