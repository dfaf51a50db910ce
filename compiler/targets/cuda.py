"""CUDA targets: one per GPU architecture, with the limits that kernels and plans must keep.

Limits: CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute Capability". Tensor-core operations are
those that the hardware executes; an `mma` that ptxas would emulate is not listed (4-bit integers from sm_90a on).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from svdqc.errors import SvdqcError

WARP = 32
REGISTERS_PER_THREAD = 255
REGISTERS_PER_SM = 65536
SINGLE_BOARD = frozenset({(7, 2), (8, 7), (10, 1), (11, 0)})


@dataclass(frozen=True)
class CudaTarget:
    """One architecture.

    arch                 as nvcc's -arch names it; an "a" means: this compute capability only
    shared_bytes_per_cta dynamic shared memory of one CTA, at most (the runtime asks for what exceeds 48 KiB)
    shared_bytes_per_sm  of a multiprocessor; from sm_80 on a CTA takes 1 KiB more than it asks for
    tensor_ops           element types of tensor-core operations: s4 s8 f16 bf16 tf32 e4m3 nvfp4 by mma.sync;
                         wgmma_* by wgmma, tcgen05_* by tcgen05
    num_sms, gb_per_s    of the largest common GPU, for the analytic model where none is at hand
    """

    arch: str
    compute_capability: tuple[int, int]
    shared_bytes_per_cta: int
    shared_bytes_per_sm: int
    threads_per_sm: int
    ctas_per_sm: int
    tensor_ops: frozenset[str]
    num_sms: int
    gb_per_s: int

    @property
    def name(self) -> str:
        return f"cuda:{self.arch}"

    @property
    def names(self) -> tuple[str, str]:
        """How a user may call it."""
        return self.name, self.name.removesuffix("a")

    @property
    def has_async_copies(self) -> bool:
        """cp.async, and 16-bit tensor cores with bf16."""
        return self.compute_capability >= (8, 0)

    @property
    def has_bulk_copies(self) -> bool:
        """cp.async.bulk and mbarriers."""
        return self.compute_capability >= (9, 0)

    @property
    def isa_features(self) -> tuple[str, ...]:
        """A variant's `isa_features`: none, the name says it."""
        return ()

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Cubins run on later minor versions of their major one; architecture-specific ones only on their own.

        GPUs of single-board computers run no others' code. runtime/src/cuda_arch.cpp decides by the same rules.
        """
        if self.arch.endswith("a") or capability in SINGLE_BOARD:
            return capability == self.compute_capability
        return capability[0] == self.compute_capability[0] and capability >= self.compute_capability

    def max_ctas(self, threads: int, shared_bytes: int, registers: int) -> int:
        """How many CTAs of this shape one multiprocessor holds; registers: per thread."""
        reserved = 1024 if self.has_async_copies else 0
        granted = -(-registers // 8) * 8 * WARP
        warps = -(-threads // WARP)
        shared = -(-(shared_bytes + reserved) // 128) * 128
        by_shared = self.shared_bytes_per_sm // shared if shared else self.ctas_per_sm
        return min(
            self.ctas_per_sm,
            self.threads_per_sm // (warps * WARP),
            REGISTERS_PER_SM // (granted * warps),
            by_shared,
        )


_KIB = 1024
_AMPERE = frozenset({"s4", "s8", "f16", "bf16", "tf32"})
_HOPPER = frozenset({"s8", "f16", "bf16", "tf32", "wgmma_s8", "wgmma_e4m3", "wgmma_bf16"})
_BLACKWELL = frozenset({"s8", "f16", "bf16", "tf32", "tcgen05_nvfp4", "tcgen05_s8", "tcgen05_bf16"})
_GEFORCE = frozenset({"s8", "f16", "bf16", "tf32", "e4m3", "nvfp4"})

SM_75 = CudaTarget(
    "sm_75", (7, 5), 64 * _KIB, 64 * _KIB, 1024, 16, frozenset({"s4", "s8", "f16"}), 68, 616
)
SM_80 = CudaTarget("sm_80", (8, 0), 163 * _KIB, 164 * _KIB, 2048, 32, _AMPERE, 108, 2039)
SM_86 = CudaTarget("sm_86", (8, 6), 99 * _KIB, 100 * _KIB, 1536, 16, _AMPERE, 82, 936)
SM_89 = CudaTarget("sm_89", (8, 9), 99 * _KIB, 100 * _KIB, 1536, 24, _AMPERE | {"e4m3"}, 128, 1008)
SM_90A = CudaTarget("sm_90a", (9, 0), 227 * _KIB, 228 * _KIB, 2048, 32, _HOPPER, 132, 4800)
SM_100A = CudaTarget("sm_100a", (10, 0), 227 * _KIB, 228 * _KIB, 2048, 32, _BLACKWELL, 148, 8000)
SM_120A = CudaTarget("sm_120a", (12, 0), 99 * _KIB, 100 * _KIB, 1536, 24, _GEFORCE, 170, 1792)
CUDA_TARGETS = (SM_75, SM_80, SM_86, SM_89, SM_90A, SM_100A, SM_120A)


class UnknownCudaTarget(SvdqcError):
    """A CUDA architecture that this compiler does not build for."""


class NoGpu(SvdqcError):
    """`cuda` without an architecture, where the driver shows no GPU."""


def parse_cuda_target(text: str, capabilities: Iterable[tuple[int, int]] = ()) -> CudaTarget:
    """`cuda:sm_90a` (also `cuda:sm_90`), or `cuda`: for the first GPU of this machine, given by compute capability."""
    known = ", ".join(target.name for target in CUDA_TARGETS)
    if text == "cuda":
        first = next(iter(capabilities), None)
        if first is None:
            raise NoGpu(
                "compile",
                text,
                "the NVIDIA driver shows no GPU on this machine",
                f"name the architecture of the GPU that will run it: {known}",
            )
        target = target_for(first)
        if target is None:
            raise UnknownCudaTarget(
                "compile",
                text,
                f"this machine's GPU has compute capability {first[0]}.{first[1]}",
                f"there are targets for {known}; use the CPU, or a newer svdqc",
            )
        return target
    for target in CUDA_TARGETS:
        if text in target.names:
            return target
    raise UnknownCudaTarget(
        "compile", text, "no such target in this version", f"use cuda or {known}"
    )


def target_for(capability: tuple[int, int]) -> CudaTarget | None:
    """The best target for a GPU of this compute capability; None where none runs on it."""
    fitting = [target for target in CUDA_TARGETS if target.runs_on(capability)]
    return fitting[-1] if fitting else None
