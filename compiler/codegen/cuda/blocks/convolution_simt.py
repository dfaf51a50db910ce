"""Grouped and transposed convolutions: rows are output positions, k runs over taps, then channels; no tensor cores."""

from __future__ import annotations

from svdqc.compiler.codegen.cuda.blocks.parts import bias_text
from svdqc.compiler.codegen.cuda.blocks.product import Product, product_code
from svdqc.compiler.codegen.printing.backend import AnchorCode, Block
from svdqc.compiler.codegen.printing.operands import stored_kind, strided, weight_source
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.intexpr import prod
from svdqc.compiler.ir.rewrite import operands
from svdqc.compiler.targets.cuda import CudaTarget


def convolution_simt(
    target: CudaTarget,
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    block: Block,
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    x, weight, bias, stride, padding, dilation, transposed, _, groups = operands(anchor)[:9]
    in_shape, out_shape = program.table.shape(x), program.table.shape(anchor)
    kernel = [int(s) for s in weight.meta["val"].shape[2:]]
    groups, taps = int(groups), prod(kernel).const
    group_channels = in_shape[1].const // groups
    group_outputs = out_shape[1].const // groups
    num_rows = program.region.layout.num_rows
    rows_text = params.rows(num_rows)
    tiles = -(-group_outputs // block.columns)
    lines = [
        f"const int64_t row_begin = task / {tiles * groups} * {block.rows};",
        f"const int64_t group = task % {tiles * groups} / {tiles};",
        f"const int64_t col_begin = group * {group_outputs} + task % {tiles} * {block.columns};",
        f"const int64_t col_end = svdq::min_i64((group + 1) * {group_outputs}, col_begin + {block.columns});",
        f"const int64_t rows = svdq::min_i64({block.rows}, {rows_text} - row_begin);",
    ]
    operand = strided(program, printer, x)

    # The input position of each axis, from the row (an output position) and the tap.
    a = [
        f"const uint32_t channel = static_cast<uint32_t>(ik) % {group_channels}u;",
        f"uint32_t tap = static_cast<uint32_t>(ik) / {group_channels}u;",
        "uint32_t position = static_cast<uint32_t>(row_begin + r);",
    ]
    address = [
        operand.pointer,
        f"(group * {group_channels} + channel) * {params.scalar(operand.strides[1])}",
    ]
    for axis in reversed(range(len(kernel))):
        size = params.scalar(out_shape[2 + axis], force=True)
        extent = params.scalar(in_shape[2 + axis], force=True)
        reach = f"static_cast<int64_t>(tap % {kernel[axis]}u) * {int(dilation[axis])}"
        out = f"static_cast<int64_t>(position % static_cast<uint32_t>({size}))"
        if transposed:
            a += [
                f"const int64_t from{axis} = {out} + {int(padding[axis])} - {reach};",
                f"if (from{axis} < 0 || from{axis} % {int(stride[axis])} != 0) return 0.0f;",
                f"const int64_t in{axis} = from{axis} / {int(stride[axis])};",
            ]
        else:
            a.append(
                f"const int64_t in{axis} = {out} * {int(stride[axis])} - {int(padding[axis])} + {reach};"
            )
        a += [
            f"if (in{axis} < 0 || in{axis} >= {extent}) return 0.0f;",
            f"position /= static_cast<uint32_t>({size});",
            f"tap /= {kernel[axis]}u;",
        ]
        address.append(f"in{axis} * {params.scalar(operand.strides[2 + axis], force=True)}")
    address.append(
        f"static_cast<int64_t>(position) * {params.scalar(operand.strides[0], force=True)}"
    )
    a.append(f"return *({' + '.join(address)});")

    storage = printer.storages[weight_source(weight)]
    channel, tap = f"ik % {group_channels}", f"ik / {group_channels}"
    if transposed:  # [groups * channels, outputs, taps]
        at = f"((group * {group_channels} + {channel}) * {group_outputs} + column - group * {group_outputs})"
    else:  # [groups * outputs, channels, taps]
        at = f"(column * {group_channels} + {channel})"
    element = f"{printer.pointer(storage)}[{at} * {taps} + {tap}]"
    return product_code(
        program,
        printer,
        block,
        Product(
            lines,
            num_rows.ceildiv(block.rows) * (tiles * groups),
            str(group_channels * taps),
            a,
            [f"return svdq::{stored_kind(storage)}::load({element});"],
            bias_text(printer, bias),
            {},
        ),
    )
