"""The time left, by the pace of the last steps."""

from __future__ import annotations

import io

import pytest

from svdqc.compiler.cli import progress_bar
from svdqc.compiler.cli.progress_bar import PlainLines, duration
from svdqc.compiler.driver import progress
from svdqc.compiler.driver.compile import quantizing_device
from svdqc.compiler.driver.progress import ProgressEvent, Stages


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", made.monotonic)
    return made


def test_left__by_the_share_of_the_work(clock: Clock) -> None:
    events: list[ProgressEvent] = []
    say = Stages(events.append)
    say("quantize", 0, 3, share=0.0)
    clock.now += 10
    say("quantize", 1, 3, "large", share=0.8)
    clock.now += 5
    say("quantize", 2, 3, "small", share=0.9)
    assert [e.left_s for e in events] == [None, pytest.approx(2.5), pytest.approx(15 / 9)]


def test_left__of_steps_that_were_done_before(clock: Clock) -> None:
    """90 layers are found finished at once; the pace is that of the last ones."""
    events: list[ProgressEvent] = []
    say = Stages(events.append)
    for done in range(91):
        say("quantize", done, 110)
    for done in range(91, 108):
        clock.now += 4
        say("quantize", done, 110)
    assert events[-1].left_s == pytest.approx(3 * 4)


def test_left__a_stage_begins_anew(clock: Clock) -> None:
    events: list[ProgressEvent] = []
    say = Stages(events.append)
    say("calibrate", 0, 2)
    clock.now += 10
    say("calibrate", 1, 2)
    say("quantize", 0, 2)
    assert events[-1].left_s is None


def test_plain_lines__tell_the_time_left_now_and_then(clock: Clock) -> None:
    stream = io.StringIO()
    show = PlainLines(stream)
    for done in range(10):
        show(ProgressEvent("quantize", done, 10, "", None if done == 0 else 60.0 * (10 - done)))
        clock.now += 11
    told = [line for line in stream.getvalue().splitlines() if "left" in line]
    assert told == [
        "quantize: 3 of 10, about 7:00 left",
        "quantize: 6 of 10, about 4:00 left",
        "quantize: 9 of 10, about 1:00 left",
    ]
    assert progress_bar.time is progress.time


def test_duration() -> None:
    assert [duration(s) for s in (0.4, 59.4, 65, 3599, 10_920)] == [
        "0 s",
        "59 s",
        "1:05",
        "59:59",
        "3:02:00",
    ]


def test_quantizing_device__the_processor_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert quantizing_device() == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert quantizing_device() == "cuda"
