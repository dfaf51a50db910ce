"""Draws `ProgressEvent`s: a bar with the time left on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from svdqc.compiler.driver.progress import Progress, ProgressEvent

_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress_display(quiet: bool = False, stream: IO[str] | None = None) -> Iterator[Progress]:
    """A function to hand to `svdqc.compile(progress=...)`; it writes to `stream` (default: standard error)."""
    out = stream or sys.stderr
    if quiet:
        yield _ignore
    elif out.isatty() and _has_rich():
        with _bars(out) as show:
            yield show
    else:
        yield PlainLines(out)


class PlainLines:
    """A line when a stage begins, one when it ends, with the seconds it took, and a few between: for logs and pipes."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._stage = ""
        self._began = 0.0
        self._closed = True
        self._told = 0.0

    def __call__(self, event: ProgressEvent) -> None:
        if event.stage != self._stage or (self._closed and event.done < event.total):
            self._stage, self._began, self._closed = event.stage, time.monotonic(), False
            self._told = self._began
            if event.done < event.total:
                steps = f" ({event.total} steps)" if event.total > 1 else ""
                print(f"{event.stage}{steps} ...", file=self._stream, flush=True)
        elif event.left_s is not None and time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            text = (
                f"{event.stage}: {event.done} of {event.total}, about {duration(event.left_s)} left"
            )
            print(text, file=self._stream, flush=True)
        if event.done == event.total and not self._closed:
            self._closed = True
            took = time.monotonic() - self._began
            print(f"{event.stage}: done in {took:.1f} s", file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """42 s, 12:05, 3:02:00."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@contextmanager
def _bars(stream: IO[str]) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as RichProgress

    bars = RichProgress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[detail]}", style="dim"),
        console=Console(file=stream),
    )
    tasks: dict[str, Any] = {}

    def show(event: ProgressEvent) -> None:
        if event.stage not in tasks:
            for task in tasks.values():
                bars.update(task, detail="")
            tasks[event.stage] = bars.add_task(event.stage, total=event.total, detail="", left="")
        detail = event.detail if event.done < event.total else ""
        task = tasks[event.stage]
        left = "" if event.left_s is None else duration(event.left_s)
        bars.update(task, completed=event.done, total=event.total, detail=detail, left=left)

    with bars:
        yield show


def _has_rich() -> bool:
    from importlib.util import find_spec

    return find_spec("rich") is not None


def _ignore(event: ProgressEvent) -> None:
    """Quiet."""
