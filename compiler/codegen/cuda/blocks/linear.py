"""A linear with float weights."""

from __future__ import annotations

from svdqc.compiler.codegen.cuda.blocks.parts import bias_text
from svdqc.compiler.codegen.cuda.blocks.product import Product, product_code, row_and_column_tasks
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.operands import stored_kind, weight_source
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import argument, operands
from svdqc.compiler.targets.cuda import CudaTarget


def linear(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    x, weight = operands(anchor)[:2]
    out_features, in_features = (int(s) for s in weight.meta["val"].shape)
    num_rows = program.region.layout.num_rows
    lines, column_tasks = row_and_column_tasks(
        block, params.scalar(num_rows, force=True), out_features
    )
    body, text, _ = printer.gathered_value(x, None, "")
    storage = printer.storages[weight_source(weight)]
    at = f"{printer.pointer(storage)}[column * {in_features} + ik]"
    return product_code(
        program,
        printer,
        block,
        Product(
            lines,
            num_rows.ceildiv(block.rows) * column_tasks,
            str(in_features),
            [*printer.decode_row([*body, text]), *body, f"return {text};"],
            [f"return svdq::{stored_kind(storage)}::load({at});"],
            bias_text(printer, argument(anchor, 2, "bias")),
            {},
        ),
    )
