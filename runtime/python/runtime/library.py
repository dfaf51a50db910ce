"""The C interface (runtime/include/svdq.h) through ctypes."""

from __future__ import annotations

import ctypes as c
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from svdqc.runtime.errors import BY_STATUS, InternalError, LibraryMissing

MAX_RANK = 8
ON_DEVICE = 0x100
TRUST_CODE, INSPECT_ONLY, CHECK_ALL_WEIGHTS, GPU = 1, 2, 4, 8
INPUT, OUTPUT = 0, 1
BAD_ARGUMENT = 13
DTYPES = ("f32", "f64", "f16", "bf16", "i8", "u8", "i16", "i32", "i64", "bool")


class Tensor(c.Structure):
    _fields_ = [
        ("name", c.c_char_p),
        ("data", c.c_void_p),
        ("dtype", c.c_int32),
        ("ndim", c.c_int32),
        ("shape", c.c_int64 * MAX_RANK),
    ]


class Port(c.Structure):
    _fields_ = [
        ("name", c.c_char_p),
        ("dtype", c.c_int32),
        ("ndim", c.c_int32),
        ("lo", c.c_int64 * MAX_RANK),
        ("hi", c.c_int64 * MAX_RANK),
    ]


class SessionOptions(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32),
        ("threads", c.c_uint32),
        ("profile", c.c_uint32),
        ("no_graphs", c.c_uint32),
        ("device", c.c_char_p),
    ]


class LaunchTime(c.Structure):
    _fields_ = [("label", c.c_char_p), ("kernel", c.c_char_p), ("microseconds", c.c_double)]


_POINTER = c.c_void_p
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "svdq_version": (c.c_char_p, []),
    "svdq_cpu_features": (c.c_char_p, []),
    "svdq_gpus": (c.c_char_p, []),
    "svdq_last_error": (c.c_char_p, []),
    "svdq_open": (c.c_int, [c.c_char_p, c.c_uint32, c.POINTER(_POINTER)]),
    "svdq_close": (None, [_POINTER]),
    "svdq_describe": (c.c_char_p, [_POINTER]),
    "svdq_get_port": (c.c_int, [_POINTER, c.c_int, c.c_size_t, c.POINTER(Port)]),
    "svdq_verify": (c.c_int, [_POINTER]),
    "svdq_session_create": (c.c_int, [_POINTER, c.POINTER(SessionOptions), c.POINTER(_POINTER)]),
    "svdq_session_destroy": (None, [_POINTER]),
    "svdq_output_shapes": (
        c.c_int,
        [_POINTER, c.POINTER(Tensor), c.c_size_t, c.POINTER(Tensor), c.c_size_t],
    ),
    "svdq_run": (c.c_int, [_POINTER, c.POINTER(Tensor), c.c_size_t, c.POINTER(Tensor), c.c_size_t]),
    "svdq_run_on_stream": (
        c.c_int,
        [_POINTER, _POINTER, c.POINTER(Tensor), c.c_size_t, c.POINTER(Tensor), c.c_size_t],
    ),
    "svdq_profile": (c.c_int, [_POINTER, c.POINTER(c.POINTER(LaunchTime)), c.POINTER(c.c_size_t)]),
}


def library_path() -> Path:
    """Beside this package when installed; in a source tree also build/runtime, whichever was built last."""
    name = "libsvdq.dylib" if sys.platform == "darwin" else "libsvdq.so"
    here = Path(__file__).resolve().parent  # <tree>/runtime/python/runtime
    candidates = [here / name]
    if len(here.parents) > 2:
        candidates.append(here.parents[2] / "build" / "runtime" / name)
    found = [candidate for candidate in candidates if candidate.is_file()]
    if not found:
        raise LibraryMissing([str(candidate.parent) for candidate in candidates])
    return max(found, key=lambda candidate: candidate.stat().st_mtime)


@cache
def library() -> c.CDLL:
    loaded = c.CDLL(str(library_path()))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype = result
        function.argtypes = arguments
    return loaded


def check(status: int) -> None:
    """Raise the error class of a failing status, with the library's message."""
    if status:
        raise BY_STATUS.get(status, InternalError)(
            library().svdq_last_error().decode(errors="replace")
        )


def version() -> str:
    return str(library().svdq_version().decode())


def cpu_features() -> tuple[str, ...]:
    """This CPU's instruction sets, in the spelling of a variant's isa_features."""
    return tuple(library().svdq_cpu_features().decode().split())


def gpus() -> dict[str, Any]:
    """What CUDA devices there are: {"driver": "13.0", "gpus": [{"device": "cuda:0", "name", "compute_capability",
    "target", "memory_bytes"}], "reason": why there are none}. Looks each time; a first look starts the driver."""
    found: dict[str, Any] = json.loads(library().svdq_gpus())
    return found
