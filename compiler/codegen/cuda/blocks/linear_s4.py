"""A 4-bit linear with its low-rank branch."""

from __future__ import annotations

from svdqc.compiler.codegen.cuda.blocks.parts import bias_text
from svdqc.compiler.codegen.cuda.blocks.product import Product, product_code, row_and_column_tasks
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.operands import stored_kind
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import RANGES, StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget


def linear_s4(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    codes, scale, low, w_codes, w_scale, lora_up, bias = operands(anchor)
    out_features, in_features = (int(s) for s in w_codes.meta["val"].shape)
    groups, rank = int(w_scale.meta["val"].shape[-1]), int(lora_up.meta["val"].shape[1])
    num_rows = program.region.layout.num_rows
    lines, column_tasks = row_and_column_tasks(
        block, params.scalar(num_rows, force=True), out_features
    )
    storages = printer.storages
    kind = RANGES[str(operands(codes.args[0])[4])]
    nibble = "nibble_u4" if kind == "Unsigned15" else "nibble_s4"
    x_codes, x_scale = printer.pointer(storages[codes]), printer.pointer(storages[scale])
    w = printer.pointer(storages[w_codes])  # a byte each, as they are
    of_w = storages[w_scale]
    scale_at = f"{printer.pointer(of_w)}[column * {groups} + g]"
    branch = {
        "group": in_features // groups,
        "x_scale": f"{x_scale}[(row_begin + r) * {groups} + g]",
        "w_scale": f"svdq::{stored_kind(of_w)}::load({scale_at})",
        "rank": rank,
    }
    if rank:
        up = storages[lora_up]
        branch["low"] = f"{printer.pointer(storages[low])}[(row_begin + r) * {rank} + j]"
        up_at = f"{printer.pointer(up)}[column * {rank} + j]"
        branch["lora_up"] = f"svdq::{stored_kind(up)}::load({up_at})"
    row = f"{x_codes} + (row_begin + r) * {in_features // 2}"
    return product_code(
        program,
        printer,
        block,
        Product(
            lines,
            num_rows.ceildiv(block.rows) * column_tasks,
            str(in_features),
            [f"return svdq::{nibble}({row}, ik);"],
            [f"return static_cast<float>({w}[column * {in_features} + ik]);"],
            bias_text(printer, bias),
            branch,
        ),
    )
