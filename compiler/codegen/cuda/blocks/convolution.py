"""A convolution as an implicit product on tensor cores: `cuda/conv.cu.j2`. Rows are output positions, k runs over taps,
then channels. Groups and transposition go to `convolution_simt.py`."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from svdqc.compiler.codegen.cuda.blocks.convolution_simt import convolution_simt
from svdqc.compiler.codegen.cuda.blocks.product import product_block
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
from svdqc.compiler.codegen.printing.operands import strided, strides_of, weight_source
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.codegen.scalar import DTYPE_NAMES
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget

COPIED = 4
"""Floats of one 16-byte copy."""


def convolution_blocks(program: RowProgram, target: CudaTarget) -> Sequence[Block]:
    if not _is_product(program):
        return [product_block(program, target)]
    product, outputs, k = _product(program, target)
    return tile_blocks(target, program, product, outputs, k)


def convolution(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    if not _is_product(program):
        return convolution_simt(target, program, printer, params, block)
    anchor = program.region.anchor
    assert anchor is not None
    x, weight, bias, stride, padding, dilation = operands(anchor)[:6]
    product, outputs, k = _product(program, target)
    tile = chosen_tile(block)
    stored = DTYPE_NAMES[weight_source(weight).meta["val"].dtype]
    in_shape, out_shape = program.table.shape(x), program.table.shape(anchor)
    held = strided(program, printer, x)
    found = strides_of(program, printer.storages, x)
    assert found is not None
    batch_step, channel_step, *steps = held.strides
    context: dict[str, Any] = {
        "gemm": f"svdq::FloatGemm<Tile, svdq::{math_of(target)}, svdq::Stored::{STORED[stored]}, {product.bk}>",
        "in_features": k,
        "w": printer.pointer(printer.storages.packed(weight_source(weight), f"conv_{stored}_mma")),
        "bk": product.bk,
        "axes": len(steps),
        "wide": COPIED if _copies_16_bytes(in_shape[1], held.strides, found[2]) else 1,
        "input": held.pointer,
        "channels": in_shape[1].const,
        "kernel": [int(s) for s in weight.meta["val"].shape[2:]],
        "stride": [int(s) for s in stride],
        "padding": [int(p) for p in padding],
        "dilation": [int(d) for d in dilation],
        "out_sizes": [params.scalar(s, force=True) for s in out_shape[2:]],
        "in_sizes": [params.scalar(s, force=True) for s in in_shape[2:]],
        "steps": [params.scalar(s) for s in steps],
        "batch_step": params.scalar(batch_step),
        "channel_step": params.scalar(channel_step),
    }
    code = product_code(
        target, "cuda/conv.cu.j2", program, printer, params, tile, product, outputs, bias, context
    )
    code.headers.append("conv_rows.h")
    return code


def _is_product(program: RowProgram) -> bool:
    anchor = program.region.anchor
    assert anchor is not None
    transposed, _, groups = operands(anchor)[6:9]
    return not transposed and int(groups) == 1


def _product(program: RowProgram, target: CudaTarget) -> tuple[Floats, int, int]:
    """How weights are multiplied, output channels, taps * channels."""
    anchor = program.region.anchor
    assert anchor is not None
    weight = operands(anchor)[1]
    outputs, *rest = (int(s) for s in weight.meta["val"].shape)
    stored = DTYPE_NAMES[weight_source(weight).meta["val"].dtype]
    return floats_of(target, stored), outputs, prod(rest)


def _copies_16_bytes(channels: IntExpr, strides: tuple[IntExpr, ...], offset: IntExpr) -> bool:
    """Whether every group of four channels lies together at a multiple of 16 bytes; buffers begin at one."""
    batch_step, channel_step, *steps = strides
    multiples = (channels, offset, batch_step, *steps)
    return channel_step == 1 and all(size % COPIED == 0 for size in multiples)
