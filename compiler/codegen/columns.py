"""How a region is cut along its anchor's columns: which block of columns each later value is computed from.

An element may need one column of the anchor (an activation, a gate), or several of one *aligned block*: the RMSNorm
of a head needs head_dim of them, a rotation of pairs two. A tile whose width is a multiple of the block holds all of
it. A later value may hold a slice of the columns, split into several axes and in another order: element by element it
has a block. What needs columns of two blocks is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from svdqc.compiler.codegen.access import AccessMaps
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.rowprogram import (
    IN_TILES,
    Compute,
    Quantize,
    RowProgram,
    Statement,
    build_row_program,
)
from svdqc.compiler.codegen.scalar import Load, Op, Scalar
from svdqc.compiler.ir.intexpr import ONE, ZERO, IntExpr, Sym, prod
from svdqc.compiler.ir.rewrite import operands

Loop = tuple[IntExpr, IntExpr]
"""(index, size)"""
WIDEST = 128
"""Columns of the widest tile of any product."""
PART = WIDEST
"""Columns whose share of a down-projection is summed apart, of however many values they hold."""
ROTATED = 64
"""Values of a block that a quantization may rotate."""
RUN = 16
"""Values side by side that a tile is coded and projected from, where a block has fewer of them than columns."""


@dataclass(frozen=True)
class Place:
    """Which block of columns each element of a value is computed from.

    block    columns that are mixed, a power of two; 1: each element is computed from one column
    first    the value's first block
    axes     the loops that choose the block, innermost first, dense
    within   the other loops, innermost first: the elements of a block
    together columns that must lie in one tile: the block, or those that a quantization mixes besides
    """

    block: int
    first: int
    axes: tuple[Loop, ...]
    within: tuple[Loop, ...]
    together: int

    @property
    def num_blocks(self) -> IntExpr:
        return prod(size for _, size in self.axes)

    @property
    def elements(self) -> int:
        """Of a block."""
        return prod(size for _, size in self.within).const

    @property
    def columns(self) -> tuple[int, IntExpr]:
        """The first column that is mixed, and the one behind the last."""
        return self.first * self.block, (self.first + self.num_blocks) * self.block

    @property
    def number(self) -> IntExpr:
        """The block at the value's loop indices."""
        return self.first + _position(self.axes)

    @property
    def position(self) -> IntExpr:
        """The element within its block at the value's loop indices."""
        return _position(self.within)


Places = Mapping[Node, Place]


def stays_in_columns(region: Region, maps: AccessMaps, most: int) -> bool:
    """True if each value after the anchor is computed from aligned blocks of at most `most` columns."""
    program = build_row_program(region, maps, IN_TILES)
    return not program.before and column_places(program, most) is not None


def keeps_own_columns(program: RowProgram) -> bool:
    """True if each value after the anchor has the anchor's columns, and is computed from its own."""
    places = column_places(program, 1)
    return places is not None and all(place.first == 0 for place in places.values())


def column_places(program: RowProgram, most: int) -> dict[Node, Place] | None:
    """The place of each value that is computed after the anchor; None if one needs more than `most` columns."""
    found: dict[Node, Place] = {}
    for statement in program.after:
        place = _place(program, statement, found, most)
        if place is None:
            return None
        found[statement.node] = place
    return found


def _place(program: RowProgram, statement: Statement, known: Places, most: int) -> Place | None:
    if isinstance(statement, Quantize):
        return _place_of_quantization(program, statement, known, most)
    node = statement.node
    if isinstance(statement, Compute):
        value, atoms = program.element(node, program.output_index(node)), statement.loops
    else:
        source = node.args[0]
        assert isinstance(source, Node)
        value, atoms = program.read(source, program.output_index(source)), statement.kept
    return _smallest(program, value, atoms, known, most)


def _place_of_quantization(
    program: RowProgram, statement: Quantize, known: Places, most: int
) -> Place | None:
    """Values are coded where the anchor's columns lie that they are computed from, and the groups, rotated blocks and
    parts of the projection that they belong to lie in the tile."""
    node, source = statement.node, statement.source
    quantized = [s for s in program.after if isinstance(s, Quantize)]
    if str(node.target) not in anchors.S4_QUANTIZERS or len(quantized) > 1:
        return None
    idx = program.output_index(source)
    value = program.read(source, idx)
    place = _smallest(program, value, program.region.layout.inner(source), known, most)
    if place is None or not _holds_its_values(program, place, idx[-1], value):
        return None
    lora_down, group, _, rotated = operands(node)[2:6]
    rank, part = int(lora_down.meta["val"].shape[0]), part_of_projection(place)
    values = max(place.elements, int(group), ROTATED if rotated else 1)
    together = max(values * place.block // place.elements, PART if rank else 1)
    begin, end = place.columns
    if together > most or begin % together or end % together != 0 or rank > part:
        return None  # also where the parts were more numbers than the values
    return replace(place, together=together)


def part_of_projection(place: Place) -> int:
    """How many quantized values PART columns hold."""
    return PART * place.elements // place.block


def _holds_its_values(program: RowProgram, place: Place, position: IntExpr, value: Scalar) -> bool:
    """Whether each block has room for its values, in their order, and no value is written where another is read.

    position  of `value` in its row
    """
    block, elements = place.block, place.elements
    own = (place.number - place.first) * elements + place.position
    runs = elements == block or (elements % RUN == 0 and elements & (elements - 1) == 0)
    if own != position or elements > block or not runs:
        return False
    anchor = program.region.anchor
    reads = [program.column(load.idx) for load in _loads(value) if load.source is anchor]
    apart = [(column - place.number * block - place.position).as_int() for column in reads]
    return all(distance is not None and distance % elements == 0 for distance in apart)


def _smallest(
    program: RowProgram, value: Scalar, atoms: Sequence[int], known: Places, most: int
) -> Place | None:
    """The place over these loops with the smallest block that holds all that a value reads."""
    sources = _sources(program, value, known)
    if not sources:
        return None
    layout = program.region.layout
    loops = [(program.loop_index(a), layout.atoms.size(a)) for a in atoms]
    loops = [(i, size) for i, size in loops if not i.is_const]
    block = max(span for _, span in sources)
    while block <= most:
        numbers = {column // block for column, _ in sources}
        if len(numbers) == 1:
            place = _dense(block, numbers.pop(), loops)
            if place is not None:
                return place
        block *= 2
    return None


def _sources(program: RowProgram, value: Scalar, known: Places) -> list[tuple[IntExpr, int]] | None:
    """(first column, columns) of what a value reads of the anchor, and of values that were computed from it."""
    region = program.region
    found: list[tuple[IntExpr, int]] = []
    for load in _loads(value):
        if load.source is region.anchor:
            found.append((program.column(load.idx), 1))
        elif load.source in region.stored or load.source in program.resident:
            if load.source not in known:
                return None
            place = known[load.source]
            number = place.number.substitute(program.loop_values(load.source, load.idx))
            found.append((number * place.block, place.block))
    return found


def _dense(block: int, number: IntExpr, loops: list[Loop]) -> Place | None:
    """The place whose block is `number` over these loops, if their strides leave no gap."""
    strided: list[tuple[IntExpr, Loop]] = []
    within: list[Loop] = []
    for i, size in reversed(loops):
        stride = number.coefficient_of(_symbol(i))
        if stride is None:
            return None
        if stride == 0:
            within.append((i, size))
        else:
            strided.append((stride, (i, size)))
        number = number - i * stride
    if number.as_int() is None or any(not size.is_const for _, size in within):
        return None
    strided.sort(key=lambda axis: axis[0].upper())
    width = ONE
    for stride, (_, size) in strided:
        if stride != width:
            return None
        width = width * size
    return Place(block, number.const, tuple(axis for _, axis in strided), tuple(within), block)


def _position(axes: tuple[Loop, ...]) -> IntExpr:
    position, stride = ZERO, ONE
    for i, size in axes:
        position, stride = position + i * stride, stride * size
    return position


def _symbol(i: IntExpr) -> Sym:
    (monomial,) = i.terms
    symbol = monomial[0]
    assert isinstance(symbol, Sym)
    return symbol


def _loads(scalar: Scalar) -> Iterator[Load]:
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
