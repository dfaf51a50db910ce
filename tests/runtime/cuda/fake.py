"""The fake CUDA driver (fake.h), built once per content and driven from Python."""

from __future__ import annotations

import ctypes as c
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
RUNTIME_SOURCES = REPOSITORY / "runtime" / "src"


@cache
def build_driver() -> Path:
    """A libcuda.so.1 over host memory; in build/, since compiling it takes seconds."""
    sources = sorted(HERE.glob("fake_*.cpp"))
    read = [*sources, HERE / "fake.h", RUNTIME_SOURCES / "cuda_api.h"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in read)).hexdigest()[:16]
    folder = REPOSITORY / "build" / "fake-cuda" / digest
    library = folder / "libcuda.so.1"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be building it
        if not library.is_file():
            partial = folder / f"partial.{os.getpid()}"
            flags = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
            flags += ["-fvisibility=hidden", f"-I{RUNTIME_SOURCES}"]
            command = [compiler(), *flags, *map(str, sources), "-ldl", "-o", str(partial)]
            subprocess.run(command, check=True)
            partial.rename(library)
    return library


def compiler() -> str:
    return shutil.which("g++") or shutil.which("c++") or "c++"


@cache
def driver() -> c.CDLL:
    """The same library that the runtime loads when SVDQ_CUDA_DRIVER names it."""
    library = c.CDLL(str(build_driver()))
    library.fake_cuda_report.restype = c.c_char_p
    library.fake_cuda_reset.argtypes = [c.c_char_p]
    library.fake_cuda_capture.argtypes = [c.c_void_p, c.c_int]
    return library


def reset(settings: str = "") -> int:
    """Forget everything and take new settings (fake.h). The number of things that were still alive, then refused."""
    return int(driver().fake_cuda_reset(settings.encode()))


def report() -> dict[str, Any]:
    """violations, context_depth, live, peak_bytes, calls."""
    found: dict[str, Any] = json.loads(driver().fake_cuda_report())
    return found


def cubin(capability: int, payload: bytes = b"") -> bytes:
    """A header that says CUDA code for this architecture (80: sm_80), as nvcc 13 writes it, and nothing behind it."""
    header = bytearray(64)
    header[:9] = b"\x7fELF\x02\x01\x01\x41\x08"
    header[16:20] = (2).to_bytes(2, "little") + (190).to_bytes(2, "little")
    header[20] = 1
    header[48:52] = (0x06000004 | capability << 8).to_bytes(4, "little")
    header[52] = 64
    return bytes(header) + payload


def archive(cubins: dict[str, bytes]) -> bytes:
    """A code section: cubins by kernel (runtime/FORMAT.md, "Code")."""
    ordered = sorted((name.encode(), data) for name, data in cubins.items())
    names = b"".join(name for name, _ in ordered)
    name_at = 16 + 32 * len(ordered)
    at = name_at + len(names)
    head = b"SVDQCUBN" + (1).to_bytes(4, "little") + len(ordered).to_bytes(4, "little")
    body = b""
    for name, data in ordered:
        begin = -(-at // 64) * 64
        body += bytes(begin - at) + data
        fields = (name_at.to_bytes(4, "little"), len(name).to_bytes(4, "little"), begin.to_bytes(8, "little"),
                  len(data).to_bytes(8, "little"), bytes(8))  # fmt: skip
        head += b"".join(fields)
        name_at += len(name)
        at = begin + len(data)
    return head + names + body
