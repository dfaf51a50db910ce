"""A linear with float weights, on 16-bit tensor cores: `cuda/gemm_float.cu.j2`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from svdqc.compiler.codegen.cuda.blocks.tensor_cores import (
    STORED,
    chosen_tile,
    floats_of,
    math_of,
    product_code,
    tile_blocks,
)
from svdqc.compiler.codegen.cuda.tiles import Floats
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.operands import direct_rows, weight_source
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.codegen.scalar import DTYPE_NAMES
from svdqc.compiler.ir.rewrite import argument, operands
from svdqc.compiler.targets.cuda import CudaTarget

COPIED = 4
"""Floats of one 16-byte copy."""


def linear_blocks(program: RowProgram, target: CudaTarget) -> Sequence[Block]:
    product, _, (out_features, in_features) = _product(program, target)
    return tile_blocks(target, program, product, out_features, in_features)


def _product(program: RowProgram, target: CudaTarget) -> tuple[Floats, str, tuple[int, int]]:
    """Floats, how weights are stored, [out_features, in_features]."""
    anchor = program.region.anchor
    assert anchor is not None
    weight = operands(anchor)[1]
    stored = DTYPE_NAMES[weight_source(weight).meta["val"].dtype]
    out_features, in_features = (int(s) for s in weight.meta["val"].shape)
    return floats_of(target, stored), stored, (out_features, in_features)


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
    product, stored, (out_features, in_features) = _product(program, target)
    tile = chosen_tile(block)
    packed = printer.storages.packed(weight_source(weight), f"{stored}_mma")
    context: dict[str, Any] = {
        "gemm": f"svdq::FloatGemm<Tile, svdq::{math_of(target)}, svdq::Stored::{STORED[stored]}, {product.bk}>",
        "in_features": in_features,
        "w": printer.pointer(packed),
        "x_rows": None,
        "x": [],
    }
    rows = direct_rows(program, printer, x)
    if rows is not None:
        pointer, ldx = rows
        context["x_rows"] = {
            "x": pointer.replace("row_begin", "tile_row"),
            "ldx": ldx,
            "vector": "true" if copies_16_bytes(pointer, ldx, in_features) else "false",
        }
    else:
        body, text, _ = printer.gathered_value(x, None, "")
        context["x"] = [*printer.decode_row([*body, text]), *body, f"return {text};"]
    return product_code(
        target,
        "cuda/gemm_float.cu.j2",
        program,
        printer,
        params,
        tile,
        product,
        out_features,
        argument(anchor, 2, "bias"),
        context,
    )


def copies_16_bytes(pointer: str, ldx: str, in_features: int) -> bool:
    """Whether rows begin and end at multiples of 16 bytes; buffers do. pointer: "buffer + offset + row_begin * ldx"."""
    offset = pointer.split(" + ")[1]
    numbers = (offset, ldx, str(in_features))
    return all(text.isdigit() and int(text) % COPIED == 0 for text in numbers)
