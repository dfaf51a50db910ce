"""A 4-bit linear with its low-rank branch, on integer tensor cores: `cuda/gemm_int.cu.j2`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from svdqc.compiler.codegen.cuda.blocks.tensor_cores import (
    STORED,
    chosen_tile,
    math_of,
    product_code,
    tile_blocks,
)
from svdqc.compiler.codegen.cuda.tiles import Coded
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import RANGES, StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget


def linear_s4_blocks(program: RowProgram, target: CudaTarget) -> Sequence[Block]:
    product, (out_features, in_features) = _product(program, target)
    return tile_blocks(target, program, product, out_features, in_features)


def _product(program: RowProgram, target: CudaTarget) -> tuple[Coded, tuple[int, int]]:
    """4-bit codes on both sides; [out_features, in_features] of the weight."""
    anchor = program.region.anchor
    assert anchor is not None
    _, _, _, w_codes, w_scale, _, _ = operands(anchor)
    out_features, in_features = (int(s) for s in w_codes.meta["val"].shape)
    group = in_features // int(w_scale.meta["val"].shape[-1])
    return Coded(4, 4, group, "s4" in target.tensor_ops), (out_features, in_features)


def low_rank_context(
    target: CudaTarget, printer: StatementPrinter, low: Node, lora_up: Node
) -> dict[str, Any]:
    """What the template needs of a low-rank branch."""
    rank = int(lora_up.meta["val"].shape[1])
    if not rank:
        return {"rank": 0}
    stored = printer.storages[lora_up].dtype
    return {
        "rank": rank,
        "low": printer.pointer(printer.storages[low]),
        "lora_up": printer.pointer(printer.storages.packed(lora_up, f"{stored}_mma")),
        "lora_stored": STORED[stored],
        "math": math_of(target),
    }


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
    product, (out_features, in_features) = _product(program, target)
    tile = chosen_tile(block)
    unsigned = RANGES[str(operands(codes.args[0])[4])] == "Unsigned15"
    kind = "S4" if product.native_s4 else "S4Widened"
    storages = printer.storages
    context = {
        "gemm": f"svdq::IntGemm<Tile, svdq::{kind}<{str(unsigned).lower()}>, {product.group}, {product.bk}>",
        "in_features": in_features,
        "x_groups": in_features // product.group,
        "row_bytes": in_features // 2,
        "x_codes": printer.pointer(storages[codes]),
        "x_scale": printer.pointer(storages[scale]),
        "w": printer.pointer(storages.packed(w_codes, "s4_mma")),
        "w_scale": f"reinterpret_cast<const uint16_t*>({printer.pointer(storages.packed(w_scale, 'scale_mma'))})",
        "w_more": "",
        **low_rank_context(target, printer, low, lora_up),
    }
    return product_code(
        target,
        "cuda/gemm_int.cu.j2",
        program,
        printer,
        params,
        tile,
        product,
        out_features,
        bias,
        context,
    )
