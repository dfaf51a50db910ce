"""The targets of a compilation: CPUs and GPUs alike, as the command line names them, and what builds their code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from svdqc.compiler.targets.compile_cache import Progress
from svdqc.compiler.targets.cpu import CPU_TARGETS, CpuTarget, UnknownTarget
from svdqc.compiler.targets.cpu import parse_targets as parse_cpu_targets
from svdqc.compiler.targets.cuda import CUDA_TARGETS, CudaTarget, parse_cuda_target, target_for
from svdqc.compiler.targets.cuda_build import build_cuda
from svdqc.compiler.targets.cuda_toolchain import find_nvcc
from svdqc.compiler.targets.toolchain import build, find_compiler
from svdqc.errors import SvdqcError

Target = CpuTarget | CudaTarget
Capabilities = Callable[[], Sequence[tuple[int, int]]]

NAMES = ("native", "cpu", "cuda", *(t.name for t in CPU_TARGETS), *(t.name for t in CUDA_TARGETS))


def parse_targets(
    text: str, machine_features: tuple[str, ...], capabilities: Capabilities
) -> list[Target]:
    """Names separated by commas, each target once, in order of preference: GPUs, newest first, then CPUs, best first.

    "cpu" is the best instruction set of this machine, "cuda" its first GPU; "native" is "cpu", and "cuda" where there
    is a GPU that has a target and an nvcc to build for it. capabilities: this machine's GPUs, asked for when needed.
    """
    chosen: set[Target] = set()
    for part in (p.strip() for p in text.split(",")):
        if part == "native":
            chosen.update(parse_cpu_targets("cpu", machine_features))
            chosen.update(_native_gpu(capabilities()))
        elif part.partition(":")[0] == "cuda":
            chosen.add(parse_cuda_target(part, capabilities() if part == "cuda" else ()))
        elif part in NAMES:
            chosen.update(parse_cpu_targets(part, machine_features))
        else:
            known = ", ".join(NAMES)
            raise UnknownTarget(
                "compile", part, "no such target in this version", f"use one of {known}"
            )
    gpus = [target for target in reversed(CUDA_TARGETS) if target in chosen]
    return [*gpus, *(target for target in CPU_TARGETS if target in chosen)]


def _native_gpu(capabilities: Sequence[tuple[int, int]]) -> list[CudaTarget]:
    target = target_for(capabilities[0]) if capabilities else None
    if target is None:
        return []
    try:
        find_nvcc()
    except SvdqcError:
        return []
    return [target]


def toolchain_of(target: Target) -> str:
    """What the target's code is compiled with, in words; the error of its absence says what to install."""
    if isinstance(target, CudaTarget):
        return f"nvcc {find_nvcc().version}"
    return find_compiler().version


def build_code(
    kernels: Mapping[str, str], target: Target, jobs: int = 0, progress: Progress | None = None
) -> bytes:
    """The code section of a variant from its kernels (name → source)."""
    if isinstance(target, CudaTarget):
        return build_cuda(kernels, target, jobs, progress)
    return build(kernels, target, jobs, progress)
