"""One fused region → one C++ kernel and the arguments of its launch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from svdqc.compiler.codegen.access import AccessMaps
from svdqc.compiler.codegen.cpu.blocks.plan import plan_block
from svdqc.compiler.codegen.cpu.blocks.table import describe
from svdqc.compiler.codegen.cpu.params import BufferParam, Params
from svdqc.compiler.codegen.cpu.statements import Scratch, StatementPrinter
from svdqc.compiler.codegen.memory import Memory
from svdqc.compiler.codegen.naming import kernel_stem
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.rowprogram import build_row_program
from svdqc.compiler.codegen.templates import render
from svdqc.compiler.ir.intexpr import IntExpr


@dataclass(frozen=True)
class Kernel:
    """Rendered code and how to launch it. Equal `source` means the same kernel.

    source  C++ with the kernel named `name`
    """

    name: str
    source: str
    buffers: tuple[BufferParam, ...]
    scalars: tuple[IntExpr, ...]
    num_tasks: IntExpr
    scratch_bytes: IntExpr


def generate(region: Region, maps: AccessMaps, storages: Memory) -> Kernel:
    """Render the kernel of one region. `storages` has every stored value, input and weight it touches."""
    program = build_row_program(region, maps)
    params, scratch = Params(), Scratch()
    block = plan_block(program)
    printer = StatementPrinter(program, storages, params, scratch, block.rows)
    context: dict[str, Any] = {
        "block_rows": block.rows,
        "num_rows": params.scalar(region.layout.num_rows, force=True),
    }
    anchored = describe(program, printer, params, block)
    context.update(anchored.context)
    columns = ("col_begin", "col_end") if block.columns else None
    before = [line for s in program.before for line in printer.print(s)] + anchored.before
    after = [line for s in program.after for line in printer.print(s, columns)]
    context.update(
        summary=_summary(region),
        headers=anchored.headers,
        before=before,
        after=after,
        declarations=params.declarations(),
        scratch_declarations=printer.declarations + anchored.scratch_declarations,
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
        scratch_bytes=scratch.num_bytes,
    )


def _summary(region: Region) -> str:
    """The region's ops in order, for the reader of the generated code."""
    names = [str(n.target).split(".")[1] for n in region.nodes]
    return " → ".join(names)
