"""The library itself: small, with few needs, exporting its interface and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.runtime import tiny

from svdqc.runtime import cpu_features, version
from svdqc.runtime.library import library_path

HEADER = (tiny.INCLUDE / "svdq.h").read_text()
SYSTEM = {
    "libc",
    "libm",
    "libstdc++",
    "libgcc_s",
    "libdl",
    "libpthread",
    "ld-linux-x86-64",
    "ld-linux-aarch64",
}


def tool(name: str, *arguments: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def test_library__is_small(tmp_path: Path) -> None:
    shutil.copy(library_path(), tmp_path / "lib.so")
    tool("strip", str(tmp_path / "lib.so"))
    assert (tmp_path / "lib.so").stat().st_size < 320_000


def test_library__needs_only_the_c_and_cpp_runtimes() -> None:
    needed = re.findall(r"NEEDED.*\[(\S+?)\.so", tool("readelf", "-d", str(library_path())))
    assert needed
    assert set(needed) <= SYSTEM


def test_library__exports_the_header_and_nothing_else() -> None:
    exported = set(re.findall(r" T (\w+)", tool("nm", "-D", "--defined-only", str(library_path()))))
    declared = set(re.findall(r"\b(svdq_\w+)\(", re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)))
    assert exported == declared


@pytest.mark.parametrize(("compiler", "standard"), [("gcc", "c99"), ("g++", "c++17")])
def test_library__headers_stand_alone(tmp_path: Path, compiler: str, standard: str) -> None:
    for header in ("svdq.h", "svdq_kernel.h"):
        source = tmp_path / ("a.c" if compiler == "gcc" else "a.cpp")
        source.write_text(f'#include "{header}"\n#include "{header}"\n')
        tool(compiler, f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{tiny.INCLUDE}", "-c",
             str(source), "-o", str(tmp_path / "a.o"))  # fmt: skip


def test_library__names_itself_and_the_cpu() -> None:
    assert re.fullmatch(r"svdq \S+ \(container 1\.0, plan 2\)", version())
    assert list(cpu_features()) == sorted(set(cpu_features()))


def test_library__sees_the_cpu_as_the_kernel_does() -> None:
    """/proc/cpuinfo spells some names with an underscore."""
    lines = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
    ]
    if not lines:
        pytest.skip("no x86 flags in /proc/cpuinfo")
    seen = {flag.replace("_", "") for flag in lines[0].split()}
    renamed = {"sse3": "pni", "bmi": "bmi1", "sse4.1": "sse41", "sse4.2": "sse42",
               "amx-tile": "amxtile", "amx-int8": "amxint8", "amx-bf16": "amxbf16"}  # fmt: skip
    for feature in cpu_features():
        assert renamed.get(feature, feature) in seen, feature
    for feature in ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni"):
        assert (feature in cpu_features()) == (feature in seen), feature
