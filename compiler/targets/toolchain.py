"""Compile generated C++ to a shared object: in parallel, cached by content, reproducible."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from svdqc.compiler.targets.compile_cache import (
    CompileJob,
    Progress,
    cache_folder,
    compile_all,
    digest,
    headers_digest,
    run_tool,
)
from svdqc.compiler.targets.cpu import CpuTarget
from svdqc.compiler.targets.folders import include_folders
from svdqc.errors import SvdqcError

BASE_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
    "-fno-rtti",
    "-ffp-contract=off",  # a product must round the same everywhere, or 4-bit codes would differ
    "-fopenmp-simd",
)


class NoCompiler(SvdqcError):
    """No C++ compiler was found."""


@dataclass(frozen=True)
class Compiler:
    """command: argv prefix; version: first line of --version."""

    command: tuple[str, ...]
    version: str


def find_compiler() -> Compiler:
    """$CXX, else g++, clang++, else the ziglang wheel."""
    chosen = os.environ.get("CXX")
    candidates: list[tuple[str, ...]]
    candidates = [tuple(shlex.split(chosen))] if chosen else [("g++",), ("clang++",)]
    if not chosen and find_spec("ziglang") is not None:
        candidates.append((sys.executable, "-m", "ziglang", "c++"))
    for command in candidates:
        if command and shutil.which(command[0]) is not None:
            version = _version(command)
            if version is not None:
                return Compiler(command, version)
    if chosen:
        raise NoCompiler(
            "compile",
            "CXX",
            f"$CXX is {chosen!r}, which does not run",
            "set it to a C++17 compiler, or unset it",
        )
    raise NoCompiler(
        "compile",
        "C++ compiler",
        "none found (tried $CXX, g++, clang++, ziglang)",
        "install g++ or clang++, or run: pip install ziglang",
    )


@cache
def _version(command: tuple[str, ...]) -> str | None:
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.partition("\n")[0] if done.returncode == 0 else None


def build(
    kernels: Mapping[str, str],
    target: CpuTarget,
    jobs: int = 0,
    progress: Progress | None = None,
) -> bytes:
    """One shared object with every kernel (name → source). Kernels compiled before come from the cache."""
    sources = {**kernels, "svdq_code_abi": _ABI_SOURCE}
    return build_shared_object(sources, (*BASE_FLAGS, *target.flags), jobs, progress)


def build_shared_object(
    sources: Mapping[str, str],
    flags: Sequence[str],
    jobs: int = 0,
    progress: Progress | None = None,
    folders: Sequence[Path] = (),
) -> bytes:
    """One shared object of these sources (name → C++), with the includes of `folders` (default: the CPU kernels')."""
    compiler = find_compiler()
    includes = list(folders) or include_folders()
    where = cache_folder()
    compiles: list[CompileJob] = []
    for name in sorted(sources):
        source = sources[name]
        key = digest([compiler.version, *flags, headers_digest(source, includes), source])
        command = [*compiler.command, *flags, *(f"-I{folder}" for folder in includes)]
        command += ["-c", "kernel.cpp", "-o", "kernel.o"]
        compiles.append(
            CompileJob(
                name,
                source,
                "kernel.cpp",
                "kernel.o",
                tuple(command),
                where / f"{key}.o",
                remedy=_REMEDY,
            )
        )
    compile_all(compiles, jobs, progress)
    return _link(compiler, [job.result for job in compiles])


_REMEDY = "check the compiler with `svdqc doctor`, or choose another with CXX=…"

_ABI_SOURCE = """#include "svdq_kernel.h"
extern "C" SVDQ_KERNEL_EXPORT const uint32_t svdq_code_abi;
extern "C" const uint32_t svdq_code_abi = SVDQ_KERNEL_ABI;
"""


def _link(compiler: Compiler, objects: list[Path]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="svdqc-") as work:
        library = Path(work) / "kernels.so"
        flags = (
            ["-shared", "-Wl,--build-id=none", "-Wl,-s"]
            if sys.platform.startswith("linux")
            else ["-shared"]
        )
        command = [*compiler.command, *flags, *map(str, objects), "-o", str(library), "-lm"]
        run_tool(command, "link", Path(work), _REMEDY)
        return library.read_bytes()
