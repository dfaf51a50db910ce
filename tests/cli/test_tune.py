"""svdqc tune, from a model to a tuned artifact, and what it refuses before any work. In this process: torch is loaded
once."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.cli.conftest import HERE, Ran

from svdqc.compiler.cli.app import run
from svdqc.compiler.cli.commands.inspect import _readable
from svdqc.compiler.cli.output import print_report
from svdqc.compiler.driver import tune as driver
from svdqc.compiler.tune.child import Request, Timing
from svdqc.compiler.tune.search import search

TINY = ("tiny_models:rows", "--candidates", "1")
"""Three kernels of rows, which compile in a moment."""


Command = Callable[..., Ran]


@pytest.fixture
def svdqc(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """A command line, run in the folder of tiny_models.py on a machine without a GPU."""
    monkeypatch.chdir(HERE)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    monkeypatch.setenv("SVDQ_CUDA_DRIVER", "/nowhere/libcuda.so.1")

    def command(*arguments: object) -> Ran:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Ran(code, *capsys.readouterr())

    return command


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tune__then_compile_then_inspect(svdqc: Command, tmp_path: Path) -> None:
    path, artifact = tmp_path / "a.tune", tmp_path / "a.svdq"
    ran = svdqc("tune", *TINY, "-o", path, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    (target,) = told["machines"]
    assert [k["state"] for k in told["kernels"]] == ["tuned"] * 3
    assert len(lines(path)) == 3
    assert 0 < told["estimate_us"][target]["tuned"] <= told["estimate_us"][target]["analytic"]

    again = svdqc("tune", *TINY, "-o", path)
    assert again.code == 0, again.err
    assert again.out.count("skipped") == 3
    assert "ratio" in again.out
    assert len(lines(path)) == 3

    ran = svdqc("compile", TINY[0], "-o", artifact, "--tuning", path)
    assert ran.code == 0, ran.err
    assert f"{target}: 3 of 3 kernels tuned" in ran.out
    shown = svdqc("inspect", artifact)
    assert "3 of 3 kernels" in shown.out
    assert told["machines"][target].split(" (")[0] in shown.out


def test_compile__tuning_of_another_machine_says_so(svdqc: Command, tmp_path: Path) -> None:
    path = tmp_path / "empty.tune"
    path.touch()
    ran = svdqc("compile", TINY[0], "-o", tmp_path / "a.svdq", "--tuning", path)
    assert ran.code == 0, ran.err
    assert "no kernel is tuned" in ran.out
    assert "svdqc tune" in ran.out


def test_tune__no_time_is_said(svdqc: Command, tmp_path: Path) -> None:
    ran = svdqc("tune", *TINY, "-o", tmp_path / "a.tune", "--budget-seconds", "0", "--json")
    assert ran.code == 0, ran.err
    assert [k["state"] for k in json.loads(ran.out)["kernels"]] == ["no time left"] * 3


def test_tune__interrupted_says_what_is_kept(
    svdqc: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at the second kernel: the first one's record is in the file."""
    asked: list[Request] = []

    def interrupted(request: Request) -> Timing:
        asked.append(request)
        if len(asked) > 2:  # a candidate, and the same again
            raise KeyboardInterrupt
        return Timing(1.0, 2.0, 5)

    monkeypatch.setattr(driver, "search", partial(search, measure=interrupted))
    path = tmp_path / "a.tune"
    ran = svdqc("tune", *TINY, "-o", path)
    assert ran.code == 130
    assert f"kept in {path}" in ran.err
    assert [line["complete"] for line in lines(path)] == [True]


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        (("tiny_models:mlp", "-o", "/nowhere/a.tune"), ("output", "/nowhere")),
        (("tiny_models:mlp", "-o", "tiny_models.py"), ("line 1", "tuning record")),
        (("/nowhere/model.onnx", "-o", "OUT"), ("/nowhere/model.onnx", "no such")),
        (("tiny_models:unsupported", "-o", "OUT"), ("cummax", "logcumsumexp")),
        (("tiny_models:mlp", "-o", "OUT", "--rank", "auto"), ("ranks", "--rank 32")),
        (("tiny_models:mlp", "-o", "OUT", "--target", "cuda:sm_80"), ("driver", "--target cpu")),
        (("tiny_models:mlp", "-o", "OUT", "--device", "abacus"), ("abacus", "cuda:0")),
    ],
)
def test_tune__refuses_and_leaves_nothing(
    svdqc: Command, tmp_path: Path, options: tuple[str, ...], saying: tuple[str, ...]
) -> None:
    out = str(tmp_path / "a.tune")
    ran = svdqc("tune", *(out if text == "OUT" else text for text in options))
    assert ran.code == 2, ran.out
    assert all(part in ran.err for part in saying), ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("provenance", [3, "text", {"tuning": []}, {"tuning": {"tuned": None}}])
def test_inspect__survives_any_provenance(provenance: object) -> None:
    """A file from elsewhere may hold anything there."""
    shown = _readable({"variants": [{"target": "cpu:avx2", "provenance": provenance}]})
    print_report(shown)
    assert shown["provenance"][0]["target"] == "cpu:avx2"
    assert "provenance" not in shown["variants"][0]
