"""The plan: what the runtime does, as data.

A plan is lists of fixed-layout records over dims, expressions, buffers and launches. It names no tensor of the
graph and carries no code; the runtime proves that every launch stays inside its buffers, then executes it in order.
The binary form is in `plan/encode.py`, its description in runtime/FORMAT.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.ir.program import Dim

DTYPES = ("f32", "f64", "f16", "bf16", "i8", "u8", "i16", "i32", "i64", "bool")


@dataclass(frozen=True)
class TensorPort:
    """An input or output of the artifact. Buffers of ports are dense and row-major."""

    name: str
    dtype: str  # of DTYPES
    shape: tuple[IntExpr, ...]


@dataclass(frozen=True)
class Buffer:
    """Memory that launches read and write.

    kind         "input", "output" (`index` into the ports), "weight" (`index` into the artifact's tensors),
                 "arena" (`index` unused)
    num_bytes    size for the current dims
    arena_offset byte offset in the arena, 64-aligned; memory is reserved for the largest dims
    """

    kind: str
    num_bytes: IntExpr
    index: int = 0
    arena_offset: int = 0


@dataclass(frozen=True)
class BufferArg:
    """A pointer argument: `buffer` + byte_offset, of which the kernel touches `num_bytes`."""

    buffer: int
    byte_offset: IntExpr
    num_bytes: IntExpr
    access: str  # "read", "write", "update"


@dataclass(frozen=True)
class KernelEntry:
    """A C symbol in the variant's code and, on a GPU, the shape of one task (a block of threads); 0 and 0 on CPUs.

    threads       per task, a multiple of 32
    shared_bytes  dynamic shared memory per task
    """

    name: str
    threads: int = 0
    shared_bytes: int = 0


@dataclass(frozen=True)
class Launch:
    """One parallel-for: kernel(args, begin, end) over [0, num_tasks), any split giving the same bits.

    kernel         index into Plan.kernels
    scratch_bytes  per thread, 64-aligned
    label          where in the model it comes from, for profiles and errors
    """

    kernel: int
    args: tuple[BufferArg, ...]
    scalars: tuple[IntExpr, ...]
    num_tasks: IntExpr
    scratch_bytes: IntExpr
    label: str


@dataclass(frozen=True)
class Plan:
    dims: tuple[Dim, ...]
    inputs: tuple[TensorPort, ...]
    outputs: tuple[TensorPort, ...]
    buffers: tuple[Buffer, ...]
    kernels: tuple[KernelEntry, ...]
    launches: tuple[Launch, ...]
    arena_bytes: int
