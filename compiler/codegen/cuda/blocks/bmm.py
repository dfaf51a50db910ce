"""A batched product of two activations."""

from __future__ import annotations

from svdqc.compiler.codegen.cuda.blocks.product import Product, product_code
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.operands import pointer_at, strided
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget


def bmm(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    x, w = operands(anchor)[:2]
    batch, m, k = program.table.shape(x)
    n = program.table.shape(w)[-1]
    operand = strided(program, printer, w)
    m_text, n_text = params.scalar(m, force=True), params.scalar(n, force=True)
    lines = [
        f"const int64_t column_tasks = svdq::ceil_div({n_text}, {block.columns});",
        f"const int64_t row_tasks = svdq::ceil_div({m_text}, {block.rows});",
        "const int64_t batch = task / column_tasks / row_tasks;",
        f"const int64_t first = task / column_tasks % row_tasks * {block.rows};",
        f"const int64_t row_begin = batch * {m_text} + first;",
        f"const int64_t rows = svdq::min_i64({block.rows}, {m_text} - first);",
        f"const int64_t col_begin = task % column_tasks * {block.columns};",
        f"const int64_t col_end = svdq::min_i64({n_text}, col_begin + {block.columns});",
        "(void)batch;",
    ]
    body, text, _ = printer.gathered_value(x, None, "")
    right = pointer_at(params, operand, ["batch"])
    k_step, n_step = params.scalar(operand.strides[1]), params.scalar(operand.strides[2])
    return product_code(
        program,
        printer,
        block,
        Product(
            lines,
            batch * m.ceildiv(block.rows) * n.ceildiv(block.columns),
            params.scalar(k),
            [*printer.decode_row([*body, text]), *body, f"return {text};"],
            [f"return ({right})[ik * {k_step} + column * {n_step}];"],
            "0.0f",
            {},
        ),
    )
