"""The tests of tests/cuda with their launches on the GPU, in processes of their own: a lost GPU costs one of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "test_elements.py",
    "test_gemm_int.py",
    "test_gemm_wgmma.py",
    "test_wgmma_programs.py",
    "test_gemm_float.py",
    "test_gemm_nvfp4.py",
    "test_gemm_programs.py",
    "test_nvfp4_programs.py",
    "test_attention_mma.py",
    "test_attention_programs.py",
    "test_models.py",
)
"""Those that compare values; test_intrinsics.py asks the host back end about mistakes that would hang a GPU."""


def check(step: Any, folder: Path, seconds: float) -> None:
    """Fill in a Step of check.py: a row per file, failed tests by name."""
    files = [ROOT / "tests" / "cuda" / name for name in FILES]
    present = [file for file in files if file.is_file() and _importable(file)]
    left_out = [file.name for file in files if file not in present]
    report = folder / "kernels.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.gpu.on_gpu", "-p", "no:cacheprovider",
               f"--junitxml={report}", *map(str, present)]  # fmt: skip
    if find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1))]  # compiling takes the time
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds
        )
        output, finished = done.stdout + done.stderr, True
    except subprocess.TimeoutExpired as error:
        output, finished = str(error.stdout or ""), False
    (folder / "kernels.log").write_text(output)
    counts = _read(report, step.rows) if report.is_file() else {"passed": 0, "failed": 0}
    launches = re.findall(r"(\d[\d,]*) launches", output)
    step.note = f"{counts['passed']} passed, {counts['failed']} failed"
    step.note += f"; {launches[-1]} launches" if launches else ""
    step.note += f"; not here: {', '.join(left_out)}" if left_out else ""
    if not finished:
        step.note += f"; stopped after {seconds:.0f} s"
    if not report.is_file():
        step.note += "; " + " | ".join(output.strip().splitlines()[-3:])[-300:]
    good = finished and counts["passed"] > 0 and counts["failed"] == 0
    step.state = "passed" if good else "failed"


def _importable(file: Path) -> bool:
    """Whole models of the frontends' zoo need diffusers."""
    return "test_zoo" not in file.read_text() or find_spec("diffusers") is not None


def _read(report: Path, rows: list[dict[str, Any]]) -> dict[str, int]:
    totals = {"passed": 0, "failed": 0}
    by_file: dict[str, dict[str, int]] = {}
    failures = []
    for case in ET.parse(report).iter("testcase"):
        name = case.get("classname", "").rsplit(".", 1)[-1]
        counts = by_file.setdefault(name, {"passed": 0, "failed": 0, "skipped": 0})
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        if wrong is not None:
            counts["failed"] += 1
            why = (wrong.get("message") or "").split("\n")[0][:160]
            failures.append({"file": name, "test": case.get("name", ""), "why": why})
        else:
            counts["skipped" if case.find("skipped") is not None else "passed"] += 1
    for name, counts in by_file.items():
        rows.append({"file": name, **counts})
        totals["passed"] += counts["passed"]
        totals["failed"] += counts["failed"]
    rows.extend(failures[:50])
    return totals
