"""Place buffers in one arena: two share memory exactly when they are never alive together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A buffer of num_bytes (for the largest dims), written first by launch `first` and read last by launch `last`."""

    name: str
    num_bytes: int
    first: int
    last: int


def place(lifetimes: Sequence[Lifetime]) -> tuple[dict[str, int], int]:
    """(byte offset of each buffer, size of the arena): largest first, each in the lowest gap its neighbours leave."""
    interference = _interference(lifetimes)
    by_name = {life.name: life for life in lifetimes}
    offsets: dict[str, int] = {}
    for life in sorted(lifetimes, key=lambda b: (-b.num_bytes, b.first, b.name)):
        taken = sorted(
            (offsets[n], offsets[n] + _padded(by_name[n].num_bytes))
            for n in interference[life.name]
            if n in offsets
        )
        offset = 0
        for begin, end in taken:
            if offset + _padded(life.num_bytes) <= begin:
                break
            offset = max(offset, end)
        offsets[life.name] = offset
    total = max((offsets[b.name] + _padded(b.num_bytes) for b in lifetimes), default=0)
    return offsets, total


def _interference(lifetimes: Sequence[Lifetime]) -> nx.Graph[str]:
    """Buffers that are alive at the same launch; a sweep over launches finds every pair once."""
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(b.name for b in lifetimes)
    alive: list[Lifetime] = []
    for life in sorted(lifetimes, key=lambda b: (b.first, b.last, b.name)):
        alive = [other for other in alive if other.last >= life.first]
        graph.add_edges_from((life.name, other.name) for other in alive)
        alive.append(life)
    return graph


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
