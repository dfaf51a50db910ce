"""How a quantized linear stands in the graph, one function per family of formats.

int4                       quantize_s4 → linear_s4
int8, fp8, w4a8, nvfp4     quantize → linear_coded
w4a16, nf4                 linear_w
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch.fx import Node

from svdqc.compiler.ir.rewrite import Rewriter
from svdqc.compiler.quantize import ops, ops_formats
from svdqc.compiler.quantize.formats import e4m3_parts, multiplier_parts
from svdqc.compiler.quantize.linear import QuantizedLinear


def emit(rw: Rewriter, stem: str, x: Node, q: QuantizedLinear, bias: torch.Tensor | None) -> Node:
    """The nodes that compute `q` of x at the rewriter's place; constants are named `stem`.…"""
    stored = None if bias is None else rw.constant(f"{stem}.bias_merged", bias)
    return _EMIT[q.precision](rw, stem, x, q, stored)


def _emit_s4(rw: Rewriter, stem: str, x: Node, q: QuantizedLinear, bias: Node | None) -> Node:
    activation = q.activation
    quantized = rw.call(
        ops.quantize_s4,
        x,
        rw.constant(f"{stem}.inv_smooth", q.inv_smooth),
        rw.constant(f"{stem}.lora_down", q.lora_down),
        activation.group_size,
        activation.range,
        activation.rotate,
        activation.shift,
    )
    codes, scale, low = (_item(rw, quantized, i) for i in range(3))
    return rw.call(
        ops.linear_s4,
        codes,
        scale,
        low,
        rw.constant(f"{stem}.w_codes", q.w_codes),
        rw.constant(f"{stem}.w_scale", q.w_scale),
        rw.constant(f"{stem}.lora_up", q.lora_up),
        bias,
    )


def _emit_coded(rw: Rewriter, stem: str, x: Node, q: QuantizedLinear, bias: Node | None) -> Node:
    activation = q.activation
    quantized = rw.call(
        ops_formats.quantize,
        x,
        rw.constant(f"{stem}.inv_smooth", q.inv_smooth),
        rw.constant(f"{stem}.lora_down", q.lora_down),
        activation.group_size,
        activation.range,
        activation.rotate,
        activation.shift,
        activation.encoding,
        activation.tensor_scale,
    )
    codes, scale, low = (_item(rw, quantized, i) for i in range(3))
    w_codes, w_scale, unit = q.w_codes, q.w_scale, 1.0
    multiplied: list[Node] = []
    if q.weight_format == "e2m1":
        w_scale, unit = e4m3_parts(w_scale)
    if q.weight_format == "s4m":
        integers, w_scale = multiplier_parts(w_scale)
        multiplied.append(rw.constant(f"{stem}.w_multiplier", integers))
    if q.weight_format == "e4m3":
        w_codes = w_codes.view(torch.uint8)
    return rw.call(
        ops_formats.linear_coded,
        codes,
        scale,
        low,
        rw.constant(f"{stem}.w_codes", w_codes),
        rw.constant(f"{stem}.w_scale", w_scale),
        rw.constant(f"{stem}.lora_up", q.lora_up),
        bias,
        q.precision,
        unit,
        *multiplied,
    )


def _emit_weight_only(
    rw: Rewriter, stem: str, x: Node, q: QuantizedLinear, bias: Node | None
) -> Node:
    return rw.call(
        ops_formats.linear_w,
        x,
        rw.constant(f"{stem}.w_codes", q.w_codes),
        rw.constant(f"{stem}.w_scale", q.w_scale),
        bias,
        q.weight_format,
    )


def _item(rw: Rewriter, node: Node, position: int) -> Node:
    item = rw.graph.call_function(operator.getitem, (node, position))
    item.meta.update(val=node.meta["val"][position], source=node.meta["source"])
    return item


_EMIT: dict[str, Callable[[Rewriter, str, Node, QuantizedLinear, Node | None], Node]] = {
    "int4": _emit_s4,
    **dict.fromkeys(ops_formats.CODED, _emit_coded),
    "w4a16": _emit_weight_only,
    "nf4": _emit_weight_only,
}
