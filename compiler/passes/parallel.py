"""Independent pieces of work on several threads, within a bound on memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Cancelled(Exception):
    """Another piece of work failed, or the user interrupted: this one stops where it is."""


def in_parallel(
    items: Sequence[Item],
    num_bytes: Callable[[Item], int],
    work: Callable[[Item, Callable[[str], None]], Result],
    workers: int,
) -> Iterator[tuple[Item, Result]]:
    """(item, work(item, check)) as each is finished, the largest begun first so that none is left to the end.

    Each item is worked on by one thread of torch, so its numbers do not depend on how many workers there are. Items
    are begun while their `num_bytes` together fit half of the free memory, and one always. `check` raises `Cancelled`
    once another item has failed.
    """
    stop = threading.Event()
    gate = _Gate(free_memory() // 2)

    def check(stage: str) -> None:
        if stop.is_set():
            raise Cancelled(stage)

    def guarded(item: Item) -> Result:
        with gate.holding(num_bytes(item)):
            check("begin")
            try:
                return work(item, check)
            except BaseException:
                stop.set()  # before this thread takes the next item
                raise

    ordered = sorted(items, key=num_bytes, reverse=True)  # stable
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting: dict[Future[Result], Item] = {pool.submit(guarded, i): i for i in ordered}
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in [f for f in waiting if f in finished]:
                yield waiting.pop(future), future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(previous)


def in_order(items: Sequence[Item], work: Callable[[Item], Result], jobs: int) -> Iterator[Result]:
    """Results in the order of the items, a few items ahead at the most: memory stays bounded.

    Each item is worked on by one thread, so its numbers do not depend on how many there are.
    """
    workers = jobs or os.cpu_count() or 1
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            ahead: deque[Future[Result]] = deque()
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
    finally:
        torch.set_num_threads(previous)


def free_memory() -> int:
    """Bytes that can be had without swapping, within the limits of a container; a guess where nobody tells."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30
    try:
        with open("/proc/meminfo") as file:  # counts what caches give back
            free = next(int(line.split()[1]) << 10 for line in file if "MemAvailable" in line)
    except (OSError, StopIteration, ValueError):
        pass
    for used, limit in _CGROUPS:
        try:
            with open(used) as in_use, open(limit) as most:
                free = min(free, max(0, int(most.read()) - int(in_use.read())))
        except (OSError, ValueError):
            continue
    return free


_CGROUPS = (
    ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.max"),
    (
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ),
)


class _Gate:
    """Lets through what fits; the first one always."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._changed = threading.Condition()

    def holding(self, num_bytes: int) -> _Held:
        return _Held(self, num_bytes)

    def change(self, num_bytes: int) -> None:
        with self._changed:
            if num_bytes > 0:
                self._changed.wait_for(
                    lambda: self._held == 0 or self._held + num_bytes <= self._limit
                )
            self._held += num_bytes
            self._changed.notify_all()


class _Held:
    def __init__(self, gate: _Gate, num_bytes: int) -> None:
        self._gate, self._num_bytes = gate, max(num_bytes, 1)

    def __enter__(self) -> None:
        self._gate.change(self._num_bytes)

    def __exit__(self, *_: object) -> None:
        self._gate.change(-self._num_bytes)
