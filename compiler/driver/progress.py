"""What a long call tells about itself: stage by stage, so that a bar with the time left can be drawn."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressEvent:
    """`done` of `total` steps of `stage` are finished; `detail` names what is being worked on.

    A stage opens with its first event and closes with done == total. Stages come one after another, in the order
    of the work: capture, record, calibrate, quantize, plan, kernels, write.

    left_s  seconds that the stage will take still, by the pace of its last steps; None where nothing tells
    """

    stage: str
    done: int
    total: int
    detail: str = ""
    left_s: float | None = None

    def __post_init__(self) -> None:
        assert 0 <= self.done <= self.total, f"{self.stage}: {self.done} of {self.total} steps"


Progress = Callable[[ProgressEvent], None]


class Stages:
    """Reports progress; a stage opens with its first event."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._stage = ""
        self._recent: deque[tuple[float, float]] = deque(maxlen=_PACE_STEPS)

    def __call__(
        self, stage: str, done: int, total: int, detail: str = "", share: float | None = None
    ) -> None:
        """`share` of the stage's work is done, where steps differ in size."""
        if self._progress is None:
            return
        if stage != self._stage:
            self._stage = stage
            self._recent.clear()
        now = (time.monotonic(), done / max(total, 1) if share is None else share)
        self._recent.append(now)
        self._progress(ProgressEvent(stage, done, total, detail, self._left()))

    def _left(self) -> float | None:
        (began, first), (now, last) = self._recent[0], self._recent[-1]
        return None if last <= first else (now - began) * (1.0 - last) / (last - first)


_PACE_STEPS = 16
