"""A convolution over a block of output positions: `cpu/conv.cpp.j2`."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from svdqc.compiler.codegen.cpu.blocks.parts import (
    bias_context,
    headers,
    result_tile,
    uses_quantize,
)
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.operands import strided, weight_source
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import IntExpr, prod
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cpu_scratch import conv_scratch_bytes
from svdqc.compiler.targets.layouts import conv_layout


def convolution(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    x, weight, bias, stride, padding, dilation, transposed, _, groups = operands(anchor)[:9]
    rank = len(stride)
    in_shape, out_shape = program.table.shape(x), program.table.shape(anchor)
    w_shape = [int(s) for s in weight.meta["val"].shape]
    in_channels, out_channels, groups = in_shape[1].const, out_shape[1].const, int(groups)
    group_channels, group_outputs = in_channels // groups, out_channels // groups
    depthwise = is_depthwise(anchor, in_channels, out_channels)
    operand = strided(program, printer, x)
    layout = "depthwise" if depthwise else conv_layout(groups, bool(transposed))
    storage = printer.storages.packed(weight_source(weight), layout)
    if depthwise:
        storage = replace(storage, dtype="f32")
    names = ("d", "h", "w")[3 - rank :]
    fields: list[tuple[str, str]] = [
        ("channels", str(in_channels if depthwise else group_channels)),
        ("x_n", params.scalar(operand.strides[0])),
        ("x_c", params.scalar(operand.strides[1])),
    ]
    for a, name in enumerate(names):
        fields += [
            (f"x_{name}", params.scalar(operand.strides[2 + a])),
            (f"in_{name}", params.scalar(in_shape[2 + a])),
            (f"out_{name}", params.scalar(out_shape[2 + a])),
            (f"k_{name}", str(w_shape[2 + a])),
            (f"stride_{name}", str(stride[a])),
            (f"pad_{name}", str(padding[a])),
            (f"dil_{name}", str(dilation[a])),
        ]
    if transposed:
        fields.append(("transposed", "true"))
    declaration, ldo = result_tile(printer, block, out_channels + 16)
    taps = prod(w_shape[2:]).const
    group_weight = -(-group_outputs // 16) * taps * group_channels * 16
    offset = printer.scratch.num_bytes
    printer.scratch.take(IntExpr.of(conv_scratch_bytes(block.rows, group_channels)))
    context = {
        "fields": fields,
        "groups": groups,
        "group_channels": in_channels if depthwise else group_channels,
        "group_outputs": group_outputs,
        "group_weight": group_weight,
        "out_channels": out_channels,
        "ldo": ldo,
        "depthwise": depthwise,
        "x": operand.pointer,
        "x_c": params.scalar(operand.strides[1]),
        "conv": {"f32": "conv_rows_f32", "bf16": "conv_rows_wbf16", "f16": "conv_rows_wf16"}[
            storage.dtype
        ],
        "w": printer.pointer(storage),
        **bias_context(printer, bias),
    }
    declarations = [
        declaration,
        f"void* const conv_scratch = scratch + {params.scalar(offset)};",
        "(void)conv_scratch;",
    ]
    return AnchorCode(
        "cpu/conv.cpp.j2",
        context,
        program.region.layout.num_rows.ceildiv(block.rows),
        headers("gemm_f32.h", "conv.h", *uses_quantize(program)),
        [],
        declarations,
    )


def is_depthwise(anchor: Node, in_channels: int, out_channels: int) -> bool:
    """One filter per channel, which has a kernel of its own."""
    return int(operands(anchor)[8]) == in_channels == out_channels > 1 and not anchor.args[6]
