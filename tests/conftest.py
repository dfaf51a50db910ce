"""What every test relies on: the edited sources are what is tested, and workers share the cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.cuda.summary import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]

REPOSITORY = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has one core: threads of torch and BLAS would only get in each other's way.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write golden files instead of comparing"
    )


def pytest_configure(config: pytest.Config) -> None:
    import svdqc

    loaded = Path(svdqc.__file__ or "").resolve()
    expected = REPOSITORY / "runtime" / "python" / "__init__.py"
    if loaded != expected:
        raise pytest.UsageError(
            f"svdqc was loaded from {loaded}, not from {expected}: run `make setup`"
        )
