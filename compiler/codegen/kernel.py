"""Fused regions → kernels and the arguments of their launches.

A launch computes a region, or on GPUs a *group* of regions with equal code (grouping.py), its members. A group's kernel
is given the buffers of every member, then the scalars of every member, then for each where its tasks end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from svdqc.compiler.codegen.access import AccessMaps
from svdqc.compiler.codegen.choice import ANALYTIC, Chooser, problem_of
from svdqc.compiler.codegen.memory import Memory
from svdqc.compiler.codegen.naming import kernel_stem
from svdqc.compiler.codegen.printing.backend import Backend, Block
from svdqc.compiler.codegen.printing.params import BufferParam, Params
from svdqc.compiler.codegen.printing.statements import Scratch
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.rowprogram import RowProgram, build_row_program
from svdqc.compiler.codegen.templates import render, sources_digest
from svdqc.compiler.ir.intexpr import ZERO, IntExpr, minimum
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


@dataclass(frozen=True)
class Printed:
    """A region's code with a given block, before it is rendered.

    context        what the template is rendered with, beside the declarations of `params`
    params         what differs between launches of this code
    num_tasks      into which the region is cut
    most_ctas      that compute them, each one after another; None: a CTA for each
    scratch_bytes  of a task
    """

    region: Region
    block: Block
    template: str
    context: dict[str, Any]
    params: Params
    num_tasks: IntExpr
    most_ctas: int | None
    scratch_bytes: IntExpr

    def has_code_of(self, other: Printed) -> bool:
        """Whether the two differ in arguments only."""
        return (self.block, self.template, self.context, self.params.kinds) == (
            other.block,
            other.template,
            other.context,
            other.params.kinds,
        )

    @property
    def num_words(self) -> int:
        """What it takes of a group's parameters, of 8 bytes each."""
        return len(self.params.buffers) + len(self.params.scalars) + 1


@dataclass(frozen=True)
class Generator:
    """Prints regions for one back end. `storages` has every stored value, input and weight that they touch."""

    maps: AccessMaps
    storages: Memory
    backend: Backend
    chooser: Chooser = ANALYTIC

    def blocks(self, region: Region) -> Iterator[Block]:
        """Every block that the region can have, the analytic model's choice first."""
        return iter(self.backend.blocks(self._program(region)))

    def analytic(self, region: Region) -> Printed:
        """With the block that the analytic model likes best."""
        return self.printed(region, next(self.blocks(region)))

    def chosen(self, analytic: Printed) -> Printed:
        """With the chooser's block. What a kernel is made of is part of what the chooser is asked."""
        if self.chooser is ANALYTIC:
            return analytic
        problem = problem_of(analytic.region, self.kernel([analytic]).sources)
        block = self.chooser.choose(problem, list(self.blocks(analytic.region)))
        return analytic if block == analytic.block else self.printed(analytic.region, block)

    def printed(self, region: Region, block: Block) -> Printed:
        """With a given block."""
        program = self._program(region)
        params, scratch = Params(rows_apart=self.backend.param_words > 0), Scratch()
        printer = self.backend.printer(program, self.storages, params, scratch, block)
        context: dict[str, Any] = {
            "block_rows": block.rows,
            "num_rows": params.rows(region.layout.num_rows),
        }
        anchored = self.backend.describe(program, printer, params, block)
        context.update(anchored.context)
        columns = ("col_begin", "col_end") if block.columns else None
        before = [line for s in program.before for line in printer.print(s)] + anchored.before
        after = [line for s in program.after for line in printer.print(s, columns)]
        context.update(
            summary=_summary(region),
            headers=anchored.headers,
            before=before,
            after=after,
            scratch_declarations=printer.declarations + anchored.scratch_declarations,
        )
        if block.threads:
            shared_bytes = self._checked(region, scratch.num_bytes.upper())
            context.update(threads=block.threads + block.helpers, shared_bytes=shared_bytes)
        return Printed(
            region,
            block,
            anchored.template,
            context,
            params,
            anchored.num_tasks,
            anchored.most_ctas,
            scratch.num_bytes,
        )

    def kernel(self, members: Sequence[Printed]) -> Kernel:
        """The kernel of one region, or of a group: regions whose code is equal."""
        first, count = members[0], len(members)
        assert all(member.has_code_of(first) for member in members)
        buffers = [param for member in members for param in member.params.buffers]
        scalars = [scalar for member in members for scalar in member.params.scalars]
        ends = list(accumulate(member.num_tasks for member in members))
        arguments = self.backend.arguments
        context = {
            **first.context,
            "members": count,
            "task_ends": f"{arguments}scalars + {len(scalars)}",
            "declarations": first.params.declarations(arguments, of_member=count > 1),
        }
        if count > 1:
            scalars += ends
        on_gpu, most = first.block.threads > 0, first.most_ctas
        if on_gpu:
            context.update(num_buffers=len(buffers), num_scalars=len(scalars))
        unnamed = render(first.template, name="@NAME@", **context)
        stem = kernel_stem(first.region, first.block.rows, first.block.columns, count)
        name = f"{stem}_{hashlib.sha256(unnamed.encode()).hexdigest()[:8]}"
        return Kernel(
            name=name,
            source=unnamed.replace("@NAME@", name),
            buffers=tuple(buffers),
            scalars=tuple(scalars),
            num_tasks=ends[-1] if most is None else minimum(ends[-1], most),
            scratch_bytes=ZERO if on_gpu else first.scratch_bytes,
            threads=first.block.threads + first.block.helpers,
            shared_bytes=first.context["shared_bytes"] if on_gpu else 0,
            block=first.block,
            sources=sources_digest(first.template, unnamed, self.backend.include_folders()),
        )

    def _program(self, region: Region) -> RowProgram:
        return build_row_program(region, self.maps, self.backend.row_budget(region))

    def _checked(self, region: Region, shared_bytes: int) -> int:
        limit = self.backend.shared_limit()
        if limit is not None and shared_bytes > limit:
            raise SharedMemoryExceeded(
                "compile",
                str(region.nodes[-1]),
                f"its kernel takes {shared_bytes} bytes of shared memory, the target has {limit}",
                "compile it for another target",
            )
        return shared_bytes


def _summary(region: Region) -> str:
    """The region's ops in order, for the reader of the generated code."""
    names = [str(n.target).split(".")[1] for n in region.nodes]
    return " → ".join(names)
