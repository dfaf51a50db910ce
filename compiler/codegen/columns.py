"""Whether a region can be cut along its anchor's columns: every later value at a column needs that column only."""

from __future__ import annotations

from collections.abc import Iterator

from svdqc.compiler.codegen.access import AccessMaps
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.rowprogram import Compute, build_row_program
from svdqc.compiler.codegen.scalar import Load, Op, Scalar


def stays_in_columns(region: Region, maps: AccessMaps) -> bool:
    """True if each statement after the anchor computes, at a place over the anchor's inner axes, from that place alone.

    Values may have these axes in another order or split; a reduction, a shift or a concatenation along them is refused.
    """
    anchor, layout = region.anchor, region.layout
    assert anchor is not None
    columns = set(layout.inner(anchor))
    program = build_row_program(region, maps, row_budget=0)
    if program.before or program.resident:
        return False
    for statement in program.after:
        if not isinstance(statement, Compute) or set(statement.loops) != columns:
            return False
        idx = program.output_index(statement.node)
        for load in loads(program.element(statement.node, idx)):
            inside = load.source is anchor or load.source in region.stored
            if inside and load.idx != program.output_index(load.source):
                return False
    return True


def loads(scalar: Scalar) -> Iterator[Load]:
    """Every load of an expression."""
    if isinstance(scalar, Load):
        yield scalar
    if isinstance(scalar, Op):
        for argument in scalar.args:
            yield from loads(argument)
