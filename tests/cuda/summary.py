"""The lines about CUDA kernels at the end of a test run: launches compared, instructions per tensor-core operation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

HEADER = ("kernel", "architecture", "operation", "in loop", "per operation", "budget", "registers")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    launches = list(_properties(terminalreporter, "host_launches"))
    rows = sorted(_properties(terminalreporter, "sass_loop"))
    if not launches and not rows:
        return
    terminalreporter.section("CUDA kernels")
    if launches:
        count = f"{sum(launches)} launches in {len(launches)} tests"
        terminalreporter.write_line(f"on the host back end, compared with the reference: {count}")
    if rows:
        terminalreporter.write_line("instructions per tensor-core operation in the inner loop:")
    table = [
        (name, arch, opcode, str(ops), f"{per_op:.2f}", f"{budget:g}", str(registers))
        for name, arch, opcode, ops, per_op, budget, registers in rows
    ]
    for row in [HEADER, *table] if table else []:
        widths = [max(len(r[i]) for r in [HEADER, *table]) for i in range(len(HEADER))]
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        terminalreporter.write_line("  ".join(cells).rstrip())


def _properties(terminalreporter: Any, name: str) -> Iterator[Any]:
    """The values that passed tests recorded under `name`."""
    for report in terminalreporter.stats.get("passed", []):
        if isinstance(report, pytest.TestReport):
            yield from (value for key, value in report.user_properties if key == name)
