"""The one function that names kernels: {op}_{shape}[_{epilogue}][_group{members}]__{rows}[x{columns}]."""

from __future__ import annotations

from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.region import Region

_NOTABLE = ("gelu", "silu", "softmax", "sigmoid", "tanh", "relu", "exp", "sin")


def kernel_stem(region: Region, block_rows: int, columns: int, members: int = 1) -> str:
    """The readable part of a kernel's name; the caller appends a digest of the code."""
    anchor = region.anchor
    parts = [_anchor_name(anchor) if anchor is not None else _row_name(region)]
    ops = [str(n.target).split(".")[1] for n in region.nodes if n is not anchor]
    parts.extend(dict.fromkeys(op for op in ops if op in _NOTABLE))
    if anchor is not None and any(op in ("mean", "sum", "amax") for op in ops):
        parts.append("norm")
    if anchor is not None and any(str(n.target) in anchors.QUANTIZERS for n in region.nodes):
        parts.append("quantize")
    if members > 1:
        parts.append(f"group{members}")
    block = f"{block_rows}x{columns}" if columns else f"{block_rows}"
    return f"{'_'.join(parts)}__{block}"


def _anchor_name(anchor: Node) -> str:
    target = str(anchor.target)
    if target == anchors.LINEAR_S4:
        codes, low, w_codes = (anchor.args[i].meta["val"] for i in (3, 2, 3))  # type: ignore[union-attr]
        return f"gemm_s4_s4_f32_{w_codes.shape[0]}x{codes.shape[1]}_r{low.shape[-1]}"
    if target == anchors.LINEAR_CODED:
        low, w_codes = (anchor.args[i].meta["val"] for i in (2, 3))  # type: ignore[union-attr]
        return f"gemm_{anchor.args[7]}_f32_{w_codes.shape[0]}x{w_codes.shape[1]}_r{low.shape[-1]}"
    if target == anchors.LINEAR_W:
        shape = anchor.args[1].meta["val"].shape  # type: ignore[union-attr]
        return f"gemm_f32_{anchor.args[4]}_f32_{shape[0]}x{shape[1]}"
    if target == anchors.LINEAR:
        shape = anchor.args[1].meta["val"].shape  # type: ignore[union-attr]
        return f"gemm_f32_{shape[0]}x{shape[1]}"
    if target == anchors.ATTENTION:
        return f"attention_f32_d{anchor.args[0].meta['val'].shape[-1]}"  # type: ignore[union-attr]
    if target == anchors.CONVOLUTION:
        weight = anchor.args[1].meta["val"].shape  # type: ignore[union-attr]
        return "conv_f32_" + "x".join(str(int(s)) for s in weight)
    return "bmm_f32"


def _row_name(region: Region) -> str:
    ops = [str(n.target).split(".")[1] for n in region.nodes]
    if "quantize_s4" in ops:
        return "quantize_f32_s4"
    if "quantize" in ops:
        node = next(n for n in region.nodes if str(n.target) == anchors.QUANTIZE)
        return f"quantize_f32_{'s8' if node.args[7] == 'int' else node.args[7]}"
    if any(op in ("mean", "sum", "amax", "amin", "prod", "any", "all") for op in ops):
        return "rows_f32"
    return "pointwise"
