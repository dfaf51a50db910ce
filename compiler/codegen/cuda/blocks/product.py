"""Products without tensor cores, their operands given element by element: `cuda/product_simt.cu.j2`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from svdqc.compiler.codegen.cuda.blocks.parts import headers, result_tile, shared
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.targets.cuda import CudaTarget

COLUMNS, SLICE = 64, 16
FEW_ROWS = 16


def product_block(program: RowProgram, target: CudaTarget) -> Block:
    """64 x 64 results, or 16 x 64 where there are no more rows."""
    rows = program.region.layout.num_rows.upper()
    return Block(64 if rows > FEW_ROWS else FEW_ROWS, COLUMNS, 256)


@dataclass
class Product:
    """y[m, n] = sum_k a(m, k) * b(n, k) + bias(n).

    task_lines  find row_begin, rows, col_begin and col_end from `task`
    a, b        lines that return element (r, ik) of the left operand, (n, ik) of the right; `column` = col_begin + n
    bias        an expression of `column`
    branch      parameters of a low-rank branch and of group scales, if there are any
    """

    task_lines: list[str]
    num_tasks: IntExpr
    k: str
    a: list[str]
    b: list[str]
    bias: str
    branch: dict[str, Any]


def product_code(
    program: RowProgram, printer: StatementPrinter, block: Block, product: Product
) -> AnchorCode:
    """The anchor's code for a product."""
    tile, ldo = result_tile(printer, block, block.columns, "col_begin")
    slice_bytes = SLICE * (block.rows + block.columns + 2) * 4
    context = {
        "columns": block.columns,
        "task_lines": product.task_lines,
        "k": product.k,
        "a": product.a,
        "b": product.b,
        "bias": product.bias,
        "ldo": ldo,
        "slice_bytes": slice_bytes,
        "rank": 0,
        "group": 0,
        **product.branch,
    }
    return AnchorCode(
        "cuda/product_simt.cu.j2",
        context,
        product.num_tasks,
        headers(program, "gemm_simt.h"),
        [],
        [tile, shared(printer, "slices", slice_bytes)],
    )


def row_and_column_tasks(block: Block, num_rows: str, out_features: int) -> tuple[list[str], int]:
    """Lines that split `task` into a block of rows and one of columns; how many of the latter there are."""
    column_tasks = -(-out_features // block.columns)
    return [
        f"const int64_t row_begin = task / {column_tasks} * {block.rows};",
        f"const int64_t col_begin = task % {column_tasks} * {block.columns};",
        f"const int64_t col_end = svdq::min_i64({out_features}, col_begin + {block.columns});",
        f"const int64_t rows = svdq::min_i64({block.rows}, {num_rows} - row_begin);",
    ], column_tasks
