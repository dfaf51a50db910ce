"""Attention without tensor cores, for heads of any width: `cuda/attention_simt.cu.j2`."""

from __future__ import annotations

from typing import Any

from svdqc.compiler.codegen.cuda.blocks.parts import headers, result_tile, shared
from svdqc.compiler.codegen.printing.attention_operands import attention_context, stored_result
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import prod
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget

WIDE_HEAD = 128
"""Wider heads take smaller blocks, to fit in 64 KiB."""


def attention_simt_block(program: RowProgram, target: CudaTarget) -> Block:
    anchor = program.region.anchor
    assert anchor is not None
    q, _, v = operands(anchor)[:3]
    widest = max(int(n.meta["val"].shape[-1]) for n in (q, v))
    return Block(32 if widest <= WIDE_HEAD else 16, 0, 256)


def attention_simt(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None

    def place_result(names: list[str]) -> dict[str, Any]:
        if anchor in program.region.stored:
            return stored_result(program, printer, params, names)
        return {"out": "", "out_row": ""}

    context = attention_context(program, printer, params, place_result)
    head_dim, v_dim, keys = context["head_dim"], context["v_dim"], block.rows
    tile, ldo = result_tile(printer, block, v_dim, "0")
    num_bytes = 4 * (block.rows * (head_dim + keys + 5) + keys * (max(head_dim, v_dim) + 1))
    context.update(keys=keys, ldo=ldo, attention_bytes=num_bytes)
    shape = program.table.shape(anchor)
    return AnchorCode(
        "cuda/attention_simt.cu.j2",
        context,
        prod(shape[:-2]) * shape[-2].ceildiv(block.rows),
        headers(program, "attention_simt.h"),
        [],
        [tile, shared(printer, "attention_shared", num_bytes)],
    )
