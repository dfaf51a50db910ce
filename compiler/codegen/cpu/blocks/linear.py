"""A linear with float weights: `cpu/gemm.cpp.j2`."""

from __future__ import annotations

from torch.fx import Node

from svdqc.compiler.codegen.cpu.blocks.parts import (
    AnchorCode,
    bias_context,
    column_context,
    headers,
    result_tile,
    uses_quantize,
    weight_source,
)
from svdqc.compiler.codegen.cpu.blocks.plan import Block
from svdqc.compiler.codegen.cpu.params import Params
from svdqc.compiler.codegen.cpu.statements import StatementPrinter
from svdqc.compiler.codegen.ops.registry import Index
from svdqc.compiler.codegen.ops.views import delinearize, linearize
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.codegen.scalar import Load
from svdqc.compiler.ir.intexpr import ZERO, IntExpr, index
from svdqc.compiler.ir.rewrite import argument


def linear(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    x, weight, bias = anchor.args[0], anchor.args[1], argument(anchor, 2, "bias")
    out_features, in_features = (int(s) for s in weight.meta["val"].shape)  # type: ignore[union-attr]
    storage = printer.storages.packed(weight_source(weight), "gemm_n16")  # type: ignore[arg-type]
    declaration, ldo = result_tile(printer, block, out_features)
    declarations, before = [declaration], []
    rows = direct_rows(program, printer, x)  # type: ignore[arg-type]
    if rows is not None:
        pointer, ldx = rows
    else:
        stride = in_features + 16
        offset = printer.scratch.take(IntExpr.of(stride * block.rows * 4))
        declarations.append(
            f"float* const x_rows = reinterpret_cast<float*>(scratch + {params.scalar(offset)});"
        )
        before = printer.gather(x, "x_rows", str(stride))  # type: ignore[arg-type]
        pointer, ldx = "x_rows", str(stride)
    columns, num_tasks = column_context(program, block, out_features)
    context = {
        "out_features": out_features,
        "in_features": in_features,
        "ldo": ldo,
        "x": pointer,
        "ldx": ldx,
        "gemm": {"f32": "gemm_f32", "bf16": "gemm_wbf16", "f16": "gemm_wf16"}[storage.dtype],
        "w": printer.pointer(storage),
        **bias_context(printer, bias),
        **columns,
    }
    return AnchorCode(
        "cpu/gemm.cpp.j2",
        context,
        num_tasks,
        headers("gemm_f32.h", *uses_quantize(program)),
        before,
        declarations,
    )


def direct_rows(program: RowProgram, printer: StatementPrinter, x: Node) -> tuple[str, str] | None:
    """(pointer at row_begin, row stride) if the rows of x lie in memory at equal distances, as f32; else None."""
    layout = program.region.layout
    shape = program.table.shape(x)
    sizes = tuple(layout.atoms.size(a) for a in layout.outer)
    outer = tuple(program.loop_index(a) for a in layout.outer)
    k = index("ik", shape[-1])
    row = linearize(outer, sizes)
    if x in layout.axes or x in program.region.nodes:
        return None
    value = program.read(x, (*_split_rows(row, shape[:-1]), k))
    if not isinstance(value, Load) or value.dtype != "f32" or value.source in program.region.nodes:
        return None
    storage = printer.storages[value.source]
    address = storage.address(value.idx) - storage.offset
    if not k.is_const:
        (monomial,) = k.terms
        step = address.coefficient_of(monomial[0])  # type: ignore[arg-type]
        if step != 1:
            return None
        address = address - k
    stride = _row_stride(address, outer)
    rest = address - row * stride
    if any(s.extent is not None for s in rest.symbols()):
        return None
    pointer = printer.pointer(storage)
    text = printer.params.scalar(stride, force=True)
    return f"{pointer} + {printer.params.scalar(rest)} + row_begin * {text}", text


def _split_rows(row: IntExpr, sizes: Index) -> Index:
    return delinearize(row, sizes)


def _row_stride(address: IntExpr, outer: Index) -> IntExpr:
    for i in reversed(outer):
        if not i.is_const:
            (monomial,) = i.terms
            return address.coefficient_of(monomial[0]) or ZERO  # type: ignore[arg-type]
    return ZERO
