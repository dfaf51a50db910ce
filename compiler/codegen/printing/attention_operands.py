"""Attention's operands as template parameters, the same for every language."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from svdqc.compiler.codegen.ops.registry import Index
from svdqc.compiler.codegen.printing.operands import Strided, lead_decode, pointer_at, strided
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import StatementPrinter
from svdqc.compiler.codegen.rowprogram import RowProgram
from svdqc.compiler.ir.rewrite import argument, operands


def attention_context(
    program: RowProgram,
    printer: StatementPrinter,
    params: Params,
    place_result: Callable[[list[str]], dict[str, Any]],
) -> dict[str, Any]:
    """q, k, v and mask at the task's batch and head, with strides; sizes; `decode`, lines that find batch and head.

    place_result  given the names of the leading indices, parameters that say where the result goes
    """
    anchor = program.region.anchor
    assert anchor is not None
    q, k, v = operands(anchor)[:3]
    mask, causal = argument(anchor, 3, "attn_mask"), bool(argument(anchor, 5, "is_causal", False))
    q_shape, v_shape = program.table.shape(q), program.table.shape(v)
    head_dim, v_dim = q_shape[-1].const, v_shape[-1].const
    lead, q_len, kv_len = q_shape[:-2], q_shape[-2], v_shape[-2]
    decode, names = lead_decode(params, lead, "blocks")
    sources = {
        name: strided(program, printer, node) for name, node in (("q", q), ("k", k), ("v", v))
    }
    result = place_result(names)
    scale = argument(anchor, 6, "scale")
    context: dict[str, Any] = {
        "decode": decode,
        "q_len": params.scalar(q_len, force=True),
        "kv_len": params.scalar(kv_len, force=True),
        "head_dim": head_dim,
        "v_dim": v_dim,
        "causal": causal,
        "mask": "",
        "scale": f"{(float(scale) if scale is not None else head_dim**-0.5)!r}f",
        **result,
    }
    for name, operand in sources.items():
        context[name] = pointer_at(
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
            mask=pointer_at(params, held, names[len(names) - (rank - 2) :]),
            mask_field="mask_bool" if held.storage.dtype == "bool" else "mask_f32",
            mask_row=params.scalar(held.strides[-2]),
            mask_col=params.scalar(held.strides[-1]),
        )
        if held.storage.dtype == "bool":
            context["mask"] = f"reinterpret_cast<const uint8_t*>({context['mask']})"
    return context


def stored_result(
    program: RowProgram, printer: StatementPrinter, params: Params, names: list[str]
) -> dict[str, str]:
    """Pointer and row stride of the anchor's place in memory, at the leading indices."""
    anchor = program.region.anchor
    assert anchor is not None
    out = printer.storages[anchor]
    result = Strided(params.buffer(out, "write", None), out.strides, out)
    return {
        "out": pointer_at(params, result, names),
        "out_row": params.scalar(out.strides[-2]),
    }


def _grouped_heads(
    params: Params, names: list[str], lead: Index, shape: Index, which: str
) -> list[str]:
    """Grouped-query attention: several query heads share a key/value head."""
    if which == "q" or not lead or shape[-3] == lead[-1] or shape[-3] == 1:
        return names
    return [*names[:-1], f"({names[-1]} / {params.scalar(lead[-1] // shape[-3])})"]
