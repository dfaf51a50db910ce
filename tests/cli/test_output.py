"""What the command line prints, without a process."""

from __future__ import annotations

import io
import json

import pytest

from svdqc.compiler.cli import output
from svdqc.compiler.cli.progress_bar import PlainLines, progress_display
from svdqc.compiler.driver.progress import ProgressEvent

REPORT = {
    "name": "flux",
    "num_bytes": 17,
    "layers": [{"bits": 4, "name": "blocks.0.proj"}, {"name": "proj_out", "kept": "by rule"}],
    "versions": {"plan": 1},
    "dims": [],
}


@pytest.mark.parametrize("with_rich", [True, False])
def test_print_report__shows_every_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, with_rich: bool
) -> None:
    if not with_rich:
        monkeypatch.setitem(__import__("sys").modules, "rich", None)
    output.print_report(REPORT)
    shown = capsys.readouterr().out
    for text in ("flux", "17", "blocks.0.proj", "proj_out", "by rule", "num bytes", "layers (2)"):
        assert text in shown, shown
    assert all(line == line.rstrip() for line in shown.splitlines())


def test_print_table__control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table("", ("name",), [["\x1b[2J[bold]x[/bold]"]])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b[2J[bold]x[/bold]" in shown


def test_print_json__infinity_becomes_null(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"psnr": [float("inf"), 1.5], "nan": float("nan"), "path": object})
    told = json.loads(capsys.readouterr().out)
    assert told["psnr"] == [None, 1.5]
    assert told["nan"] is None


def test_progress__plain_lines_open_and_close_each_stage() -> None:
    stream = io.StringIO()
    with progress_display(stream=stream) as show:
        assert isinstance(show, PlainLines)
        for stage, total in (("capture", 1), ("quantize", 3)):
            for done in range(total + 1):
                show(ProgressEvent(stage, done, total, "layer"))
        show(ProgressEvent("write", 1, 1))
    lines = [line.split(" in ")[0] for line in stream.getvalue().splitlines()]
    assert lines == [
        "capture ...",
        "capture: done",
        "quantize (3 steps) ...",
        "quantize: done",
        "write: done",
    ]


def test_progress__bars_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with progress_display(stream=stream) as show:
        for done in range(4):
            show(ProgressEvent("quantize", done, 3, f"layer {done}"))
    assert "quantize" in stream.getvalue()
    assert "3/3" in stream.getvalue()


def test_progress__quiet() -> None:
    stream = io.StringIO()
    with progress_display(quiet=True, stream=stream) as show:
        show(ProgressEvent("quantize", 0, 3))
    assert stream.getvalue() == ""


def test_progress_event__more_done_than_there_is() -> None:
    with pytest.raises(AssertionError, match="4 of 3"):
        ProgressEvent("quantize", 4, 3)
