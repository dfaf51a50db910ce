"""Find what CUDA kernels are compiled with: nvcc and its parts, from the system or from pip; CUTLASS headers from pip.

No driver and no GPU is needed. The order: $NVCC, $CUDA_HOME (or $CUDA_PATH), nvcc on the PATH, /usr/local/cuda, the
wheels of `svdqc[cuda]`. What was named must work; of the others the first that is new enough and of one piece is taken.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from svdqc.errors import SvdqcError

# sm_100a and sm_120a are known to nvcc from here on.
MINIMUM_VERSION = (12, 8)
INSTALL = "pip install 'svdqc[cuda]'"
WHEELS = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime")


class NoNvcc(SvdqcError):
    """No nvcc was found."""


class BrokenNvcc(SvdqcError):
    """The nvcc that was named does not run."""


class NvccTooOld(SvdqcError):
    """An nvcc that does not know the architectures of this version's targets."""


class MixedToolkit(SvdqcError):
    """nvcc, crt, nvvm or ptxas are of different versions: their intermediate files do not fit together."""


class IncompleteToolkit(SvdqcError):
    """An nvcc without one of the programs that it calls."""


class NoHostCompiler(SvdqcError):
    """nvcc needs g++ or clang++ to preprocess."""


@dataclass(frozen=True)
class Nvcc:
    """An nvcc that was checked.

    path of nvcc; version "13.0.88"; parts: (component, version), of one release; host: the C++ compiler that nvcc calls
    """

    path: Path
    version: str
    parts: tuple[tuple[str, str], ...]
    host: str


def find_nvcc() -> Nvcc:
    """The nvcc to compile with, checked; the errors say what to install."""
    refusals: list[SvdqcError] = []
    for origin, path in _candidates():
        named = origin.startswith("$")
        try:
            return _checked(origin, path, path.resolve() == _resolved(_wheel_nvcc()))
        except SvdqcError as error:
            if named:
                raise
            refusals.append(error)
    if refusals:
        raise refusals[-1]
    raise NoNvcc(
        "compile",
        "nvcc",
        "none found (tried $NVCC, $CUDA_HOME, the PATH, /usr/local/cuda, pip's packages)",
        f"run: {INSTALL}",
    )


def cutlass_include() -> Path | None:
    """The C++ headers of the nvidia-cutlass package; None where it is not installed."""
    spec = find_spec("cutlass_library")
    for folder in spec.submodule_search_locations or () if spec else ():
        include = Path(folder) / "source" / "include"
        if (include / "cutlass" / "cutlass.h").is_file():
            return include
    return None


def _candidates() -> Iterator[tuple[str, Path]]:
    """(where from, path of nvcc) in order of preference; a path named by a variable need not exist."""
    if os.environ.get("NVCC"):
        named = shutil.which(os.environ["NVCC"])
        yield "$NVCC", Path(named or os.environ["NVCC"])
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield f"${variable}", Path(os.environ[variable]) / "bin" / "nvcc"
    on_path = shutil.which("nvcc")
    if on_path is not None:
        yield "the PATH", Path(on_path)
    usual = Path("/usr/local/cuda/bin/nvcc")
    if usual.is_file():
        yield "/usr/local/cuda", usual
    wheel = _wheel_nvcc()
    if wheel is not None:
        yield "pip", wheel


def _wheel_nvcc() -> Path | None:
    try:
        distribution = importlib.metadata.distribution(WHEELS[0])
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in distribution.files or ():
        if file.name == "nvcc" and file.parent.name == "bin":
            path = Path(str(distribution.locate_file(file)))
            return path if path.is_file() else None
    return None


def _resolved(path: Path | None) -> Path | None:
    return path.resolve() if path else None


def _checked(origin: str, path: Path, is_wheel: bool) -> Nvcc:
    version = tool_version(path)
    if version is None:
        raise BrokenNvcc(
            "compile",
            "nvcc",
            f"{path} (from {origin}) does not run",
            f"correct {origin}, or unset it and run: {INSTALL}",
        )
    if tuple(map(int, version.split(".")[:2])) < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        raise NvccTooOld(
            "compile",
            "nvcc",
            f"{path} is version {version}, and {needed} is needed",
            f"update the CUDA toolkit, or run: {INSTALL}",
        )
    parts = wheel_parts() if is_wheel else _toolkit_parts(path, version)
    release = {".".join(part.split(".")[:2]) for _, part in parts}
    # A wheel's patch level counts too: ptxas rejects what a later cicc writes.
    exact = {part for name, part in parts if name != "nvidia-cuda-runtime"}
    if len(release) > 1 or (is_wheel and len(exact) > 1):
        told = ", ".join(f"{name} {part}" for name, part in parts)
        raise MixedToolkit(
            "compile", "nvcc", f"its parts differ: {told}", f"install one version: {INSTALL}"
        )
    if is_wheel and len(parts) < len(WHEELS):
        absent = ", ".join(sorted(set(WHEELS) - {name for name, _ in parts}))
        raise IncompleteToolkit("compile", "nvcc", f"absent beside it: {absent}", f"run: {INSTALL}")
    missing = [name for name, program in _programs(path).items() if not program.is_file()]
    if missing:
        raise IncompleteToolkit(
            "compile",
            "nvcc",
            f"{path} (from {origin}) lacks {', '.join(missing)}",
            f"install the whole toolkit, or run: {INSTALL}",
        )
    host = os.environ.get("NVCC_CCBIN") or shutil.which("g++") or shutil.which("clang++")
    if host is None:
        raise NoHostCompiler(
            "compile", "nvcc", "found neither g++ nor clang++, which it calls", "install g++"
        )
    return Nvcc(path, version, parts, host)


def wheel_parts() -> tuple[tuple[str, str], ...]:
    """(distribution, version) of each of WHEELS that is installed."""
    parts = []
    for name in WHEELS:
        try:
            parts.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(parts)


def _toolkit_parts(nvcc: Path, version: str) -> tuple[tuple[str, str], ...]:
    """Versions of nvcc and of the ptxas that it calls."""
    ptxas = _programs(nvcc).get("ptxas", nvcc.with_name("ptxas"))
    if not ptxas.is_file():
        return (("nvcc", version),)
    return (("nvcc", version), ("ptxas", tool_version(ptxas) or "unknown"))


@cache
def _programs(nvcc: Path) -> dict[str, Path]:
    """The parts that nvcc would call, as it says itself (nvcc on the PATH may be a script); empty where it does not."""
    command = [str(nvcc), "--dryrun", "-x", "cu", "-cubin", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    said = dict(re.findall(r"^#\$ (_HERE_|CICC_PATH)=(.*)$", done.stderr, re.MULTILINE))
    if len(said) < 2:
        return {}
    return {"ptxas": Path(said["_HERE_"]) / "ptxas", "cicc": Path(said["CICC_PATH"]) / "cicc"}


@cache
def tool_version(path: Path) -> str | None:
    """ "13.0.88" of a CUDA tool that prints "release 13.0, V13.0.88"; None if it does not run."""
    try:
        done = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bV(\d+\.\d+\.\d+)", done.stdout)
    return found.group(1) if done.returncode == 0 and found else None
