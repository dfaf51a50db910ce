"""What a region's anchor adds to its kernel on a CPU: the block, the template and the template's parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import Node

from svdqc.compiler.codegen.cpu.params import Params
from svdqc.compiler.codegen.cpu.statements import RANGES, StatementPrinter
from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.ops.registry import Index
from svdqc.compiler.codegen.ops.views import linearize
from svdqc.compiler.codegen.region import tiles_columns
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.codegen.scalar import Load
from svdqc.compiler.codegen.storage import Storage
from svdqc.compiler.ir.intexpr import ZERO, IntExpr, index, prod
from svdqc.compiler.ir.rewrite import argument, operands
from svdqc.compiler.targets.cpu_scratch import attention_scratch_bytes, conv_scratch_bytes
from svdqc.compiler.targets.layouts import conv_layout

TILE_BYTES = 512 << 10
"""A block's result should stay in a core's second-level cache."""
ROWS_IN_TILE = 12
"""The matrix kernels compute 12 rows at a time."""
QUERY_BLOCK = 192
"""attention.h packs keys and values once per so many queries."""
COLUMN_BLOCK = 256


@dataclass(frozen=True)
class Block:
    """Rows per task; columns per task where the anchor is split along them, else 0."""

    rows: int
    columns: int = 0


@dataclass
class AnchorCode:
    template: str
    context: dict[str, Any]
    num_tasks: IntExpr
    headers: list[str]
    before: list[str] = field(default_factory=list)
    scratch_declarations: list[str] = field(default_factory=list)


def plan_block(program: RowProgram) -> Block:
    """The block of a region: as many rows as keep its values in cache and leave tasks for every core."""
    region = program.region
    anchor, rows = region.anchor, region.layout.num_rows
    if anchor is None:
        widest = max(
            (
                region.layout.inner_elements(n).upper()
                for n in region.nodes
                if n in region.layout.axes
            ),
            default=1,
        )
        block = max(1, min(64, 16384 // max(widest, 1)))
        return Block(max(1, min(block, -(-rows.upper() // 4))))
    target = str(anchor.target)
    if target == anchors.ATTENTION:
        return Block(QUERY_BLOCK)
    width = max(
        region.layout.inner_elements(n).upper() for n in region.nodes if n in region.layout.axes
    )
    if target in (anchors.LINEAR, anchors.LINEAR_S4):
        few = rows.upper() <= 4 * ROWS_IN_TILE
        if few and tiles_columns(region.nodes, region.stored, anchor, region.layout):
            return Block(min(rows.upper(), 4 * ROWS_IN_TILE), COLUMN_BLOCK)
    for count in (48, 36, 24, 12):
        if count * width * 4 <= TILE_BYTES and rows.upper() >= 4 * count:
            return Block(count)
    return Block(ROWS_IN_TILE if width * 4 * ROWS_IN_TILE <= 2 * TILE_BYTES else ROWS_IN_TILE // 3)


def describe(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    """The anchor's part of the kernel."""
    anchor = program.region.anchor
    if anchor is None:
        return AnchorCode(
            "cpu/rows.cpp.j2",
            {},
            program.region.layout.num_rows.ceildiv(block.rows),
            _headers("quantize_s4.h", "gemm_f32.h")
            if any(str(n.target) == anchors.QUANTIZE_S4 for n in program.region.nodes)
            else _headers(),
        )
    return _DESCRIBE[str(anchor.target)](program, printer, params, block)


def _headers(*extra: str) -> list[str]:
    return ["rows.h", *extra]


# ---- linears


def _tile(printer: StatementPrinter, block: Block, out_features: int) -> tuple[str, int]:
    """Scratch for the anchor's result; returns its declaration and row stride."""
    width = block.columns or out_features
    ldo = -(-width // 16) * 16
    if ldo % 256 == 0:
        ldo += 16  # rows a power of two apart would share cache sets
    offset = printer.scratch.take(IntExpr.of(ldo * block.rows * 4))
    printer.tile = ("tile", str(ldo), "col_begin" if block.columns else "0")
    return (
        f"float* const tile = reinterpret_cast<float*>(scratch + {printer.params.scalar(offset)});",
        ldo,
    )


def _column_context(
    program: RowProgram, block: Block, out_features: int
) -> tuple[dict[str, Any], IntExpr]:
    tasks = program.region.layout.num_rows.ceildiv(block.rows)
    column_tasks = -(-out_features // block.columns) if block.columns else 1
    return {"columns": block.columns, "column_tasks": column_tasks}, tasks * column_tasks


def _uses_quantize(program: RowProgram) -> list[str]:
    found = any(str(n.target) == anchors.QUANTIZE_S4 for n in program.region.nodes)
    return ["quantize_s4.h"] if found else []


def weight_source(node: Node) -> Node:
    """The stored weight behind an operand: itself, or what a cast to float32 reads."""
    return node.args[0] if str(node.target) == "aten._to_copy.default" else node  # type: ignore[return-value]


def _bias(printer: StatementPrinter, bias: Any) -> dict[str, str]:
    """The bias vector as it is stored; "" for none."""
    if bias is None:
        return {"bias": "", "bias_stored": ""}
    storage = printer.storages[weight_source(bias)]
    kinds = {"f32": "StoredF32", "bf16": "StoredBf16", "f16": "StoredF16"}
    return {"bias": printer.pointer(storage), "bias_stored": kinds[storage.dtype]}


def _linear(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    x, weight, bias = anchor.args[0], anchor.args[1], argument(anchor, 2, "bias")
    out_features, in_features = (int(s) for s in weight.meta["val"].shape)  # type: ignore[union-attr]
    storage = printer.storages.packed(weight_source(weight), "gemm_n16")  # type: ignore[arg-type]
    declaration, ldo = _tile(printer, block, out_features)
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
    columns, num_tasks = _column_context(program, block, out_features)
    context = {
        "out_features": out_features,
        "in_features": in_features,
        "ldo": ldo,
        "x": pointer,
        "ldx": ldx,
        "gemm": {"f32": "gemm_f32", "bf16": "gemm_wbf16", "f16": "gemm_wf16"}[storage.dtype],
        "w": printer.pointer(storage),
        **_bias(printer, bias),
        **columns,
    }
    return AnchorCode(
        "cpu/gemm.cpp.j2",
        context,
        num_tasks,
        _headers("gemm_f32.h", *_uses_quantize(program)),
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
    from svdqc.compiler.codegen.ops.views import delinearize

    return delinearize(row, sizes)


def _row_stride(address: IntExpr, outer: Index) -> IntExpr:
    for i in reversed(outer):
        if not i.is_const:
            (monomial,) = i.terms
            return address.coefficient_of(monomial[0]) or ZERO  # type: ignore[arg-type]
    return ZERO


def _linear_s4(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    codes, scale, low, w_codes, w_scale, lora_up, bias = operands(anchor)
    out_features, in_features = (int(s) for s in w_codes.meta["val"].shape)
    groups, rank = int(scale.meta["val"].shape[-1]), int(lora_up.meta["val"].shape[1])
    group = in_features // groups
    declaration, ldo = _tile(printer, block, out_features)
    packed = printer.scratch.take(IntExpr.of(block.rows * (in_features + 8 * groups)))
    quantize = codes.args[0]
    columns, num_tasks = _column_context(program, block, out_features)
    storages = printer.storages
    context = {
        "out_features": out_features,
        "in_features": in_features,
        "group": group,
        "rank": rank,
        "ldo": ldo,
        "range": RANGES[str(quantize.args[4])],
        "codes": printer.pointer(storages[codes]),
        "scale": printer.pointer(storages[scale]),
        "low": printer.pointer(storages[low]) if rank else "",
        "w": f"reinterpret_cast<const uint8_t*>({printer.pointer(storages.packed(w_codes, 's4_n16k4'))})",
        "w_scale": printer.pointer(storages.packed(w_scale, "bf16_scale_n16")),
        "lora_up": printer.pointer(storages.packed(lora_up, "gemm_n16")) if rank else "",
        **_bias(printer, bias),
        **columns,
    }
    declarations = [declaration, f"void* const packed = scratch + {params.scalar(packed)};"]
    return AnchorCode(
        "cpu/gemm_s4.cpp.j2",
        context,
        num_tasks,
        _headers("gemm_f32.h", "gemm_s4.h", *_uses_quantize(program)),
        [],
        declarations,
    )


# ---- strided operands


@dataclass(frozen=True)
class Strided:
    """A tensor in memory: pointer text at index 0, and the C text of each axis' stride."""

    pointer: str
    strides: tuple[IntExpr, ...]
    storage: Storage


def strided(program: RowProgram, printer: StatementPrinter, node: Node) -> Strided:
    """The strides with which a value (through any views) lies in memory."""
    found = strides_of(program, printer.storages, node)
    assert found is not None, (
        f"{node} has no plain strides; the materialize pass should have copied it"
    )
    storage, strides, rest = found
    pointer = printer.pointer(storage)
    text = f"{pointer} + {printer.params.scalar(rest)}" if rest != 0 else pointer
    return Strided(text, strides, storage)


def strides_of(
    program: RowProgram, storages: Any, node: Node
) -> tuple[Storage, tuple[IntExpr, ...], IntExpr] | None:
    shape = program.table.shape(node)
    idx = tuple(index(f"i{a}", size) for a, size in enumerate(shape))
    value = program.read(node, idx)
    if not isinstance(value, Load):
        return None
    storage = storages[value.source]
    address = storage.address(value.idx) - storage.offset
    strides = []
    for i in idx:
        if i.is_const:
            strides.append(ZERO)
            continue
        (monomial,) = i.terms
        stride = address.coefficient_of(monomial[0])
        if stride is None:
            return None
        strides.append(stride)
        address = address - i * stride
    if any(s.extent is not None for s in address.symbols()):
        return None
    return storage, tuple(strides), address


def _lead_decode(params: Params, sizes: Index, divisor: str) -> tuple[list[str], list[str]]:
    """C statements that split task / blocks into leading indices l0, l1, …; and their names."""
    lines = [f"int64_t lead = task / {divisor};"]
    names: list[str] = []
    for axis in reversed(range(len(sizes))):
        names.insert(0, f"l{axis}")
        size = params.scalar(sizes[axis], force=True)
        lines.append(f"const int64_t l{axis} = lead % {size};")
        lines.append(f"lead /= {size};")
    lines.append("".join(f"(void){n}; " for n in names).strip())
    return lines, names


def _at(params: Params, operand: Strided, lead: list[str]) -> str:
    """The pointer at leading indices; a broadcast axis has stride 0."""
    terms = [
        f"{name} * {params.scalar(stride, force=True)}"
        for name, stride in zip(lead, operand.strides, strict=False)
        if stride != 0
    ]
    return " + ".join([operand.pointer, *terms])


def _attention(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    q, k, v = operands(anchor)[:3]
    mask, causal = argument(anchor, 3, "attn_mask"), bool(argument(anchor, 5, "is_causal", False))
    q_shape, v_shape = program.table.shape(q), program.table.shape(v)
    head_dim, v_dim = q_shape[-1].const, v_shape[-1].const
    lead, q_len, kv_len = q_shape[:-2], q_shape[-2], v_shape[-2]
    decode, names = _lead_decode(params, lead, "blocks")
    sources = {
        name: strided(program, printer, node) for name, node in (("q", q), ("k", k), ("v", v))
    }
    declarations: list[str] = []
    if anchor in program.region.stored:
        out = printer.storages[anchor]
        result = Strided(printer.params.buffer(out, "write", None), out.strides, out)
        out_text, out_row = _at(params, result, names), params.scalar(out.strides[-2])
    else:  # an epilogue reads the block from scratch
        declaration, ldo = _tile(printer, block, v_dim)
        declarations.append(declaration)
        out_text, out_row = f"tile - query_begin * {ldo}", str(ldo)
    scale = argument(anchor, 6, "scale")
    context: dict[str, Any] = {
        "decode": decode,
        "q_len": params.scalar(q_len, force=True),
        "kv_len": params.scalar(kv_len, force=True),
        "head_dim": head_dim,
        "v_dim": v_dim,
        "causal": causal,
        "mask": "",
        "out": out_text,
        "out_row": out_row,
        "scale": f"{(float(scale) if scale is not None else head_dim**-0.5)!r}f",
    }
    for name, operand in sources.items():
        context[name] = _at(
            params,
            operand,
            _grouped_heads(
                params, names, lead, program.table.shape({"q": q, "k": k, "v": v}[name]), name
            ),
        )
        context[f"{name}_row"] = params.scalar(operand.strides[-2])
        context[f"{name}_col"] = (
            params.scalar(operand.strides[-1]) if operand.strides[-1] != 0 else "1"
        )
    if mask is not None:
        held = strided(program, printer, mask)
        rank = len(held.strides)
        context.update(
            mask=_at(params, held, names[len(names) - (rank - 2) :]),
            mask_field="mask_bool" if held.storage.dtype == "bool" else "mask_f32",
            mask_row=params.scalar(held.strides[-2]),
            mask_col=params.scalar(held.strides[-1]),
        )
        if held.storage.dtype == "bool":
            context["mask"] = f"reinterpret_cast<const uint8_t*>({context['mask']})"
    offset = printer.scratch.num_bytes
    declarations.append(f"void* const attention_scratch = scratch + {params.scalar(offset)};")
    context["scratch_bytes"] = attention_scratch_bytes(head_dim, v_dim)
    printer.scratch.take(IntExpr.of(context["scratch_bytes"]))
    return AnchorCode(
        "cpu/attention.cpp.j2",
        context,
        prod(lead) * q_len.ceildiv(block.rows),
        _headers("attention.h"),
        [],
        declarations,
    )


def _grouped_heads(
    params: Params, names: list[str], lead: Index, shape: Index, which: str
) -> list[str]:
    """Grouped-query attention: several query heads share a key/value head."""
    if which == "q" or not lead or shape[-3] == lead[-1] or shape[-3] == 1:
        return names
    return [*names[:-1], f"({names[-1]} / {params.scalar(lead[-1] // shape[-3])})"]


def _convolution(
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
    declaration, ldo = _tile(printer, block, out_channels + 16)
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
        **_bias(printer, bias),
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
        _headers("gemm_f32.h", "conv.h", *_uses_quantize(program)),
        [],
        declarations,
    )


def is_depthwise(anchor: Node, in_channels: int, out_channels: int) -> bool:
    """One filter per channel, which has a kernel of its own."""
    return int(operands(anchor)[8]) == in_channels == out_channels > 1 and not anchor.args[6]


def _bmm(
    program: RowProgram, printer: StatementPrinter, params: Params, block: Block
) -> AnchorCode:
    anchor = program.region.anchor
    assert anchor is not None
    x, w = operands(anchor)[:2]
    batch, m, k = program.table.shape(x)
    n = program.table.shape(w)[-1]
    decode, names = _lead_decode(params, (batch,), "blocks")
    operand = strided(program, printer, w)
    width = n.ceildiv(16) * 16
    tile = printer.scratch.take(width * block.rows * 4)
    x_tile = printer.scratch.take(k * block.rows * 4)
    panels = printer.scratch.take(width * k * 4)
    printer.tile = ("tile", params.scalar(width), "0")
    declarations = [
        f"float* const {name} = reinterpret_cast<float*>(scratch + {params.scalar(offset)});"
        for name, offset in (("tile", tile), ("x_tile", x_tile), ("panels", panels))
    ]
    context = {
        "decode": decode,
        "m": params.scalar(m),
        "n": params.scalar(n),
        "k": params.scalar(k),
        "x_tile": "x_tile",
        "w": _at(params, operand, names),
        "w_k": params.scalar(operand.strides[1]),
        "w_n": params.scalar(operand.strides[2]),
        "ldo": params.scalar(width),
    }
    before = printer.gather(x, "x_tile", params.scalar(k))
    return AnchorCode(
        "cpu/bmm.cpp.j2",
        context,
        batch * m.ceildiv(block.rows),
        _headers("gemm_f32.h", *_uses_quantize(program)),
        before,
        declarations,
    )


_DESCRIBE: dict[str, Callable[[RowProgram, StatementPrinter, Params, Block], AnchorCode]] = {
    anchors.LINEAR: _linear,
    anchors.LINEAR_S4: _linear_s4,
    anchors.ATTENTION: _attention,
    anchors.CONVOLUTION: _convolution,
    anchors.BMM: _bmm,
}
