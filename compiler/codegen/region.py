"""A fused region: the nodes one kernel computes, and how its rows cut them.

A region is a row program: an optional anchor (linear, attention, convolution, batched matmul) and the graph's own
pointwise and row ops around it. Its outer atoms enumerate rows; a task computes a block of rows, all of each row's
inner atoms. `solve` decides whether a set of nodes can be one region.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from svdqc.compiler.codegen.access import (
    AccessMaps,
    mentioned_axes,
    output_index,
    plain_axis,
)
from svdqc.compiler.codegen.atoms import AtomConflict, Atoms, Axis, elements
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.ops.reductions import reduction_of
from svdqc.compiler.codegen.ops.registry import rule_of
from svdqc.compiler.codegen.ops.views import RESHAPES, reshape_groups
from svdqc.compiler.ir.intexpr import IntExpr, prod
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.ir.symbols import Shape, SymbolTable

SHORT_ROW, ENOUGH_ROWS = 16, 64
"""Elements that a row should have, and rows that tasks should share, where both cannot be had in plenty."""
MAX_INNER_ELEMENTS = 1 << 16
"""A row's values should stay in the cache of the core that computes them."""


class CannotFuse(Exception):
    """Why a set of nodes is not one region."""


@dataclass(frozen=True)
class Layout:
    """atoms and the axes of each node over them; `outer` are the rows' atoms, outermost first."""

    atoms: Atoms
    axes: dict[Node, list[Axis]]
    outer: tuple[int, ...]

    def inner(self, node: Node) -> list[int]:
        """The inner atoms of a node, in its axis order."""
        flat = [a for axis in self.axes[node] for a in self.atoms.leaves(axis)]
        return [a for a in flat if a not in self.outer]

    def inner_elements(self, node: Node) -> IntExpr:
        return elements(self.atoms, self.inner(node))

    @property
    def num_rows(self) -> IntExpr:
        return elements(self.atoms, self.outer)


@dataclass
class Region:
    """nodes in topological order; `stored` are those whose values leave the region (or are outputs)."""

    nodes: list[Node]
    anchor: Node | None
    layout: Layout
    stored: list[Node]


@dataclass
class FusionPlan:
    """regions in order of execution, and for every pair that was tried and refused, why."""

    regions: list[Region]
    maps: AccessMaps
    refused: list[tuple[str, str]] = field(default_factory=list)


class RegionSolver:
    """Answers whether nodes fuse, for one program."""

    def __init__(self, table: SymbolTable, maps: AccessMaps) -> None:
        self.table, self.maps = table, maps

    def solve(self, nodes: Sequence[Node], stored: Iterable[Node]) -> Layout:
        """The layout of these nodes as one region; raises CannotFuse with the reason."""
        members = set(nodes)
        stored = set(stored)
        found = [n for n in nodes if _is_anchor(n)]
        if len(found) > 1:
            raise CannotFuse("two anchors")
        anchor = found[0] if found else None
        with_views = self._with_views(nodes)
        atoms = Atoms()
        axes = {n: [atoms.axis(size) for size in self.shape(n)] for n in with_views}
        try:
            for node in with_views:
                self._relate(node, axes, atoms)
        except AtomConflict as conflict:
            raise CannotFuse(str(conflict)) from None
        solid = [n for n in nodes if n in stored or _is_solid(n)]
        outer = self._choose_outer(anchor, solid or list(nodes), axes, atoms)
        layout = Layout(atoms, axes, outer)
        self._check(layout, anchor, nodes, solid, members)
        return layout

    def shape(self, node: Node) -> Shape:
        """The shape of a node; a quantization has that of its input."""
        if str(node.target) in anchors.QUANTIZERS:
            return self.table.shape(node.args[0])  # type: ignore[arg-type]
        return self.table.shape(node)

    def _with_views(self, nodes: Sequence[Node]) -> list[Node]:
        """The members and the views through which one reads another, in topological order."""
        reached: set[Node] = set(nodes)
        order: list[Node] = []
        visited: dict[Node, bool] = {}

        def reads_member(node: Node) -> bool:
            if node in reached:
                return True
            if node not in visited:
                visited[node] = False
                if self.maps.kind(node) == "view" or _is_item(node):
                    inside = [i for i in node.all_input_nodes if reads_member(i)]
                    if inside:
                        visited[node] = True
                        if node not in order:
                            order.append(node)
            return visited[node]

        for node in nodes:
            for operand in node.all_input_nodes:
                reads_member(operand)
            order.append(node)
        return order

    # ---- how each op relates its axes to its operands'

    def _relate(self, node: Node, axes: dict[Node, list[Axis]], atoms: Atoms) -> None:
        target = str(node.target)
        if target in RESHAPES:
            self._relate_reshape(node, axes, atoms)
        elif _is_item(node):
            source = node.args[0]
            if source in axes:  # codes, scale and low: the rows of the quantized input
                for own, other in zip(axes[node][:-1], axes[source][:-1], strict=True):  # type: ignore[index]
                    atoms.unify(own, other)
                atoms.mark_inner(axes[node][-1])
        elif (rule := rule_of(node)) is not None and rule.kind == "reduce":
            self._relate_reduce(node, axes, atoms)
        elif target in anchors.QUANTIZERS:
            self._unify_all(axes[node], axes.get(node.args[0]), atoms)  # type: ignore[arg-type]
            atoms.mark_inner(axes[node][-1])
        elif _is_anchor(node):
            self._relate_anchor(node, axes, atoms)
        elif rule is not None and rule.kind != "creation":
            self._relate_elements(node, axes, atoms)

    def _relate_reshape(self, node: Node, axes: dict[Node, list[Axis]], atoms: Atoms) -> None:
        source = node.args[0]
        if source not in axes:
            return
        for out_axes, in_axes in reshape_groups(self.shape(node), self.shape(source)):  # type: ignore[arg-type]
            atoms.unify(
                [x for a in out_axes for x in axes[node][a]],
                [x for a in in_axes for x in axes[source][a]],  # type: ignore[index]
            )

    def _relate_reduce(self, node: Node, axes: dict[Node, list[Axis]], atoms: Atoms) -> None:
        source = node.args[0]
        reduction = reduction_of(node, self.table)
        if source not in axes:
            return
        position = 0
        for axis, own in enumerate(axes[source]):  # type: ignore[index]
            if axis in reduction.axes:
                atoms.mark_inner(own)
                position += reduction.keepdim
            else:
                atoms.unify(axes[node][position], own)
                position += 1

    def _relate_anchor(self, node: Node, axes: dict[Node, list[Axis]], atoms: Atoms) -> None:
        target = str(node.target)
        atoms.mark_inner(axes[node][column_axis(node, len(axes[node]))])
        source = node.args[0]
        if target in anchors.FLOAT_LINEARS and source in axes:
            for own, other in zip(axes[node][:-1], axes[source][:-1], strict=True):  # type: ignore[index]
                atoms.unify(own, other)
            atoms.mark_inner(axes[source][-1])  # type: ignore[index]
        others = node.args[1:] if target in anchors.FLOAT_LINEARS else node.args
        if any(isinstance(o, Node) and o in axes for o in others):
            raise CannotFuse("an anchor's operand is not computed in its own region")

    def _relate_elements(self, node: Node, axes: dict[Node, list[Axis]], atoms: Atoms) -> None:
        idx = output_index(self.shape(node))
        for access in self.maps.of(node):
            if access.operand not in axes:
                continue
            for own, expr in zip(axes[access.operand], access.idx, strict=True):
                axis = plain_axis(expr, idx)
                if axis is not None and _sizes_match(atoms, own, axes[node][axis]):
                    atoms.unify(own, axes[node][axis])
                    continue
                atoms.mark_inner(own)
                for mentioned in mentioned_axes(expr, idx):
                    atoms.mark_inner(axes[node][mentioned])

    def _unify_all(self, own: list[Axis], other: list[Axis] | None, atoms: Atoms) -> None:
        if other is not None:
            for a, b in zip(own, other, strict=True):
                atoms.unify(a, b)

    # ---- rows

    def _choose_outer(
        self, anchor: Node | None, solid: list[Node], axes: dict[Node, list[Axis]], atoms: Atoms
    ) -> tuple[int, ...]:
        if anchor is not None:
            inner_axis = column_axis(anchor, len(axes[anchor]))
            lead = [
                a
                for i, axis in enumerate(axes[anchor])
                if i != inner_axis
                for a in atoms.leaves(axis)
            ]
            if any(atoms.is_inner(a) for a in lead):
                raise CannotFuse("a row of the anchor is mixed with others")
            return tuple(lead)
        flats = [[a for axis in axes[n] for a in atoms.leaves(axis)] for n in solid]
        rows = next((n for n in solid if str(n.target) in anchors.QUANTIZERS), None)
        leader = flats[solid.index(rows)] if rows is not None else max(flats, key=len)
        outer = [a for a in leader if not atoms.is_inner(a) and all(a in flat for flat in flats)]
        has_inner = any(a not in outer for flat in flats for a in flat)
        while outer and not has_inner:  # a pointwise region: its last axes are the row
            atoms.mark_inner([outer[-1]])
            row = prod(atoms.size(a) for a in leader if atoms.is_inner(a))
            outer.pop()
            has_inner = row.lower() >= 64 or not outer or self._are_rows(row, outer, atoms)
        return tuple(outer)

    def _are_rows(self, row: IntExpr, outer: list[int], atoms: Atoms) -> bool:
        """Whether short rows are better than few: there are many, and with another axis in the row there are not."""
        left, many = elements(atoms, outer[:-1]), elements(atoms, outer)
        return row.lower() >= SHORT_ROW and many.upper() >= 4 * ENOUGH_ROWS > 4 * left.upper()

    def _rows(self, layout: Layout, node: Node) -> tuple[int, ...]:
        """The atoms of all axes but the last."""
        return tuple(a for axis in layout.axes[node][:-1] for a in layout.atoms.leaves(axis))

    def _check(
        self,
        layout: Layout,
        anchor: Node | None,
        nodes: Sequence[Node],
        solid: list[Node],
        members: set[Node],
    ) -> None:
        for node in solid:
            flat = [a for axis in layout.axes[node] for a in layout.atoms.leaves(axis)]
            missing = [a for a in layout.outer if a not in flat]
            if missing:
                raise CannotFuse("a stored value has fewer rows than the region")
            if str(node.target) in anchors.QUANTIZERS and self._rows(layout, node) != layout.outer:
                raise CannotFuse("the rows to quantize are not the region's")
        # Also of what is only an expression: x[i] < x[j] would become x[i] < x[i] inside a reduction over j.
        for axes in layout.axes.values():
            flat = [a for axis in axes for a in layout.atoms.leaves(axis)]
            if len(set(flat)) != len(flat):
                raise CannotFuse("an axis meets itself")
        if (
            anchor is not None
            and str(anchor.target) in anchors.FLOAT_LINEARS
            and anchor.args[0] in members
            and self._rows(layout, operands(anchor)[0]) != layout.outer
        ):
            raise CannotFuse("the anchor's input rows come in another order")


def column_axis(anchor: Node, rank: int) -> int:
    """The axis of an anchor's result that its rows consist of."""
    return 1 if str(anchor.target) == anchors.CONVOLUTION else rank - 1


def _is_anchor(node: Node) -> bool:
    rule = rule_of(node)
    return rule is not None and rule.kind == "anchor"


def _is_solid(node: Node) -> bool:
    """A value that is computed by a loop of its own: one that cannot be folded into its readers."""
    rule = rule_of(node)
    return rule is not None and rule.kind in ("reduce", "rows", "anchor")


def _is_item(node: Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _sizes_match(atoms: Atoms, lhs: Axis, rhs: Axis) -> bool:
    return bool(prod(atoms.sizes(lhs)) == prod(atoms.sizes(rhs)))


def tiles_columns(nodes: list[Node], stored: list[Node], anchor: Node, layout: Layout) -> bool:
    """Whether every value of the region depends on one column of the anchor: then columns can be split among tasks."""
    if str(anchor.target) not in anchors.LINEARS:
        return False
    columns = layout.inner(anchor)
    after = [n for n in nodes if n is not anchor and not _is_before(n, anchor)]
    return (
        len(columns) == 1
        and all((rule := rule_of(n)) is not None and rule.kind == "pointwise" for n in after)
        and all(layout.inner(n) == columns for n in stored if n is not anchor)
    )


def _is_before(node: Node, anchor: Node) -> bool:
    """Whether the anchor (transitively, within a region) reads this node."""
    stack, seen = list(anchor.all_input_nodes), set()
    while stack:
        value = stack.pop()
        if value is node:
            return True
        if value not in seen:
            seen.add(value)
            if value.op == "call_function":
                stack.extend(value.all_input_nodes)
    return False
