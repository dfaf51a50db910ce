"""Compile generated C++ to a shared object: in parallel, cached by content, reproducible."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

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


class CompilationFailed(SvdqcError):
    """The C++ compiler rejected generated code, or died."""


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


def cache_folder() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/svdqc/kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "svdqc" / "kernels"


def build(
    kernels: Mapping[str, str],
    target: CpuTarget,
    jobs: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> bytes:
    """One shared object with every kernel (name → source). Kernels compiled before come from the cache."""
    compiler = find_compiler()
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    sources = {name: kernels[name] for name in sorted(kernels)}
    sources["svdq_code_abi"] = _ABI_SOURCE
    salt = hashlib.sha256(
        "\0".join([compiler.version, *BASE_FLAGS, *target.flags, _headers_digest()]).encode()
    ).hexdigest()
    objects = {
        name: folder / f"{hashlib.sha256((salt + text).encode()).hexdigest()}.o"
        for name, text in sources.items()
    }
    missing = [name for name in sources if not objects[name].exists()]
    done = len(sources) - len(missing)
    if progress is not None:
        progress(done, len(sources), "cached")
    with ThreadPoolExecutor(max_workers=jobs or os.cpu_count() or 1) as pool:
        futures = {
            name: pool.submit(_compile, compiler, target, name, sources[name], objects[name])
            for name in missing
        }
        try:
            for name, future in futures.items():
                future.result()
                done += 1
                if progress is not None:
                    progress(done, len(sources), name)
        except BaseException:
            for future in futures.values():
                future.cancel()
            raise
    return _link(compiler, [objects[name] for name in sources])


_ABI_SOURCE = """#include "svdq_kernel.h"
extern "C" SVDQ_KERNEL_EXPORT const uint32_t svdq_code_abi;
extern "C" const uint32_t svdq_code_abi = SVDQ_KERNEL_ABI;
"""


@cache
def _headers_digest() -> str:
    digest = hashlib.sha256()
    for folder in include_folders():
        for header in sorted(folder.rglob("*.h")):
            digest.update(header.name.encode() + header.read_bytes())
    return digest.hexdigest()


def _compile(compiler: Compiler, target: CpuTarget, name: str, source: str, result: Path) -> None:
    """Compile one kernel into the cache; the object appears whole, under its final name."""
    with tempfile.TemporaryDirectory(prefix="svdqc-") as work:
        path, obj = Path(work) / "kernel.cpp", Path(work) / "kernel.o"
        path.write_text(source)
        includes = [f"-I{folder}" for folder in include_folders()]
        command = [
            *compiler.command,
            *BASE_FLAGS,
            *target.flags,
            *includes,
            "-c",
            path.name,
            "-o",
            obj.name,
        ]
        _run(command, name, Path(work))
        partial = result.with_suffix(f".{os.getpid()}.{name[-8:]}.partial")
        try:
            shutil.copyfile(obj, partial)
            os.replace(partial, result)
        finally:
            partial.unlink(missing_ok=True)


def _link(compiler: Compiler, objects: list[Path]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="svdqc-") as work:
        library = Path(work) / "kernels.so"
        flags = (
            ["-shared", "-Wl,--build-id=none", "-Wl,-s"]
            if sys.platform.startswith("linux")
            else ["-shared"]
        )
        _run(
            [*compiler.command, *flags, *map(str, objects), "-o", str(library), "-lm"],
            "link",
            Path(work),
        )
        return library.read_bytes()


def _run(command: list[str], name: str, folder: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode != 0:
        detail = (
            "\n".join(done.stderr.strip().splitlines()[:12]) or f"exit status {done.returncode}"
        )
        raise CompilationFailed(
            "compile kernels",
            name,
            f"{command[0]} failed:\n{detail}",
            "check the compiler with `svdqc doctor`, or choose another with CXX=…",
        )
