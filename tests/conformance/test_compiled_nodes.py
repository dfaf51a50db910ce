"""ONNX's node tests compiled to artifacts and run by the C++ runtime, against ONNX's expected outputs.

`compiled_nodes.txt` lists the cases. One that is refused has there what its error names; a case that runs
though it is listed as refused fails the test, and so does one that is refused without being listed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest

from svdqc.errors import SvdqcError

sys.path.insert(0, str(Path(__file__).parent))

from compiled import CompiledCase, build_together, prepare, run_compiled
from test_onnx_nodes import difference, node_cases, raised, tensor_of

LIST = Path(__file__).with_name("compiled_nodes.txt")
FEWEST = 150
"""So many cases run at least: a test that found nothing must not pass."""


def listed() -> dict[str, str]:
    """Case → what its refusal names, or nothing."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    entries = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    assert len(entries) == len({name for name, _, _ in entries}), "a case is listed twice"
    return {name: refused.strip() for name, _, refused in entries}


@pytest.mark.slow
def test_compiled_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {case.name: case for case in node_cases()}
    wrong: list[str] = []
    ready: list[CompiledCase] = []
    num_refused = 0
    for name, refused in listed().items():
        model = onnx.ModelProto()
        model.CopyFrom(cases[name].model)
        inputs, outputs = cases[name].data_sets[0]
        try:
            case = prepare(name, raised(model), inputs, outputs, tensor_of)
        except SvdqcError as error:
            num_refused += 1
            if not refused or refused not in str(error):
                wrong.append(f"{name}: refused, and listed as {refused!r}: {error}")
            continue
        if refused:
            wrong.append(f"{name}: listed as refused for {refused}, but it compiles")
        ready.append(case)
    code = build_together(ready)
    for case in ready:
        spec = cases[case.name]
        for found, expected in zip(run_compiled(case, code, tmp_path), case.expected, strict=True):
            reason = difference(found, expected, spec.rtol, spec.atol)
            if reason is not None:
                wrong.append(f"{case.name}: {reason}")
    with capsys.disabled():
        print(f"\nONNX node tests compiled: {len(ready)} run, {num_refused} refused")
    assert len(ready) >= FEWEST
    assert not wrong, "\n".join(wrong)
