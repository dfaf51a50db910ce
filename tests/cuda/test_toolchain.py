"""The CUDA toolchain: what is found, what is said of what is not, and what is built from it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cuda.sass import require_nvcc

from svdqc.compiler.targets import compile_cache, cuda_build, cuda_toolchain
from svdqc.compiler.targets.compile_cache import CompilationFailed, CompileJob, compile_all
from svdqc.compiler.targets.cuda import SM_75, SM_90A, SM_100A
from svdqc.compiler.targets.cuda_archive import ALIGNMENT, pack_cubins, unpack_cubins
from svdqc.compiler.targets.cuda_toolchain import (
    WHEELS,
    BrokenNvcc,
    IncompleteToolkit,
    MixedToolkit,
    NoHostCompiler,
    NoNvcc,
    NvccTooOld,
    find_nvcc,
)
from svdqc.compiler.targets.folders import cuda_include_folders

KERNEL = """#include "svdq_cuda/kernel.h"
SVDQ_CUDA_KERNEL(fill, 32, 1, 0, 1, 1) {
  static_cast<int64_t*>(args.buffers[0])[svdq::thread_id()] = args.scalars[0];
}
"""


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any CUDA toolkit."""
    for variable in ("NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(cuda_toolchain, "_candidates", _named_only)
    monkeypatch.setattr(cuda_toolchain, "_wheel_nvcc", lambda: None)


def _named_only() -> list[tuple[str, Path]]:
    named = os.environ.get("NVCC")
    return [("$NVCC", Path(named))] if named else []


def tool(folder: Path, name: str, release: str) -> Path:
    """A program that says it is this release of a CUDA tool."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "release {release.rpartition(".")[0]}, V{release}"\n')
    path.chmod(0o755)
    return path


def test_no_nvcc(bare: None) -> None:
    with pytest.raises(NoNvcc, match=r"tried \$NVCC.*pip install 'svdqc\[cuda\]'"):
        find_nvcc()


def test_the_named_nvcc_must_run(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVCC", str(tmp_path / "absent"))
    with pytest.raises(BrokenNvcc, match=r"\$NVCC\) does not run; correct \$NVCC"):
        find_nvcc()


def test_an_old_nvcc(bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", str(tool(tmp_path, "nvcc", "12.4.131")))
    with pytest.raises(NvccTooOld, match=r"is version 12\.4\.131, and 12\.8 is needed"):
        find_nvcc()


def test_parts_of_two_releases(bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", str(tool(tmp_path, "nvcc", "13.0.88")))
    tool(tmp_path, "ptxas", "12.9.86")
    with pytest.raises(MixedToolkit, match=r"nvcc 13\.0\.88, ptxas 12\.9\.86"):
        find_nvcc()
    tool(tmp_path, "ptxas", "13.0.72")
    cuda_toolchain.tool_version.cache_clear()
    assert find_nvcc().version == "13.0.88"


def test_wheels_must_be_one_version(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tool(tmp_path, "nvcc", "13.0.88")
    monkeypatch.setattr(cuda_toolchain, "_candidates", lambda: [("pip", nvcc)])
    monkeypatch.setattr(cuda_toolchain, "_wheel_nvcc", lambda: nvcc)

    def installed(**versions: str) -> Callable[[], Any]:
        parts = tuple((name, versions.get(name.replace("-", "_"), "13.0.88")) for name in WHEELS)
        return lambda: tuple(part for part in parts if part[1])

    monkeypatch.setattr(cuda_toolchain, "wheel_parts", installed())
    assert find_nvcc().parts == tuple((name, "13.0.88") for name in WHEELS)
    monkeypatch.setattr(cuda_toolchain, "wheel_parts", installed(nvidia_nvvm="13.0.96"))
    with pytest.raises(MixedToolkit, match=r"nvidia-nvvm 13\.0\.96.*one version: pip install"):
        find_nvcc()
    monkeypatch.setattr(cuda_toolchain, "wheel_parts", installed(nvidia_cuda_crt=""))
    with pytest.raises(IncompleteToolkit, match="absent beside it: nvidia-cuda-crt"):
        find_nvcc()


def test_a_part_that_nvcc_calls_is_absent(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tool(tmp_path / "bin", "nvcc", "13.0.88")
    says = f'echo "#\\$ _HERE_={tmp_path}/bin" >&2; echo "#\\$ CICC_PATH={tmp_path}/nvvm/bin" >&2\n'
    nvcc.write_text(nvcc.read_text() + says)
    tool(tmp_path / "bin", "ptxas", "13.0.88")
    monkeypatch.setenv("NVCC", str(nvcc))
    with pytest.raises(IncompleteToolkit, match=r"lacks cicc; install the whole toolkit"):
        find_nvcc()
    tool(tmp_path / "nvvm" / "bin", "cicc", "13.0.88")
    assert find_nvcc().parts == (("nvcc", "13.0.88"), ("ptxas", "13.0.88"))


def test_a_host_compiler_is_needed(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVCC", str(tool(tmp_path, "nvcc", "13.0.88")))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoHostCompiler, match=r"neither g\+\+ nor clang\+\+"):
        find_nvcc()


def test_an_unfit_nvcc_gives_way_to_the_next(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tool(tmp_path / "old", "nvcc", "11.8.89"), tool(tmp_path / "new", "nvcc", "13.0.88")
    monkeypatch.setattr(
        cuda_toolchain, "_candidates", lambda: [("the PATH", old), ("/usr/local/cuda", new)]
    )
    assert find_nvcc().path == new


def test_cubins_are_cached_and_do_not_depend_on_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_nvcc()
    sources = {name: KERNEL.replace("fill", name) for name in ("fill", "flood")}
    seen: list[tuple[int, int, str]] = []
    sections = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        monkeypatch.setattr(cuda_build, "cache_folder", lambda folder=folder: folder)
        progress = lambda *step: seen.append(step)  # noqa: E731
        sections.append(cuda_build.build_cuda(sources, SM_90A, jobs, progress))
        assert len(list(folder.glob("*.cubin"))) == 2
        assert not list(folder.glob("*.partial"))
    assert sections[0] == sections[1]
    assert seen[0] == (0, 2, "cached")
    assert seen[-1][:2] == (2, 2)

    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: _without_compiler(find_nvcc()))
    assert cuda_build.build_cuda(sources, SM_90A) == sections[1]  # nothing is compiled again
    cubins = unpack_cubins(sections[0])
    assert sorted(cubins) == ["fill", "flood"]
    assert all(cubin.startswith(b"\x7fELF") for cubin in cubins.values())


def _without_compiler(nvcc: cuda_toolchain.Nvcc) -> cuda_toolchain.Nvcc:
    return cuda_toolchain.Nvcc(Path("/nonexistent"), nvcc.version, nvcc.parts, nvcc.host)


def test_another_architecture_or_header_is_another_cubin(monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = cuda_toolchain.Nvcc(Path("nvcc"), "13.0.88", (), "g++")

    def key(source: str = KERNEL, arch: Any = SM_90A, compiler: Any = nvcc) -> Path:
        return cuda_build.cubin_job("fill", source, arch, compiler).result

    plain = key()
    assert plain == key()
    assert plain != key(KERNEL + "//")
    assert plain != key(arch=SM_75)
    assert plain != key(compiler=cuda_toolchain.Nvcc(Path("nvcc"), "13.1.2", (), "g++"))
    monkeypatch.setattr(
        compile_cache,
        "included_headers",
        lambda source, folders: {"svdq_cuda/kernel.h": b"// another"},
    )
    assert plain != key()


def test_headers_are_found_through_headers() -> None:
    folders = cuda_include_folders()
    names = set(compile_cache.included_headers(KERNEL, folders))
    assert {"svdq_cuda/kernel.h", "svdq_cuda/ptx/memory.h", "svdq_cuda/host/threads.h"} <= names


def test_an_error_names_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_nvcc()
    monkeypatch.setattr(cuda_build, "cache_folder", lambda: tmp_path)
    with pytest.raises(
        CompilationFailed, match=r"(?s)'broken'.*failed:\n.*error.*svdqc doctor"
    ) as told:
        cuda_build.build_cubins({"broken": KERNEL + "no such thing;"}, SM_100A)
    assert len(str(told.value).splitlines()) <= compile_cache.NUM_LINES_SHOWN + 1
    assert not list(tmp_path.iterdir())


def test_compilers_stay_within_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of jobs of 3, 2, 2 and 9 bytes under a bound of 5, never more than 5 run together, but the large one alone."""
    running: list[int] = []
    together: list[list[int]] = []
    lock = threading.Lock()

    def compile_one(job: CompileJob) -> None:
        with lock:
            running.append(job.memory_bytes)
            together.append(list(running))
        job.result.write_bytes(b"")
        with lock:
            running.remove(job.memory_bytes)

    monkeypatch.setattr(compile_cache, "_compile", compile_one)
    jobs = [
        CompileJob(f"{i}", "", "a", "b", (), tmp_path / f"{i}", size)
        for i, size in enumerate([3, 2, 2, 9] * 8)
    ]
    compile_all(jobs, workers=6, memory_bound=5)
    assert len(together) == len(jobs)
    assert all(sum(sizes) <= 5 or sizes == [9] for sizes in together)


def test_memory_estimates() -> None:
    cute = "#include <cute/tensor.hpp>\n"
    collective = cute + '#include "cutlass/gemm/collective/collective_builder.hpp"\n'
    sizes = [cuda_build.memory_estimate(source) for source in (KERNEL, cute, collective)]
    assert sizes == sorted(set(sizes))
    assert cuda_build.free_memory() > 1 << 20


def test_archives() -> None:
    cubins = {"b": b"\x7fELF" + bytes(100), "a": b"\x7fELF-a", "ab_c": b"\x7fELF" + bytes(61)}
    section = pack_cubins(cubins)
    assert unpack_cubins(section) == cubins
    assert section == pack_cubins(dict(reversed(cubins.items())))
    assert section.startswith(b"SVDQCUBN\x01\x00\x00\x00\x03\x00\x00\x00")
    assert section[16 + 3 * 32 :].startswith(b"aab_cb")
    for cubin in cubins.values():
        assert section.index(cubin) % ALIGNMENT == 0
    assert section.endswith(cubins["b"])
