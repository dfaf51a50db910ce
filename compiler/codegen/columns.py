"""Whether a region can be cut along its anchor's columns: every later value needs one column of the anchor only.

A later value may hold a slice of the columns, split into several axes and in another order: element by element it has a
place, the column from which it is computed. A reduction, a shift or a concatenation along the columns is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from svdqc.compiler.codegen.access import AccessMaps
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.rowprogram import Compute, RowProgram, build_row_program
from svdqc.compiler.codegen.scalar import Load, Op, Scalar
from svdqc.compiler.ir.intexpr import ONE, IntExpr, Sym


@dataclass(frozen=True)
class Place:
    """column = first + sum of index * stride over `axes`, (index, size) innermost first, dense; `width` columns."""

    first: int
    axes: tuple[tuple[IntExpr, IntExpr], ...]
    width: IntExpr


def stays_in_columns(region: Region, maps: AccessMaps) -> bool:
    """True if each statement after the anchor computes every element from one column of it."""
    program = build_row_program(region, maps, row_budget=0)
    return not program.before and not program.resident and column_places(program) is not None


def keeps_own_columns(program: RowProgram) -> bool:
    """True if each value after the anchor has the anchor's columns, and is computed from its own."""
    places = column_places(program)
    return places is not None and all(place.first == 0 for place in places.values())


def column_places(program: RowProgram) -> dict[Node, Place] | None:
    """The place of each value that is computed after the anchor; None if some value has none."""
    found: dict[Node, Place] = {}
    for statement in program.after:
        if not isinstance(statement, Compute):
            return None
        place = _place(program, statement, found)
        if place is None:
            return None
        found[statement.node] = place
    return found


def _place(program: RowProgram, statement: Compute, known: dict[Node, Place]) -> Place | None:
    anchor, layout, node = program.region.anchor, program.region.layout, statement.node
    assert anchor is not None
    idx = program.output_index(node)
    columns: IntExpr | None = None
    for load in loads(program.element(node, idx)):
        if load.source is anchor:
            column = program.inner_position(anchor, load.idx)
        elif load.source in program.region.stored or load.source in program.resident:
            if load.idx != program.output_index(load.source) or load.source not in known:
                return None
            column = _column(known[load.source])
        else:
            continue
        if columns is not None and column != columns:
            return None
        columns = column
    if columns is None:
        return None
    loops = [(program.loop_index(a), layout.atoms.size(a)) for a in statement.loops]
    return _dense(columns, [(i, size) for i, size in loops if not i.is_const])


def _dense(column: IntExpr, loops: list[tuple[IntExpr, IntExpr]]) -> Place | None:
    """The place that `column` is over these loops, if their strides leave no gap."""
    strides: list[tuple[IntExpr, IntExpr, IntExpr]] = []
    for index, size in loops:
        stride = column.coefficient_of(_symbol(index))
        if stride is None:
            return None
        strides.append((stride, index, size))
        column = column - index * stride
    if column.as_int() is None:
        return None
    strides.sort(key=lambda axis: axis[0].upper())
    width = ONE
    for stride, _, size in strides:
        if stride != width:
            return None
        width = width * size
    return Place(column.const, tuple((i, size) for _, i, size in strides), width)


def _column(place: Place) -> IntExpr:
    column, stride = IntExpr.of(place.first), ONE
    for index, size in place.axes:
        column, stride = column + index * stride, stride * size
    return column


def _symbol(index: IntExpr) -> Sym:
    (monomial,) = index.terms
    symbol = monomial[0]
    assert isinstance(symbol, Sym)
    return symbol


def loads(scalar: Scalar) -> Iterator[Load]:
    """Every load of an expression."""
    seen: set[Scalar] = set()
    stack = [scalar]
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if isinstance(value, Load):
            yield value
        elif isinstance(value, Op):
            stack.extend(value.args)
