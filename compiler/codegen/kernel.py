"""One fused region → one kernel and the arguments of its launch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from svdqc.compiler.codegen.access import AccessMaps
from svdqc.compiler.codegen.choice import ANALYTIC, Chooser, problem_of
from svdqc.compiler.codegen.memory import Memory
from svdqc.compiler.codegen.naming import kernel_stem
from svdqc.compiler.codegen.printing.backend import Backend, Block
from svdqc.compiler.codegen.printing.params import BufferParam, Params
from svdqc.compiler.codegen.printing.statements import Scratch
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.rowprogram import build_row_program
from svdqc.compiler.codegen.templates import render, sources_digest
from svdqc.compiler.ir.intexpr import ZERO, IntExpr
from svdqc.errors import SvdqcError


class SharedMemoryExceeded(SvdqcError):
    """A kernel does not fit in the shared memory of a GPU."""


@dataclass(frozen=True)
class Kernel:
    """Rendered code and how to launch it. Equal `source` means the same kernel.

    source         C++ or CUDA with the kernel named `name`
    block          how much of the region one task computes, and how
    sources        one name for the contents of every template and header that it is made of
    threads        of a GPU's block; 0 on CPUs
    shared_bytes   of a GPU's block, for the largest dims
    scratch_bytes  of a CPU's thread
    """

    name: str
    source: str
    buffers: tuple[BufferParam, ...]
    scalars: tuple[IntExpr, ...]
    num_tasks: IntExpr
    scratch_bytes: IntExpr
    threads: int
    shared_bytes: int
    block: Block
    sources: str


def generate(
    region: Region,
    maps: AccessMaps,
    storages: Memory,
    backend: Backend,
    chooser: Chooser = ANALYTIC,
) -> Kernel:
    """Render the kernel of one region. `storages` has every stored value, input and weight it touches.

    The analytic model's kernel first: what it is made of is part of what the chooser is asked.
    """
    blocks = iter(backend.blocks(build_row_program(region, maps, backend.row_budget(region))))
    first = next(blocks)
    kernel = render_kernel(region, maps, storages, backend, first)
    if chooser is ANALYTIC:
        return kernel
    chosen = chooser.choose(problem_of(region, kernel.sources), [first, *blocks])
    if chosen == first:
        return kernel
    return render_kernel(region, maps, storages, backend, chosen)


def render_kernel(
    region: Region, maps: AccessMaps, storages: Memory, backend: Backend, block: Block
) -> Kernel:
    """The kernel of a region with a given block."""
    program = build_row_program(region, maps, backend.row_budget(region))
    params, scratch = Params(), Scratch()
    printer = backend.printer(program, storages, params, scratch, block)
    context: dict[str, Any] = {
        "block_rows": block.rows,
        "num_rows": params.scalar(region.layout.num_rows, force=True),
    }
    anchored = backend.describe(program, printer, params, block)
    context.update(anchored.context)
    columns = ("col_begin", "col_end") if block.columns else None
    before = [line for s in program.before for line in printer.print(s)] + anchored.before
    after = [line for s in program.after for line in printer.print(s, columns)]
    context.update(
        summary=_summary(region),
        headers=anchored.headers,
        before=before,
        after=after,
        declarations=params.declarations(backend.arguments),
        scratch_declarations=printer.declarations + anchored.scratch_declarations,
    )
    shared_bytes = scratch.num_bytes.upper() if block.threads else 0
    limit = backend.shared_limit()
    if limit is not None and shared_bytes > limit:
        raise SharedMemoryExceeded(
            "compile",
            str(region.nodes[-1]),
            f"its kernel takes {shared_bytes} bytes of shared memory, the target has {limit}",
            "compile it for another target",
        )
    if block.threads:
        context.update(
            threads=block.threads + block.helpers,
            shared_bytes=shared_bytes,
            num_buffers=len(params.buffers),
            num_scalars=len(params.scalars),
        )
    stem = kernel_stem(region, block.rows, block.columns)
    unnamed = render(anchored.template, name="@NAME@", **context)
    name = f"{stem}_{hashlib.sha256(unnamed.encode()).hexdigest()[:8]}"
    return Kernel(
        name=name,
        source=unnamed.replace("@NAME@", name),
        buffers=tuple(params.buffers),
        scalars=tuple(params.scalars),
        num_tasks=anchored.num_tasks,
        scratch_bytes=ZERO if block.threads else scratch.num_bytes,
        threads=block.threads + block.helpers,
        shared_bytes=shared_bytes,
        block=block,
        sources=sources_digest(anchored.template, unnamed, backend.include_folders()),
    )


def _summary(region: Region) -> str:
    """The region's ops in order, for the reader of the generated code."""
    names = [str(n.target).split(".")[1] for n in region.nodes]
    return " → ".join(names)
