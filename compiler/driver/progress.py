"""What a long call tells about itself: stage by stage, so that a bar with the time left can be drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressEvent:
    """`done` of `total` steps of `stage` are finished; `detail` names what is being worked on.

    A stage opens with its first event and closes with done == total. Stages come one after another, in the order
    of the work: capture, calibrate, quantize, plan, kernels, write.
    """

    stage: str
    done: int
    total: int
    detail: str = ""

    def __post_init__(self) -> None:
        assert 0 <= self.done <= self.total, f"{self.stage}: {self.done} of {self.total} steps"


Progress = Callable[[ProgressEvent], None]
