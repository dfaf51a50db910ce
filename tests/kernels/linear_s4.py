"""The harness cpp/linear_s4.cpp, compiled once for all tests that use it."""

from __future__ import annotations

import ctypes
import functools
import tempfile
from pathlib import Path

from tests.kernels.cpu_build import build_harness


@functools.cache
def load_linear_s4(isa: str) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        return build_harness("linear_s4.cpp", isa, Path(folder))
