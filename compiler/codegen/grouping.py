"""Which regions share a launch: those whose code is equal, and which the plan needs at the same time.

Two streams, such as image and text, pass through layers of one shape with weights of their own; the shorter alone
leaves most of a GPU idle. Their regions become members of one launch, if they are equally far from the outputs:

    height(launch) = 1 + the largest height of the launches that depend on it

Each dependence goes from a greater height to a lesser. So regions of one height are independent, and launches made of
such regions depend on each other without cycles. A result that is needed much later has another height: it is not
computed early only to lie in the arena.

Dependences are those of memory: two launches that touch a buffer, and one of them to write it, keep their order. Only
parts of a concatenation, which several regions write, are written in any.

What members write is alive together, and what waits for them: where groups would let the arena grow by more than an
eighth, those at its peak are launched apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import networkx as nx

from svdqc.compiler.codegen.choice import Problem, problem_of
from svdqc.compiler.codegen.kernel import Generator, Printed, SharedMemoryExceeded
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.storage import BufferKey
from svdqc.compiler.ir.intexpr import IntExpr

MOST_GROWTH, SMALL_GROWTH = 9 / 8, 64 << 20
"""Of the bytes that are alive at a launch, for the largest dims; and what no GPU lacks."""


@dataclass
class Group:
    """Regions of one launch: their positions among all, and their code, equal. The one with the most rows is first."""

    positions: list[int]
    members: list[Printed]


def plan_launches(
    regions: Sequence[Region],
    generator: Generator,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Printed]]:
    """The members of each launch, for regions that are in an order of execution; the launches are in one, too."""
    grouping = generator.backend.param_words > 0
    alone: list[Printed] = []
    for region in regions:
        printed = generator.analytic(region)
        alone.append(printed if grouping else generator.chosen(printed))
        if progress is not None:
            progress(len(alone), len(regions))
    if not grouping:
        return [[printed] for printed in alone]
    graph = dependences(alone)
    groups = [
        group
        for candidates in _candidates(alone, graph)
        for group in _groups_of(candidates, alone, generator)
    ]
    return [group.members for group in _within_memory(groups, alone, graph, generator)]


def dependences(launches: Sequence[Printed]) -> nx.DiGraph[int]:
    """An edge from each launch to the later ones that must follow it, by position."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(launches)))
    readers: dict[BufferKey, set[int]] = {}
    writers: dict[BufferKey, set[int]] = {}
    for i, launch in enumerate(launches):
        for param in launch.params.buffers:
            users = readers if param.access == "read" else writers
            users.setdefault(param.buffer, set()).add(i)
    for buffer, writing in writers.items():
        for reader in readers.get(buffer, ()):
            graph.add_edges_from((min(w, reader), max(w, reader)) for w in writing if w != reader)
    return graph


def heights(graph: nx.DiGraph[int]) -> dict[int, int]:
    """By launch; those that nothing depends on have 1."""
    found: dict[int, int] = {}
    for i in sorted(graph, reverse=True):  # edges go to later launches
        found[i] = 1 + max((found[j] for j in graph.successors(i)), default=0)
    return found


def _candidates(launches: Sequence[Printed], graph: nx.DiGraph[int]) -> list[list[int]]:
    """Launches by height and by what they compute, whatever the number of rows."""
    found: dict[tuple[int, Problem], list[int]] = {}
    height = heights(graph)
    for i, launch in enumerate(launches):
        problem = replace(problem_of(launch.region, ""), rows=0)
        found.setdefault((height[i], problem), []).append(i)
    return list(found.values())


def _groups_of(
    candidates: list[int], launches: Sequence[Printed], generator: Generator
) -> Iterator[Group]:
    """One with most rows, and the others that have its code with its block; the same with those that are left."""
    while candidates:
        first = max(candidates, key=lambda i: (launches[i].region.layout.num_rows.upper(), -i))
        group = Group([first], [generator.chosen(launches[first])])
        most = generator.backend.param_words // group.members[0].num_words
        for i in candidates:
            if i == first or len(group.members) >= most:
                continue
            printed = _with_block_of(group.members[0], launches[i], generator)
            if printed is not None and printed.has_code_of(group.members[0]):
                group.positions.append(i)
                group.members.append(printed)
        yield group
        candidates = [i for i in candidates if i not in group.positions]


def _with_block_of(first: Printed, launch: Printed, generator: Generator) -> Printed | None:
    """None where the target cannot hold it."""
    if launch.block == first.block:
        return launch
    try:
        return generator.printed(launch.region, first.block)
    except SharedMemoryExceeded:
        return None


def _within_memory(
    groups: list[Group], launches: Sequence[Printed], graph: nx.DiGraph[int], generator: Generator
) -> list[Group]:
    """The groups in an order of execution, without those for which too much would be alive."""
    num_bytes = generator.storages.num_bytes
    before = _peak([[launch] for launch in launches], num_bytes)[0]
    room = max(MOST_GROWTH * before, before + SMALL_GROWTH)
    while True:
        ordered = _ordered(groups, graph)
        peak, at = _peak([group.members for group in ordered], num_bytes)
        if peak <= room:
            return ordered
        several = [i for i, group in enumerate(ordered) if len(group.members) > 1]
        apart = ordered[min(several, key=lambda i: abs(i - at))]
        groups = [group for group in ordered if group is not apart]
        groups += [Group([i], [generator.chosen(launches[i])]) for i in apart.positions]


def _ordered(groups: Sequence[Group], graph: nx.DiGraph[int]) -> list[Group]:
    """In an order of execution that stays near the regions' own; of single ones, in that."""
    group_of = {i: number for number, group in enumerate(groups) for i in group.positions}
    merged: nx.DiGraph[int] = nx.DiGraph()
    merged.add_nodes_from(range(len(groups)))
    merged.add_edges_from((group_of[i], group_of[j]) for i, j in graph.edges)
    order = nx.lexicographical_topological_sort(merged, key=lambda g: min(groups[g].positions))
    return [groups[number] for number in order]


def _peak(
    launches: Sequence[Sequence[Printed]], num_bytes: Mapping[BufferKey, IntExpr]
) -> tuple[int, int]:
    """The most bytes of the arena that are alive at a launch, and its position."""
    first: dict[BufferKey, int] = {}
    last: dict[BufferKey, int] = {}
    for position, members in enumerate(launches):
        for param in (param for member in members for param in member.params.buffers):
            if param.buffer.kind == "arena":
                first.setdefault(param.buffer, position)
                last[param.buffer] = position
    change = [0] * (len(launches) + 1)
    for buffer, begin in first.items():
        size = num_bytes[buffer].upper()
        change[begin] += size
        change[last[buffer] + 1] -= size
    alive = list(accumulate(change))
    peak = max(alive)
    return peak, alive.index(peak)
