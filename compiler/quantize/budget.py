"""Which option each layer takes, so that all of them fit in a number of bytes and the model's error is least.

    minimise  sum_l error[l][c_l]      subject to      sum_l num_bytes[l][c_l] <= budget_bytes

Errors of different layers add: each is the share of the model's output energy that one layer's error causes, and the
errors are independent (passes/allocate.py measures both, and how well the sum holds). This is a multiple-choice
knapsack problem. Its Lagrangian, one price per byte for all layers, is solved by taking the steps of the layers' convex
hulls in the order of error saved per byte; the gap between that solution and its bound says which options an optimal
solution can still contain, and dynamic programming over those finds it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svdqc.compiler.quantize.errors import BudgetTooSmall, InvalidRecipe

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
GAP = 1e-5
"""A solution this near to its bound, relatively, is as good as the optimum: no search for the rest."""
_MOST_STATES = 50_000
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(%|[KMG]?I?B)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Option:
    """One way to store a layer. error: the share of the model's output energy that it costs."""

    num_bytes: int
    error: float


@dataclass(frozen=True)
class Budget:
    """Bytes, or a share of the bytes that the model takes in 16 bits."""

    num_bytes: int | None
    ratio: float | None

    def bytes_of(self, bytes_in_16_bits: int) -> int:
        if self.num_bytes is not None:
            return self.num_bytes
        assert self.ratio is not None
        return int(self.ratio * bytes_in_16_bits)


def parse_budget(value: str | float) -> Budget:
    """ "6.5MB", "1.2 GB", "700KiB", "30%", "0.3" or 0.3; a number without a unit is a ratio and lies in (0, 1]."""
    match = _SIZE.fullmatch(str(value)) if not isinstance(value, bool) else None
    if match is None:
        raise _invalid(value)
    number, unit = float(match[1]), (match[2] or "").upper()
    if unit in UNITS and number > 0:
        return Budget(round(number * UNITS[unit]), None)
    ratio = number / 100 if unit == "%" else number
    if not 0 < ratio <= 1:
        raise _invalid(value)
    return Budget(None, ratio)


def allocate(
    layers: Sequence[Sequence[Option]], budget_bytes: int, fixed_bytes: int = 0
) -> list[int]:
    """The index of the option that each layer takes; deterministic, ties go to fewer bytes.

    Exact, up to a relative difference of GAP in the total error. `fixed_bytes` of the budget are spent whatever is
    chosen. Raises `BudgetTooSmall` with the least that would do.
    """
    budget_bytes -= fixed_bytes
    useful = [_useful(options) for options in layers]
    least = sum(options[u[0]].num_bytes for options, u in zip(layers, useful, strict=True))
    if least > budget_bytes:
        raise BudgetTooSmall(
            "budget",
            f"{budget_bytes + fixed_bytes:,} bytes",
            f"the least possible is {least + fixed_bytes:,} bytes",
            f"allow more; {fixed_bytes:,} of them are layers that are kept as they are",
        )
    chosen, price = _greedy(layers, useful, budget_bytes)
    better = _search(layers, useful, budget_bytes, chosen, price)
    return chosen if better is None else better


def _invalid(value: object) -> InvalidRecipe:
    remedy = 'use a size such as "6.5MB" or a ratio of the 16-bit bytes such as 0.3'
    return InvalidRecipe("recipe", "budget", f"found {value!r}", remedy)


def _useful(options: Sequence[Option]) -> list[int]:
    """Options that no other beats in both bytes and error, by rising bytes."""
    order = sorted(range(len(options)), key=lambda i: (options[i].num_bytes, options[i].error, i))
    kept: list[int] = []
    for i in order:
        if not kept or options[i].error < options[kept[-1]].error:
            kept.append(i)
    return kept


def _hull(options: Sequence[Option], useful: list[int]) -> list[int]:
    """The lower convex hull of (bytes, error): error saved per byte falls along it."""
    hull: list[int] = []
    for i in useful:
        while len(hull) > 1 and _saving(options, hull[-2], hull[-1]) <= _saving(
            options, hull[-1], i
        ):
            hull.pop()
        hull.append(i)
    return hull


def _saving(options: Sequence[Option], a: int, b: int) -> float:
    """Error saved per byte from option a to the larger b."""
    bytes_more = options[b].num_bytes - options[a].num_bytes
    return (options[a].error - options[b].error) / bytes_more


def _greedy(
    layers: Sequence[Sequence[Option]], useful: list[list[int]], budget_bytes: int
) -> tuple[list[int], float]:
    """A solution that fits, and the price per byte at which the first step did not."""
    hulls = [_hull(options, u) for options, u in zip(layers, useful, strict=True)]
    steps = [
        (-_saving(layers[n], a, b), n, at)
        for n, hull in enumerate(hulls)
        for at, (a, b) in enumerate(itertools.pairwise(hull))
    ]
    chosen = [hull[0] for hull in hulls]
    spent = sum(layers[n][i].num_bytes for n, i in enumerate(chosen))
    stopped: set[int] = set()
    price = 0.0
    for saving, n, at in sorted(steps):
        if n in stopped:
            continue
        after = hulls[n][at + 1]
        more = layers[n][after].num_bytes - layers[n][chosen[n]].num_bytes
        if spent + more > budget_bytes:
            price = price or -saving
            stopped.add(n)
            continue
        chosen[n], spent = after, spent + more
    return chosen, price


def _search(
    layers: Sequence[Sequence[Option]],
    useful: list[list[int]],
    budget_bytes: int,
    chosen: list[int],
    price: float,
) -> list[int] | None:
    """A better solution than `chosen` if there is one.

    At `price` per byte an option costs error + price * bytes. What a solution's options cost beyond the cheapest of
    their layers, summed, is at most the gap between `chosen` and the Lagrangian bound, or `chosen` is no worse.
    """
    costs = [
        np.array([layers[n][i].error + price * layers[n][i].num_bytes for i in u])
        for n, u in enumerate(useful)
    ]
    found = sum(layers[n][i].error for n, i in enumerate(chosen))
    gap = found - (sum(float(c.min()) for c in costs) - price * budget_bytes)
    if gap <= GAP * found:
        return None
    open_options = [
        [i for i, cost in zip(u, c, strict=True) if cost - c.min() <= gap]
        for u, c in zip(useful, costs, strict=True)
    ]
    room_after = _least_bytes_after(layers, open_options)
    states = _States.start()
    trail: list[_States] = []
    for n, candidates in enumerate(open_options):
        least = float(costs[n].min())
        options = [(layers[n][i], i) for i in candidates]
        states = states.extended(options, price, least).pruned(
            gap, price, budget_bytes - room_after[n]
        )
        if states.error.size == 0:
            return None
        trail.append(states)
    best = int(np.argmin(states.error))
    if states.error[best] >= found:
        return None
    picked: list[int] = []
    for step in reversed(trail):
        picked.append(int(step.option[best]))
        best = int(step.parent[best])
    return picked[::-1]


def _least_bytes_after(
    layers: Sequence[Sequence[Option]], open_options: list[list[int]]
) -> list[int]:
    """For each layer the least bytes that the layers after it need."""
    after, total = [], 0
    for n in reversed(range(len(layers))):
        after.append(total)
        total += min(layers[n][i].num_bytes for i in open_options[n])
    return after[::-1]


@dataclass(frozen=True)
class _States:
    """Partial solutions that no other beats: by rising bytes, falling error. All arrays [states]."""

    num_bytes: NDArray[np.int64]
    error: NDArray[np.float64]
    excess: NDArray[np.float64]
    parent: NDArray[np.int64]
    option: NDArray[np.int64]

    @staticmethod
    def start() -> _States:
        zero, none = np.zeros(1), np.zeros(1, np.int64)
        return _States(none, zero, zero, none, none)

    def extended(
        self, options: Sequence[tuple[Option, int]], price: float, least: float
    ) -> _States:
        count = np.arange(self.error.size)
        parts = [
            (
                self.num_bytes + option.num_bytes,
                self.error + option.error,
                self.excess + (option.error + price * option.num_bytes - least),
                count,
                np.full(count.size, index),
            )
            for option, index in options
        ]
        return _States(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def pruned(self, gap: float, price: float, room: int) -> _States:
        keep = np.flatnonzero((self.num_bytes <= room) & (self.excess <= gap))
        order = keep[np.lexsort((self.error[keep], self.num_bytes[keep]))]
        least = np.minimum.accumulate(np.append(np.inf, self.error[order]))[:-1]
        order = order[self.error[order] < least]
        if order.size > _MOST_STATES:
            order = np.sort(order[np.argsort(self.excess[order], kind="stable")[:_MOST_STATES]])
        return _States(
            self.num_bytes[order],
            self.error[order],
            self.excess[order],
            self.parent[order],
            self.option[order],
        )
