"""Graph → fused regions: grow each region from its first node while the result stays one row program.

Nodes are visited in topological order; each tries to join the regions that produce its operands, latest first. A
merge is kept if the union has a layout (`RegionSolver`), the region graph stays acyclic, and enough rows remain to
share among threads. Views and cheap broadcast values never form regions: they fold into whoever reads them.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

import networkx as nx
from torch.fx import Graph, Node

from svdqc.compiler.codegen.access import AccessMaps
from svdqc.compiler.codegen.columns import (
    WIDEST,
    column_places,
    keeps_own_columns,
    part_of_projection,
    stays_in_columns,
)
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.ops.registry import rule_of
from svdqc.compiler.codegen.region import (
    CannotFuse,
    FusionPlan,
    Layout,
    Region,
    RegionSolver,
    tiles_columns,
)
from svdqc.compiler.codegen.rowprogram import IN_TILES, build_row_program
from svdqc.compiler.ir.intexpr import prod
from svdqc.compiler.ir.ops import copy as COPY
from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import Rewriter, aten, is_weight_cast, operands
from svdqc.compiler.ir.symbols import SymbolTable
from svdqc.compiler.quantize.ops import quantize_s4_parts

CONCAT = "svdq.concat.default"
FEW_ROWS = 64
"""Up to so many rows a linear is bound by reading its weight, and is split along its columns instead."""
LARGE_WEIGHT = 1 << 20
ENOUGH_ROWS = 16
SMALL_VALUE = 4096
"""Below so many elements a launch costs more than a second thread brings."""


@dataclass(frozen=True)
class Traits:
    """What a kind of machine asks of regions.

    column_tiled  anchors whose result is cut along columns whatever its rows, and how many columns what follows may mix
    prologues     whether an anchor's kernel can compute its input rows
    enough_rows   a merge must not leave fewer rows than these, where the parts have more
    """

    column_tiled: Mapping[str, int] = field(default_factory=dict)
    prologues: bool = True
    enough_rows: int = ENOUGH_ROWS


CPU_TRAITS = Traits()
GPU_TRAITS = Traits(
    column_tiled={
        anchors.LINEAR: 128,
        anchors.LINEAR_S4: 128,
        anchors.LINEAR_CODED: 128,
        anchors.LINEAR_W: 32,
        anchors.CONVOLUTION: 64,
        anchors.BMM: 64,
    },
    prologues=False,
    enough_rows=128,
)


def fuse(program: Program, traits: Traits = CPU_TRAITS) -> FusionPlan:
    """Partition the computing nodes of a lowered program into regions."""
    return _Planner(program, traits).run()


def cheap_broadcasts(graph: Graph, table: SymbolTable) -> frozenset[Node]:
    """Pointwise values that cost next to nothing: casts of weights, which kernels read as they are stored, and values
    smaller than what reads them, such as `1 + scale`."""
    return frozenset(
        n
        for n in graph.nodes
        if n.target in _CHEAP and (is_weight_cast(n) or _is_cheap_broadcast(n, table))
    )


_CHEAP = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.neg.default,
    aten._to_copy.default,
}


def _is_cheap_broadcast(node: Node, table: SymbolTable) -> bool:
    computed = [i for i in node.all_input_nodes if i.op == "call_function"]
    size = prod(table.shape(node))
    return (
        len(computed) <= 1
        and bool(node.users)
        and all(
            _kind(user) == "pointwise"
            and user.target is not COPY
            and size != 1
            and size.upper() < prod(table.shape(user)).upper()
            for user in node.users
        )
    )


class _Planner:
    def __init__(self, program: Program, traits: Traits) -> None:
        self.program, self.traits = program, traits
        self.graph = program.graph_module.graph
        self.table = SymbolTable(program)
        self.virtual = cheap_broadcasts(self.graph, self.table)
        self.maps = AccessMaps(self.table, self.virtual)
        self.solver = RegionSolver(self.table, self.maps)
        self.order = {n: i for i, n in enumerate(self.graph.nodes)}
        self.nodes = [
            n
            for n in self.graph.nodes
            if self.maps.kind(n) in ("pointwise", "reduce", "anchor", "rows")
        ]
        self.region_of: dict[Node, int] = {n: i for i, n in enumerate(self.nodes)}
        self.members: dict[int, list[Node]] = {i: [n] for i, n in enumerate(self.nodes)}
        self.layouts: dict[int, Layout] = {}
        self.dag: nx.DiGraph[int] = nx.DiGraph()
        self.readers: dict[Node, set[Node]] = {n: set() for n in self.nodes}
        self.hard: set[tuple[Node, Node]] = set()
        self.always_stored: set[Node] = set()
        self.refused: list[tuple[str, str]] = []
        self._connect()

    def _connect(self) -> None:
        """The dependences between computing nodes, through views and concatenations."""
        self.dag.add_nodes_from(self.members)
        sources: dict[
            Node, dict[Node, bool]
        ] = {}  # value → computing nodes it comes from → through memory?
        for node in self.graph.nodes:
            reached: dict[Node, bool] = {}
            for operand in node.all_input_nodes:
                for producer, through_memory in sources.get(operand, {}).items():
                    reached[producer] = reached.get(producer, False) or through_memory
            if node.op == "output":
                self.always_stored.update(reached)
            elif str(node.target) == CONCAT:
                self.always_stored.update(reached)
                sources[node] = dict.fromkeys(reached, True)
            elif node in self.region_of:
                for producer, through_memory in reached.items():
                    self.readers[producer].add(node)
                    self.dag.add_edge(self.region_of[producer], self.region_of[node])
                    if through_memory:
                        self.hard.add((producer, node))
                sources[node] = {node: False}
            else:
                sources[node] = reached

    def run(self) -> FusionPlan:
        for node in self.nodes:
            producers = [
                n for n in self._sources(node) if self.region_of[n] != self.region_of[node]
            ]
            producers.sort(key=lambda n: -self.order[n])
            for producer in producers:
                self._try_merge(self.region_of[producer], self.region_of[node])
        self._sum_projections_apart()
        for identity in list(self.members):
            self._layout(identity)
        order = nx.lexicographical_topological_sort(
            self.dag, key=lambda r: max(self.order[n] for n in self.members[r])
        )
        regions = [self._region(r) for r in order]
        return FusionPlan(regions, self.maps, self.refused)

    def _sum_projections_apart(self) -> None:
        """In tiles, quantize_s4(x)[2] → sum(quantize_s4_parts(x)[2]): their columns give parts of the projection."""
        for region, nodes in list(self.members.items()):
            anchor = next((n for n in nodes if _kind(n) == "anchor"), None)
            if anchor is None or str(anchor.target) not in self.traits.column_tiled:
                continue
            for node in nodes:
                if (
                    str(node.target) == anchors.QUANTIZE_S4
                    and operands(node)[2].meta["val"].numel()
                ):
                    self._sum_parts(region, node)

    def _sum_parts(self, region: int, node: Node) -> None:
        tiled = build_row_program(self._region(region), self.maps, IN_TILES)
        places = column_places(tiled, WIDEST)
        assert places is not None, f"{tiled.region.anchor}: cut along its columns"
        rw = Rewriter(self.program)
        with rw.after(node):
            parts = rw.call(quantize_s4_parts, *node.args, part_of_projection(places[node]))
            items = [rw.call(operator.getitem, parts, i) for i in range(3)]
            low = rw.call(aten.sum.dim_IntList, items[2], [-2])
        for item in list(node.users):
            rw.replace(item, low if item.args[1] == 2 else items[int(str(item.args[1]))])
        for others in self.readers.values():
            if node in others:
                others.symmetric_difference_update({node, parts})
        readers, place = self.readers.pop(node), self.order[node]
        rw.graph.erase_node(node)
        self.members[region] = [parts if n is node else n for n in self.members[region]]
        self.region_of[parts] = region
        self.readers[parts], self.readers[low] = {*readers, low}, readers
        self.order[parts], self.order[low] = place, place
        self.layouts.pop(region, None)
        own = max(self.members) + 1
        self.members[own], self.region_of[low] = [low], own
        self.dag.add_edge(region, own)
        for reader in readers:
            self.dag.add_edge(own, self.region_of[reader])

    def _sources(self, node: Node) -> set[Node]:
        found: set[Node] = set()
        stack = list(node.all_input_nodes)
        while stack:
            value = stack.pop()
            if value in self.region_of:
                found.add(value)
            else:
                stack.extend(value.all_input_nodes)
        return found

    def _stored(self, members: list[Node]) -> list[Node]:
        inside = set(members)
        return [
            n
            for n in members
            if n in self.always_stored or any(r not in inside for r in self.readers[n])
        ]

    def _try_merge(self, producer: int, consumer: int) -> None:
        if producer == consumer:
            return
        nodes = sorted(self.members[producer] + self.members[consumer], key=self.order.__getitem__)
        try:
            self._check_edges(producer, consumer)
            stored = self._stored(nodes)
            layout = self.solver.solve(nodes, stored)
            self._check_profit(producer, consumer, nodes, stored, layout)
        except CannotFuse as reason:
            self.refused.append(
                (f"{self.members[producer][-1]} + {self.members[consumer][0]}", str(reason))
            )
            return
        self._merge(producer, consumer, nodes, layout)

    def _check_edges(self, producer: int, consumer: int) -> None:
        inside = set(self.members[producer]) | set(self.members[consumer])
        if any(
            (a, b) in self.hard
            for a in self.members[producer]
            for b in self.readers[a]
            if b in inside
        ):
            raise CannotFuse("the value is read back from a concatenation")
        others = [s for s in self.dag.successors(producer) if s != consumer]
        if any(nx.has_path(self.dag, s, consumer) for s in others):
            raise CannotFuse("another region lies between")
        anchor = next((n for n in self.members[consumer] if _kind(n) == "anchor"), None)
        if anchor is None:
            return
        if any(_kind(n) == "anchor" for n in self.members[producer]):
            raise CannotFuse("two anchors")
        if str(anchor.target) not in anchors.FLOAT_LINEARS or not self.traits.prologues:
            raise CannotFuse("the anchor reads its operands from memory")
        if any(r not in inside for n in self.members[producer] for r in self.readers[n]) or any(
            n in self.always_stored for n in self.members[producer]
        ):
            raise CannotFuse("a prologue's value has other readers")

    def _check_profit(
        self, producer: int, consumer: int, nodes: list[Node], stored: list[Node], layout: Layout
    ) -> None:
        rows = layout.num_rows
        separate = [self._layout(r).num_rows for r in (producer, consumer)]
        fewer = rows.upper() < max(r.upper() for r in separate)
        fewer = fewer and not self._is_small_epilogue(producer, consumer)
        if (
            fewer
            and rows.upper() < self.traits.enough_rows
            and _largest(nodes, self.solver) > SMALL_VALUE
        ):
            raise CannotFuse("too few rows would be left to share among threads")
        anchor = next((n for n in nodes if _kind(n) == "anchor"), None)
        if anchor is not None and str(anchor.target) in self.traits.column_tiled:
            most = self.traits.column_tiled[str(anchor.target)]
            if (groups := anchors.num_groups(anchor)) > 1:
                width = layout.inner_elements(anchor).const // groups
                most = min(most, width & -width)  # blocks lie in one group
            if not stays_in_columns(Region(nodes, anchor, layout, stored), self.maps, most):
                raise CannotFuse("the anchor's result is cut along its columns")
        elif (
            anchor is not None
            and _prefers_columns(anchor, rows.upper())
            and not self._tiles_columns(Region(nodes, anchor, layout, stored))
        ):
            raise CannotFuse("few rows: the linear is split along its columns")

    def _tiles_columns(self, region: Region) -> bool:
        assert region.anchor is not None
        tiles = tiles_columns(region.nodes, region.stored, region.anchor, region.layout)
        return tiles and keeps_own_columns(build_row_program(region, self.maps))

    def _is_small_epilogue(self, producer: int, consumer: int) -> bool:
        """The anchor's own rows bound the parallelism; work no larger than its result changes nothing."""
        anchor = next((n for n in self.members[producer] if _kind(n) == "anchor"), None)
        if anchor is None:
            return False
        return (
            _largest(self.members[consumer], self.solver) <= prod(self.solver.shape(anchor)).upper()
        )

    def _merge(self, producer: int, consumer: int, nodes: list[Node], layout: Layout) -> None:
        for successor in list(self.dag.successors(consumer)):
            self.dag.add_edge(producer, successor)
        for predecessor in list(self.dag.predecessors(consumer)):
            if predecessor != producer:
                self.dag.add_edge(predecessor, producer)
        self.dag.remove_node(consumer)
        for node in self.members.pop(consumer):
            self.region_of[node] = producer
        self.members[producer] = nodes
        self.layouts[producer] = layout
        self.layouts.pop(consumer, None)

    def _layout(self, region: int) -> Layout:
        if region not in self.layouts:
            nodes = self.members[region]
            self.layouts[region] = self.solver.solve(nodes, self._stored(nodes))
        return self.layouts[region]

    def _region(self, region: int) -> Region:
        nodes = self.members[region]
        anchor = next((n for n in nodes if _kind(n) == "anchor"), None)
        stored = self._stored(nodes)
        # Readers that joined since may have made a stored value private, or the other way round.
        return Region(nodes, anchor, self.solver.solve(nodes, stored), stored)


def _largest(nodes: list[Node], solver: RegionSolver) -> int:
    return max(prod(solver.shape(n)).upper() for n in nodes)


def _prefers_columns(anchor: Node, rows: int) -> bool:
    if str(anchor.target) not in anchors.LINEARS or rows > FEW_ROWS:
        return False
    position = anchors.WEIGHT_OPERAND[str(anchor.target)]
    weight = anchor.args[position].meta["val"].shape  # type: ignore[union-attr]
    return int(prod(weight).const) >= LARGE_WEIGHT


def _kind(node: Node) -> str:
    rule = rule_of(node)
    return rule.kind if rule is not None else ""
