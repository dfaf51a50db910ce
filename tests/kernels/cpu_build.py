"""Compile a C++ harness of tests/kernels/cpp for one instruction set and load it.

    library = build_harness("gemm_f32.cpp", "avx512", folder)        # ctypes.CDLL
    call(library.run_gemm_f32, rows, k, x, ...)                      # numpy arrays pass as pointers, ints as int64

ISAS lists the instruction sets that this machine can run; `SVDQ_CXX` names another compiler than g++.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "templates" / "cpu" / "include"
HARNESSES = Path(__file__).resolve().parent / "cpp"

AVX512_FLAGS = (
    "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c -mprefer-vector-width=512"
)
ISA_FLAGS: dict[str, list[str]] = {
    "avx512_bf16": [*AVX512_FLAGS.split(), "-mavx512bf16"],
    "avx512": AVX512_FLAGS.split(),
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "portable": [],
}
ISA_NEEDS: dict[str, set[str]] = {
    "avx512_bf16": {"avx512vl", "avx512_vnni", "avx512_bf16"},
    "avx512": {"avx512vl", "avx512bw", "avx512dq", "avx512_vnni"},
    "avx2": {"avx2", "fma", "f16c"},
    "portable": set(),
}
BASE_FLAGS = [
    *("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
    *("-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"),
]


def cpu_flags() -> set[str]:
    """The feature names of /proc/cpuinfo (none where that file is missing)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    lines = [line for line in text.splitlines() if line.startswith("flags")]
    return set(lines[0].split(":", 1)[1].split()) if lines else set()


ISAS = [isa for isa, needs in ISA_NEEDS.items() if needs <= cpu_flags()]


def build_library(source: str, isa: str, folder: Path) -> Path:
    """Compile one harness; warnings are errors."""
    library = folder / f"{Path(source).stem}_{isa}.so"
    command = [
        *(os.environ.get("SVDQ_CXX", "g++").split()),
        *BASE_FLAGS,
        *ISA_FLAGS[isa],
        f"-I{INCLUDE}",
        str(HARNESSES / source),
        "-o",
        str(library),
        "-lm",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


def build_harness(source: str, isa: str, folder: Path) -> ctypes.CDLL:
    """Compile one harness and load it."""
    return ctypes.CDLL(str(build_library(source, isa, folder)))


def call(function: Any, *arguments: Any) -> None:
    """Call a void C function: arrays and tensors become pointers, ints int64, floats float."""
    converted: list[Any] = []
    for argument in arguments:
        if argument is None:
            converted.append(ctypes.c_void_p(None))
        elif isinstance(argument, np.ndarray):
            converted.append(ctypes.c_void_p(argument.ctypes.data))
        elif isinstance(argument, torch.Tensor):
            converted.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, bool | int | np.integer):
            converted.append(ctypes.c_int64(int(argument)))
        elif isinstance(argument, float):
            converted.append(ctypes.c_float(argument))
        else:
            raise TypeError(f"cannot pass {type(argument)}")
    function.restype = None
    function(*converted)


def poisoned_scratch(num_bytes: int) -> np.ndarray:
    """`num_bytes` of scratch memory, 64-byte aligned, filled with NaN patterns so that reading it unwritten shows."""
    raw = np.full(num_bytes + 64, 0xFF, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + num_bytes]
