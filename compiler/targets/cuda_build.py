"""Compile generated CUDA kernels to cubins: each apart, in parallel within the memory at hand, cached by content."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from svdqc.compiler.targets.compile_cache import (
    CompileJob,
    Progress,
    cache_folder,
    compile_all,
    digest,
    headers_digest,
)
from svdqc.compiler.targets.cuda import CudaTarget
from svdqc.compiler.targets.cuda_archive import pack_cubins
from svdqc.compiler.targets.cuda_toolchain import INSTALL, Nvcc, cutlass_include, find_nvcc
from svdqc.compiler.targets.folders import cuda_include_folders
from svdqc.errors import SvdqcError

CUDA_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fmad=false",  # a product rounds the same everywhere, or 4-bit codes would differ; mad() fuses
    "--expt-relaxed-constexpr",
    "-allow-unsupported-compiler",  # it only preprocesses
    "-diag-suppress=177,186",  # a header's function that is not used, or compares an unsigned with 0
)

GIB = 1 << 30
# What one compiler process takes, by what a kernel includes: measured with nvcc 13.0, -O3, rounded up.
MEMORY_PLAIN = GIB // 4
MEMORY_CUTE = GIB
MEMORY_CUTLASS = 6 * GIB


class NoCutlass(SvdqcError):
    """A kernel needs CUTLASS headers, and the nvidia-cutlass package is absent."""


def build_cubins(
    kernels: Mapping[str, str],
    target: CudaTarget,
    jobs: int = 0,
    progress: Progress | None = None,
    memory_bound: int | None = None,
) -> dict[str, bytes]:
    """Kernel name → cubin, of name → source. memory_bound: of all compilers together; by default what is free now."""
    nvcc = find_nvcc()
    compiles = [cubin_job(name, source, target, nvcc) for name, source in sorted(kernels.items())]
    if memory_bound is None:
        memory_bound = free_memory()
    compile_all(compiles, jobs, progress, memory_bound)
    return {job.name: job.result.read_bytes() for job in compiles}


def build_cuda(
    kernels: Mapping[str, str],
    target: CudaTarget,
    jobs: int = 0,
    progress: Progress | None = None,
) -> bytes:
    """The code section of a variant: an archive of every kernel's cubin. The same bytes for any number of jobs."""
    return pack_cubins(build_cubins(kernels, target, jobs, progress))


def cubin_job(name: str, source: str, target: CudaTarget, nvcc: Nvcc) -> CompileJob:
    """How one kernel is compiled, and where its cubin is kept."""
    folders = [*cuda_include_folders(), *_cutlass_folders(name, source)]
    flags = [*CUDA_FLAGS, f"-arch={target.arch}", "-cubin"]
    headers = headers_digest(source, cuda_include_folders())
    key = digest(["cubin", nvcc.version, *flags, *_cutlass_key(source), headers, source])
    command = [str(nvcc.path), "-ccbin", nvcc.host, *flags]
    command += [f"-I{folder}" for folder in folders]
    return CompileJob(
        name,
        source,
        "kernel.cu",
        "kernel.cubin",
        (*command, "kernel.cu", "-o", "kernel.cubin"),
        cache_folder() / f"{key}.cubin",
        memory_estimate(source),
        f"check the toolkit with `svdqc doctor` (nvcc {nvcc.version}), or report the kernel with --dump",
    )


def memory_estimate(source: str) -> int:
    """Bytes that compiling `source` is expected to take."""
    if "cutlass/gemm/collective" in source or "cutlass/epilogue/collective" in source:
        return MEMORY_CUTLASS
    return MEMORY_CUTE if uses_cutlass(source) else MEMORY_PLAIN


def uses_cutlass(source: str) -> bool:
    return (
        "<cute/" in source or "<cutlass/" in source or '"cutlass/' in source or '"cute/' in source
    )


def _cutlass_key(source: str) -> Sequence[str]:
    if not uses_cutlass(source):
        return ()
    include = cutlass_include()
    version = include / "cutlass" / "version.h" if include else None
    return (version.read_text(),) if version and version.is_file() else ()


def _cutlass_folders(name: str, source: str) -> Sequence[Path]:
    if not uses_cutlass(source):
        return ()
    include = cutlass_include()
    if include is None:
        raise NoCutlass(
            "compile kernels", name, "it is built with CUTLASS, which is absent", f"run: {INSTALL}"
        )
    return (include,)


def free_memory() -> int:
    """Bytes that can be taken now: what the machine has available, or what is left of the control group's limit."""
    available = [1024 * _field("/proc/meminfo", "MemAvailable:")]
    for group, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            left = int(Path(group, limit).read_text()) - int(Path(group, used).read_text())
        except (OSError, ValueError):
            continue  # no such group, or no limit
        available.append(left + _field(f"{group}/memory.stat", "inactive_file"))
    found = [num_bytes for num_bytes in available if num_bytes > 0]
    if found:
        return min(found)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _field(path: str, name: str) -> int:
    """The number behind `name` in a file of lines "name number …"; 0 where there is none."""
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines()]
    except OSError:
        return 0
    return next((int(words[1]) for words in lines if words and words[0] == name), 0)
