"""A region as a row program: statements over a block of rows, in order.

Each statement is a loop nest over one value's inner atoms. Values live in memory (`stored`), in scratch for the block's
rows (`resident`), or nowhere: then their expression is folded into the readers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch.fx import Node

from svdqc.compiler.codegen.access import AccessMaps
from svdqc.compiler.codegen.atoms import elements
from svdqc.compiler.codegen.indirect import Indirects
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.ops.reductions import Reduction, reduction_of
from svdqc.compiler.codegen.ops.registry import ElementContext, Index, rule_of
from svdqc.compiler.codegen.ops.views import delinearize
from svdqc.compiler.codegen.region import Region, column_axis
from svdqc.compiler.codegen.scalar import DTYPE_NAMES, Load, Scalar
from svdqc.compiler.ir.intexpr import ZERO, IntExpr, index
from svdqc.compiler.ir.symbols import SymbolTable

COSTLY = frozenset(
    [
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "log2",
        "log10",
        "sin",
        "cos",
        "tan",
        "tanh",
        "erf",
        "sigmoid",
        "silu",
        "gelu",
        "pow",
        "sqrt",
        "rsqrt",
        "atan",
        "atan2",
        "asin",
        "acos",
        "sinh",
        "cosh",
        "asinh",
        "acosh",
        "atanh",
        "softplus",
        "elu",
        "div",
        "reciprocal",
    ]
)


IN_TILES = 0
"""The row budget of a region that is cut along its anchor's columns: kept are reductions, and what is the same for many
elements; a value as wide as the row is computed where it is read."""
SHARED_BY = 8
"""So many elements are worth keeping what they share."""


@dataclass(frozen=True)
class Compute:
    """For each inner index: evaluate `node` and write it wherever it lives."""

    node: Node
    loops: tuple[int, ...]  # atoms


@dataclass(frozen=True)
class Reduce:
    """For each kept inner index: fold `node`'s operand over the reduced atoms."""

    node: Node
    reduction: Reduction
    kept: tuple[int, ...]
    folded: tuple[int, ...]


@dataclass(frozen=True)
class Quantize:
    """Code the rows of a resident value, and project them down."""

    node: Node
    source: Node


Statement = Compute | Reduce | Quantize


@dataclass
class RowProgram:
    """before, after: statements around the anchor; `resident` values have scratch of their own."""

    region: Region
    maps: AccessMaps
    before: list[Statement] = field(default_factory=list)
    after: list[Statement] = field(default_factory=list)
    resident: list[Node] = field(default_factory=list)
    indirects: Indirects = field(default_factory=Indirects)

    @property
    def table(self) -> SymbolTable:
        return self.maps.table

    # ---- values

    def read(self, node: Node, idx: Index) -> Scalar:
        """The value of `node` at `idx` in this region: a load if it lives somewhere, else its expression."""
        if self.lives(node):
            return Load(node, idx, DTYPE_NAMES[node.meta["val"].dtype])
        return self.element(node, idx)

    def element(self, node: Node, idx: Index) -> Scalar:
        """The expression that computes `node` at `idx`; an anchor's kernel has computed it already."""
        if node is self.region.anchor:
            return self.read(node, idx)
        rule = rule_of(node)
        assert rule is not None, f"{node}: no rule"
        assert rule.element is not None, f"{node}: no element rule"
        return rule.element(ElementContext(self.table, self.read, self.indirects), node, idx)

    def lives(self, node: Node) -> bool:
        """Whether a value can be loaded: it is resident or stored here, or comes from outside the region."""
        if node in self.resident or node in self.region.stored or node is self.region.anchor:
            return True
        kind = self.maps.kind(node)
        if kind in ("view", "creation"):
            return False
        return node not in self.region.nodes

    # ---- indices

    def loop_index(self, atom: int) -> IntExpr:
        prefix = "o" if atom in self.region.layout.outer else "i"
        return index(f"{prefix}{self._name(atom)}", self.region.layout.atoms.size(atom))

    def _name(self, atom: int) -> int:
        """Atoms are numbered in the order they appear, so that equal regions print alike."""
        return self._numbers.setdefault(atom, len(self._numbers))

    _numbers: dict[int, int] = field(default_factory=dict)

    def output_index(self, node: Node) -> Index:
        """The index of `node`'s element at the current loop indices."""
        layout = self.region.layout
        result = []
        for axis in layout.axes[node]:
            position = ZERO
            for atom in layout.atoms.leaves(axis):
                position = position * layout.atoms.size(atom) + self.loop_index(atom)
            result.append(position)
        return tuple(result)

    def inner_parts(self, node: Node, idx: Index) -> list[tuple[int, IntExpr]]:
        """The inner atoms of a value and their indices at element `idx`; checks that its row is current."""
        layout = self.region.layout
        found: list[tuple[int, IntExpr]] = []
        for axis, i in zip(layout.axes[node], idx, strict=True):
            atoms = layout.atoms.leaves(axis)
            sizes = tuple(layout.atoms.size(a) for a in atoms)
            for atom, part in zip(atoms, delinearize(i, sizes), strict=True):
                if atom in layout.outer:
                    assert part == self.loop_index(atom), f"{node}: reads row {part}, not its own"
                else:
                    found.append((atom, part))
        return found

    def inner_position(self, node: Node, idx: Index) -> IntExpr:
        """Where element `idx` of a resident value lies in its row of scratch; checks that this row is current."""
        position = ZERO
        for atom, part in self.inner_parts(node, idx):
            position = position * self.region.layout.atoms.size(atom) + part
        return position

    def loop_values(self, node: Node, idx: Index) -> dict[str, IntExpr]:
        """What the loop indices of a value's own statement are at element `idx`, by name."""
        return {str(self.loop_index(atom)): part for atom, part in self.inner_parts(node, idx)}

    def column(self, idx: Index) -> IntExpr:
        """The column of the anchor's element `idx`; checks that its row is current."""
        anchor = self.region.anchor
        assert anchor is not None
        axis = column_axis(anchor, len(idx))
        for own, i in enumerate(self.output_index(anchor)):
            assert own == axis or idx[own] == i, f"{anchor}: reads row {idx}, not its own"
        return idx[axis]


def build_row_program(
    region: Region, maps: AccessMaps, row_budget: int | None = None
) -> RowProgram:
    """Choose the resident values and order the statements.

    row_budget  bytes that one row's resident values may take: the widest are computed again instead
    """
    program = RowProgram(region, maps)
    program.resident = _choose_resident(program)
    if row_budget is not None:
        _drop_widest(program, row_budget)
    if row_budget == IN_TILES:
        program.resident = _with_summaries(program)
    before = _upstream(region, maps)
    for node in region.nodes:
        statement = _statement(program, node)
        if statement is None:
            continue
        (program.before if node in before else program.after).append(statement)
    if row_budget == IN_TILES:  # a quantization leaves x̂ in the anchor's place, so it comes last
        program.after.sort(key=lambda statement: isinstance(statement, Quantize))
    return program


def _statement(program: RowProgram, node: Node) -> Statement | None:
    layout, kind = program.region.layout, program.maps.kind(node)
    if kind == "reduce":
        reduction = reduction_of(node, program.table)
        source = node.args[0]
        assert isinstance(source, Node)
        kept = tuple(layout.inner(node))
        folded = _folded_atoms(program, node, source, reduction, kept)
        return Reduce(node, reduction, kept, folded)
    if kind == "rows":
        source = node.args[0]
        assert isinstance(source, Node)
        return Quantize(node, source)
    if kind == "anchor" and str(node.target) == anchors.ATTENTION:
        return None  # writes its result itself
    if node in program.resident or node in program.region.stored:
        return Compute(node, tuple(layout.inner(node)))
    return None


def _folded_atoms(
    program: RowProgram, node: Node, source: Node, reduction: Reduction, kept: tuple[int, ...]
) -> tuple[int, ...]:
    """The atoms of the reduced axes; fresh ones where the operand comes from outside the region."""
    layout = program.region.layout
    if source not in layout.axes:
        shape = program.table.shape(source)
        axes, own = [], iter(layout.axes[node])
        for axis, size in enumerate(shape):
            if axis in reduction.axes:
                if reduction.keepdim:
                    next(own)
                fresh = layout.atoms.axis(size)
                layout.atoms.mark_inner(fresh)
                axes.append(fresh)
            else:
                axes.append(next(own))
        layout.axes[source] = axes
    folded = [a for axis in reduction.axes for a in layout.atoms.leaves(layout.axes[source][axis])]
    return tuple(folded)


def _upstream(region: Region, maps: AccessMaps) -> set[Node]:
    """The region's nodes that its anchor reads. No path between them leaves the region, other than through views."""
    if region.anchor is None:
        return set()
    members, found, stack = set(region.nodes), set(), list(region.anchor.all_input_nodes)
    while stack:
        value = stack.pop()
        passes = value in members or maps.kind(value) == "view"
        if value not in found and value not in region.stored and passes:
            found.add(value)
            stack.extend(value.all_input_nodes)
    return found & members


def _choose_resident(program: RowProgram) -> list[Node]:
    """Scratch for reductions, and for costly values that several statements read."""
    region, maps = program.region, program.maps
    stored = set(region.stored)
    resident: list[Node] = []
    for node in region.nodes:
        if maps.kind(node) == "reduce" and node not in stored:
            resident.append(node)
    readers = _statement_readers(program)
    for node in region.nodes:
        if maps.kind(node) != "pointwise" or node in stored:
            continue
        if len(readers[node]) > 1 and _is_costly(node, program):
            resident.append(node)
    return sorted(resident, key=region.nodes.index)


def _drop_widest(program: RowProgram, row_budget: int) -> None:
    """Keep in scratch what fits; pointwise values can be computed where they are read."""

    def num_bytes(node: Node) -> int:
        return 8 * program.region.layout.inner_elements(node).upper()

    while sum(map(num_bytes, program.resident)) > row_budget:
        pointwise = [n for n in program.resident if program.maps.kind(n) == "pointwise"]
        if not pointwise:
            return
        program.resident.remove(max(pointwise, key=num_bytes))


def _with_summaries(program: RowProgram) -> list[Node]:
    """The resident values, and functions of reductions that each reader has many elements for."""
    region, layout = program.region, program.region.layout
    readers = _statement_readers(program)
    resident = list(program.resident)

    def summarises(node: Node) -> bool:
        own = set(layout.inner(node))
        for reader in readers[node]:
            loops = set(_loop_atoms(program, reader))
            if not own <= loops or elements(layout.atoms, loops - own).lower() < SHARED_BY:
                return False
        return _is_costly(node, program) and _reads(node, resident, program)

    for node in region.nodes:
        if program.maps.kind(node) == "pointwise" and not program.lives(node) and summarises(node):
            resident.append(node)
    return sorted(resident, key=region.nodes.index)


def _loop_atoms(program: RowProgram, node: Node) -> list[int]:
    """All inner atoms that the statement of a value runs over, also those that it folds."""
    layout = program.region.layout
    source = node.args[0] if program.maps.kind(node) == "reduce" else node
    return layout.inner(source) if source in layout.axes else []  # type: ignore[arg-type,operator]


def _reads(node: Node, values: list[Node], program: RowProgram) -> bool:
    """Whether one of `values` is loaded where `node` is computed."""
    members, stack = set(program.region.nodes), list(node.all_input_nodes)
    while stack:
        value = stack.pop()
        if value in values:
            return True
        if not program.lives(value) and (value in members or program.maps.kind(value) == "view"):
            stack.extend(value.all_input_nodes)
    return False


def _statement_readers(program: RowProgram) -> dict[Node, set[Node]]:
    """For each member, the statements' values in whose expressions it would be folded."""
    members = set(program.region.nodes)
    readers: dict[Node, set[Node]] = {n: set() for n in members}
    for node in reversed(program.region.nodes):
        kind = program.maps.kind(node)
        own = (
            {node}
            if kind in ("reduce", "rows", "anchor") or node in program.region.stored
            else readers[node]
        )
        for operand in _operands_through_views(node, program.maps):
            if operand in members:
                readers[operand] |= own
    return readers


def _operands_through_views(node: Node, maps: AccessMaps) -> Iterable[Node]:
    stack, seen = list(node.all_input_nodes), set()
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if maps.kind(value) in ("view", "creation"):
            stack.extend(value.all_input_nodes)
        else:
            yield value


def _is_costly(node: Node, program: RowProgram) -> bool:
    """Whether computing a value again costs more than keeping it: a function, or three and more operations."""
    members, count, stack = set(program.region.nodes), 0, [node]
    while stack:
        value = stack.pop()
        if value is not node and program.lives(value):
            continue
        kind = program.maps.kind(value)
        if kind == "pointwise" or value in program.maps.virtual:
            if str(value.target).split(".")[1] in COSTLY:
                return True
            count += 1
        if kind in ("pointwise", "view"):
            stack.extend(
                v for v in value.all_input_nodes if v in members or program.maps.kind(v) == "view"
            )
    return count >= 3
