"""Compile CUDA kernels for the host back end: the same sources as C functions, to be checked without a GPU.

See templates/cuda/include/svdq_cuda/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from svdqc.compiler.targets.cpu import AVX2
from svdqc.compiler.targets.folders import cuda_include_folders
from svdqc.compiler.targets.toolchain import build_shared_object

HOST_FLAGS = (
    "-x",
    "c++",
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-strict-aliasing",  # device code reads memory through pointers of several types
    "-DSVDQ_CUDA_HOST",
    "-pthread",
)


def build_host(kernels: Mapping[str, str], jobs: int = 0) -> bytes:
    """One shared object with every kernel (name → source) as `void name(const void* params, uint32_t grid_x)`."""
    return build_shared_object(
        kernels, (*HOST_FLAGS, *machine_flags()), jobs, folders=cuda_include_folders()
    )


@cache
def machine_flags() -> tuple[str, ...]:
    """AVX2 with FMA and F16C where this machine has them: `mad` is then one instruction."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ()
    return AVX2.flags if words >= set(AVX2.isa_features) else ()
