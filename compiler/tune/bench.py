"""An artifact that runs one kernel alone, in each of its candidates, for the runtime to measure.

    launches   zeros into what the kernel writes; zeros into `flush_bytes` of other memory, by every thread, so that the
               caches hold no more of the kernel's operands than in the middle of a model; the kernel; copies of what it
               wrote to the outputs

Every candidate is a launch of the same plan, and the dim `candidate` chooses which of them has tasks: candidates share
operands, and take turns in one process. Operands that are only read are weights of the artifact, with random contents.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from svdqc.compiler.artifact.format import Variant
from svdqc.compiler.artifact.write import ArtifactTensor, write_artifact
from svdqc.compiler.codegen.kernel import Kernel
from svdqc.compiler.codegen.scalar import DTYPE_NAMES, ITEM_BYTES
from svdqc.compiler.codegen.storage import BufferKey
from svdqc.compiler.codegen.templates import render
from svdqc.compiler.ir.intexpr import IntExpr, maximum, symbol
from svdqc.compiler.ir.program import Dim
from svdqc.compiler.plan.memory import ALIGNMENT
from svdqc.compiler.plan.records import (
    Buffer,
    BufferArg,
    KernelEntry,
    Launch,
    Plan,
    TensorPort,
)
from svdqc.compiler.targets.cuda import CudaTarget
from svdqc.compiler.targets.layouts import pack, packed_bytes
from svdqc.compiler.targets.select import Target
from svdqc.compiler.tune.sites import Site

FILL, COPY = "svdq_bench_fill", "svdq_bench_copy"
TASK_BYTES = 1 << 16
THREADS = 256
_TORCH = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def frame_sources(target: Target) -> dict[str, str]:
    """The kernels that stand around the one to measure."""
    template = "cuda/bench.cu.j2" if isinstance(target, CudaTarget) else "cpu/bench.cpp.j2"
    return {name: render(template, name=name, copies=name == COPY) for name in (FILL, COPY)}


@dataclass(frozen=True)
class Bench:
    """first  the launch of candidate 1; candidate i is launch first + i - 1, chosen by an input of size i."""

    path: str
    first: int


@dataclass
class _Operand:
    """A buffer of the kernels: its size, the dtype that it is read and written as, and whether any of them writes."""

    key: BufferKey
    num_bytes: int
    dtype: str
    written: bool


def write_bench(
    path: str | os.PathLike[str],
    site: Site,
    kernels: Sequence[Kernel],
    code: bytes,
    target: Target,
    flush_bytes: int,
) -> Bench:
    """Write the artifact of `kernels`, the analytic model's first; `code` has them and those of frame_sources."""
    operands = _operands(site, kernels)
    written = [operand for operand in operands.values() if operand.written]
    read = [operand for operand in operands.values() if not operand.written]
    candidate = symbol("candidate", 1, len(kernels))
    on_gpu = isinstance(target, CudaTarget)
    entries = [KernelEntry(name, THREADS if on_gpu else 0) for name in (FILL, COPY)]
    entries += [KernelEntry(k.name, k.threads, k.shared_bytes) for k in kernels]

    buffers: list[Buffer] = []
    index: dict[BufferKey, int] = {}
    offset = 0
    for position, operand in enumerate(read):
        index[operand.key] = len(buffers)
        buffers.append(Buffer("weight", IntExpr.of(operand.num_bytes), position))
    for operand in written:
        index[operand.key] = len(buffers)
        buffers.append(Buffer("arena", IntExpr.of(operand.num_bytes), 0, offset))
        offset += _aligned(operand.num_bytes)
    flush = len(buffers)
    buffers.append(Buffer("arena", IntExpr.of(flush_bytes), 0, offset))
    outputs = len(buffers)
    buffers += [Buffer("output", IntExpr.of(o.num_bytes), i) for i, o in enumerate(written)]

    launches = [_frame(0, [(index[o.key], "write")], o.num_bytes) for o in written]
    launches.append(_frame(0, [(flush, "write")], flush_bytes))
    first = len(launches)
    for position, kernel in enumerate(kernels, 1):
        launches.append(_launch(site, kernel, position, index, candidate))
    for i, o in enumerate(written):
        arguments = [(outputs + i, "write"), (index[o.key], "read")]
        launches.append(_frame(1, arguments, o.num_bytes))

    plan = Plan(
        dims=(Dim("candidate", 1, len(kernels)),),
        inputs=(TensorPort("candidate", "u8", (candidate,)),),
        outputs=tuple(_port(f"out{i}", o) for i, o in enumerate(written)),
        buffers=tuple(buffers),
        kernels=tuple(entries),
        launches=tuple(launches),
        arena_bytes=offset + _aligned(flush_bytes),
    )
    write_artifact(
        path,
        name=kernels[0].name,
        producer="svdqc tune",
        tensors=[_tensor(site, operand) for operand in read],
        variants=[Variant(target.name, target.isa_features, code, plan)],
        graph=b"",
        quantization={},
        source_digest="0" * 64,
        meta={},
    )
    return Bench(str(path), first)


def _operands(site: Site, kernels: Sequence[Kernel]) -> dict[BufferKey, _Operand]:
    found: dict[BufferKey, _Operand] = {}
    for kernel in kernels:
        for param in kernel.buffers:
            if param.buffer not in found:
                size = _num_bytes(site, param.buffer)
                found[param.buffer] = _Operand(param.buffer, size, param.dtype, False)
            found[param.buffer].written |= param.access != "read"
    return found


def _num_bytes(site: Site, key: BufferKey) -> int:
    if key.kind == "weight":
        spec = site.weights.spec(key.name)
        return packed_bytes(key.layout, spec.shape, spec.dtype)
    return site.memory.num_bytes[key].evaluate(site.dims)


def _launch(
    site: Site, kernel: Kernel, position: int, index: dict[BufferKey, int], candidate: IntExpr
) -> Launch:
    args = []
    for param in kernel.buffers:
        item = ITEM_BYTES[param.dtype]
        begin = param.offset.evaluate(site.dims) * item
        whole = _num_bytes(site, param.buffer) - begin
        whole_reach = param.reach is None or param.buffer.kind == "weight"
        reach = whole if whole_reach else param.reach.evaluate(site.dims) * item  # type: ignore[union-attr]
        access = "read" if param.access == "read" else "update"
        args.append(BufferArg(index[param.buffer], IntExpr.of(begin), IntExpr.of(reach), access))
    # 1 for this candidate, 0 for every other.
    chosen = maximum(0, 1 - maximum(candidate - position, position - candidate))
    return Launch(
        kernel=1 + position,
        args=tuple(args),
        scalars=tuple(IntExpr.of(s.evaluate(site.dims)) for s in kernel.scalars),
        num_tasks=chosen * kernel.num_tasks.evaluate(site.dims),
        scratch_bytes=IntExpr.of(_aligned(kernel.scratch_bytes.evaluate(site.dims))),
        label=str(kernel.block.parameters()),
    )


def _frame(kernel: int, buffers: Sequence[tuple[int, str]], num_bytes: int) -> Launch:
    size = IntExpr.of(num_bytes)
    args = tuple(BufferArg(buffer, IntExpr.of(0), size, access) for buffer, access in buffers)
    tasks = IntExpr.of(-(-num_bytes // TASK_BYTES))
    return Launch(kernel, args, (size,), tasks, IntExpr.of(0), "")


def _port(name: str, operand: _Operand) -> TensorPort:
    count = operand.num_bytes // ITEM_BYTES[operand.dtype]
    return TensorPort(name, operand.dtype, (IntExpr.of(count),))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


# ---- contents


def _tensor(site: Site, operand: _Operand) -> ArtifactTensor:
    def load() -> np.ndarray:
        flat: np.ndarray = _contents(site, operand).reshape(-1).view(torch.uint8).numpy()
        return flat

    name = f"{operand.key.kind}.{operand.key.name}#{operand.key.layout}"
    return ArtifactTensor(name, "u8", (operand.num_bytes,), "row_major", operand.num_bytes, load)


def _contents(site: Site, operand: _Operand) -> Tensor:
    key = operand.key
    if key.kind == "weight":
        spec = site.weights.spec(key.name)
        return pack(key.layout, _random(spec.shape, spec.dtype))
    count = operand.num_bytes // ITEM_BYTES[operand.dtype]
    return _random((count,), _TORCH[operand.dtype])


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Values that are right in every layout and format: small codes, indices that every table has, no NaN."""
    generator = torch.Generator().manual_seed(prod(shape) % 1009)
    if dtype in (torch.int8, torch.uint8):
        return torch.randint(0, 5, shape, generator=generator, dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return (
        torch.ones(shape, dtype=dtype) if dtype == torch.bool else torch.zeros(shape, dtype=dtype)
    )
