"""The elements of a value that a CTA computes, as threads count them: of all of its rows' columns, or of a tile's.

e            r            loops' indices
row-major    e / inner    the rest, innermost fastest
in a tile    e / (blocks * elements of one)    its block of columns, then the element of the block
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from svdqc.compiler.codegen.columns import Place
from svdqc.compiler.codegen.ops.anchors import num_groups
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import Loop
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.ir.intexpr import prod


@dataclass(frozen=True)
class Elements:
    """per_row: how many, as text. decode: lines from the number `e` to r and the loops' indices; `continue` where there
    is no element. condition: without it the CTA has none of the value ("": it has)."""

    per_row: str
    decode: list[str] = field(default_factory=list)
    condition: str = ""

    def around(self, lines: list[str]) -> list[str]:
        """The statement's lines, where the CTA has something of its value."""
        if not self.condition:
            return lines
        return [f"if ({self.condition}) {{", *(f"  {line}" for line in lines), "}"]


def unsigned(params: Params, size: object) -> str:
    """A size as 32 bits."""
    text = params.scalar(size)  # type: ignore[arg-type]
    return f"{text}u" if text.isdigit() else f"static_cast<uint32_t>({text})"


def split(params: Params, loops: Sequence[Loop], number: str) -> tuple[list[str], str]:
    """Lines that find the loops' indices from a number, innermost fastest; what is left of the number."""
    lines, rest = [], number
    for i, size in reversed(loops):
        extent = unsigned(params, size)
        lines.append(f"const int64_t {i} = {rest} % {extent};")
        rest = f"{rest} / {extent}"
    return lines, rest


def of_rows(params: Params, loops: Sequence[Loop]) -> Elements:
    lines, rest = split(params, loops, "e")
    inner = prod(size for _, size in loops)
    return Elements(params.scalar(inner), [*lines, f"const int64_t r = {rest};"])


def of_tile(
    params: Params, place: Place, loops: Sequence[Loop], columns: int, region: Region
) -> Elements:
    """What a tile of so many columns, from col_begin, has of a value; `block` is its block within the tile.

    loops  those of the value's that are still to be found: an unrolled one is not
    """
    names = {str(i) for i, _ in loops}
    within = [loop for loop in reversed(place.within) if str(loop[0]) in names]
    elements = prod(size for _, size in within).const
    blocks = columns // place.block
    lines: list[str] = []
    if elements > 1:
        lines, _ = split(params, within, f"(e % {elements}u)")
    number = "e" if elements == 1 else f"e / {elements}u"
    lines.append(
        f"const uint32_t block = {number} % {blocks}u;"
        if blocks > 1
        else "const uint32_t block = 0;"
    )
    lines.append(f"const int64_t r = e / {blocks * elements}u;")
    first = "static_cast<uint32_t>(col_begin)"
    first = first if place.block == 1 else f"{first} / {place.block}u"
    first = first if place.first == 0 else f"{first} - {place.first}u"
    lines.append(f"const uint32_t place = {first} + block;")
    condition, width = presence(params, place, region), _tiled_width(region)
    outside = []
    if condition or width is None or width % columns:
        outside.append(f"place >= {unsigned(params, place.num_blocks)}")
    if width is None:
        outside.append(f"col_begin + block * {place.block}u >= col_end")
    if outside:
        lines.append(f"if ({' || '.join(outside)}) continue;")
    rest = "place"
    for position, (i, size) in enumerate(place.axes):
        last = position == len(place.axes) - 1
        extent = unsigned(params, size)
        lines.append(f"const int64_t {i} = {rest if last else f'{rest} % {extent}'};")
        rest = f"{rest} / {extent}"
    return Elements(str(blocks * elements), lines, condition)


def presence(params: Params, place: Place, region: Region) -> str:
    """The condition that a tile has something of a value: a slice of the anchor's columns, it may have none of. ""
    where the value has all of them."""
    begin, end = place.columns
    width = _tiled_width(region)
    if begin == 0 and width is not None and end.lower() >= width:
        return ""
    return f"col_end > {begin} && col_begin < {params.scalar(end)}"


def _tiled_width(region: Region) -> int | None:
    """Columns of the anchor, if tiles cut them evenly; None: a tile may end at any multiple of a block."""
    if region.anchor is None or num_groups(region.anchor) > 1:
        return None
    return region.layout.inner_elements(region.anchor).as_int()
