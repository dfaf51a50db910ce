"""A batched product of two activations: `cpu/bmm.cpp.j2`."""

from __future__ import annotations

from svdqc.compiler.codegen.cpu.blocks.parts import (
    headers,
    uses_quantize,
)
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.operands import lead_decode, pointer_at, strided
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import operands


def bmm(program: RowProgram, printer: StatementPrinter, params: Params, block: Block) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    x, w = operands(anchor)[:2]
    batch, m, k = program.table.shape(x)
    n = program.table.shape(w)[-1]
    decode, names = lead_decode(params, (batch,), "blocks")
    operand = strided(program, printer, w)
    width = n.ceildiv(16) * 16
    tile = printer.scratch.take(width * block.rows * 4)
    x_tile = printer.scratch.take(k * block.rows * 4)
    panels = printer.scratch.take(width * k * 4)
    printer.tile = ("tile", params.scalar(width), "0")
    declarations = [
        f"float* const {name} = reinterpret_cast<float*>(scratch + {params.scalar(offset)});"
        for name, offset in (("tile", tile), ("x_tile", x_tile), ("panels", panels))
    ]
    context = {
        "decode": decode,
        "m": params.scalar(m),
        "n": params.scalar(n),
        "k": params.scalar(k),
        "x_tile": "x_tile",
        "w": pointer_at(params, operand, names),
        "w_k": params.scalar(operand.strides[1]),
        "w_n": params.scalar(operand.strides[2]),
        "ldo": params.scalar(width),
    }
    before = printer.gather(x, "x_tile", params.scalar(k))
    return AnchorCode(
        "cpu/bmm.cpp.j2",
        context,
        batch * m.ceildiv(block.rows),
        headers("gemm_f32.h", *uses_quantize(program)),
        before,
        declarations,
    )
