"""Weight layouts by id: how a canonical tensor is packed for kernels, and back.

row_major                   as it is
gemm_n16                    [N, K] f32, bf16 or f16 → [ceil(N/16), K, 16]
conv_n16_g{groups}[_t]      convolution weight → [groups, ceil(N/groups/16), taps * C, 16]; _t: transposed convolution
depthwise                   [C, 1, *kernel] → f32 [taps, C]
s4_n16k4, bf16_scale_n16    4-bit codes and their scales
REGISTERED                  every other one, in a module of its own per family
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from svdqc.compiler.targets import (
    cpu_layouts,
    cpu_layouts_codes,
    cpu_layouts_f32,
    cuda_layouts,
    cuda_layouts_conv,
    cuda_layouts_nvfp4,
    cuda_layouts_wgmma,
)
from svdqc.compiler.targets.layout import Layout
from svdqc.errors import SvdqcError

ROW_MAJOR = "row_major"
REGISTERED: dict[str, Layout] = {
    **cpu_layouts_codes.LAYOUTS,
    **cuda_layouts.LAYOUTS,
    **cuda_layouts_conv.LAYOUTS,
    **cuda_layouts_nvfp4.LAYOUTS,
    **cuda_layouts_wgmma.LAYOUTS,
}


class UnknownLayout(SvdqcError):
    """An artifact holds a weight in a layout that this version does not know."""


def pack(layout: str, tensor: Tensor) -> Tensor:
    """The packed form of a canonical tensor."""
    if layout == ROW_MAJOR:
        return tensor.contiguous()
    if layout in REGISTERED:
        return REGISTERED[layout].pack(tensor)
    if layout == "gemm_n16":
        half = tensor.dtype in (torch.bfloat16, torch.float16)
        return (
            cpu_layouts_f32.pack_gemm_w16(tensor) if half else cpu_layouts_f32.pack_gemm_f32(tensor)
        )
    if layout == "depthwise":
        return cpu_layouts_f32.pack_depthwise(tensor)
    if layout == "s4_n16k4":
        return cpu_layouts.pack_s4_n16k4(tensor)
    if layout == "bf16_scale_n16":
        return cpu_layouts.pack_bf16_scale_n16(tensor)
    groups, transposed = _conv_parameters(layout)
    return cpu_layouts_f32.pack_conv(tensor, groups, transposed, tensor.dtype)


def packed_bytes(layout: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Size of the packed form, without packing."""
    meta = torch.empty(shape, dtype=dtype, device="meta")
    if layout == ROW_MAJOR:
        return meta.numel() * meta.element_size()
    if layout in REGISTERED:
        return REGISTERED[layout].num_bytes(shape)
    if layout == "gemm_n16":
        return -(-shape[0] // 16) * 16 * shape[1] * meta.element_size()
    if layout == "depthwise":
        return meta.numel() * 4
    if layout == "s4_n16k4":
        return cpu_layouts.s4_n16k4_bytes(*shape)
    if layout == "bf16_scale_n16":
        return cpu_layouts.bf16_scale_n16_bytes(*shape)
    groups, transposed = _conv_parameters(layout)
    per_group = shape[1] if transposed else shape[0] // groups
    channels = shape[0] // groups if transposed else shape[1]
    taps = meta.numel() // (shape[0] * shape[1])
    return groups * -(-per_group // 16) * 16 * taps * channels * meta.element_size()


def unpack(layout: str, packed: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The canonical tensor [shape] from the flat bytes of its packed form."""
    flat = packed.reshape(-1).view(torch.uint8)
    if layout == ROW_MAJOR:
        return flat.view(dtype).reshape(shape)
    if layout in REGISTERED:
        return REGISTERED[layout].unpack(flat, shape)
    if layout == "gemm_n16":
        return _rows(flat.view(dtype).reshape(-1, shape[1], 16), shape[0])
    if layout == "depthwise":
        return flat.view(torch.float32).reshape(-1, shape[0]).t().reshape(shape).to(dtype)
    if layout == "s4_n16k4":
        return cpu_layouts.unpack_s4_n16k4(flat.reshape(-1, shape[1] // 8, 16, 4), shape[0])
    if layout == "bf16_scale_n16":
        return cpu_layouts.unpack_bf16_scale_n16(
            flat.view(torch.bfloat16).reshape(-1, shape[1], 16), shape[0]
        )
    groups, transposed = _conv_parameters(layout)
    kernel = shape[2:]
    taps = torch.Size(kernel).numel()
    per_group = shape[1] if transposed else shape[0] // groups
    channels = shape[0] // groups if transposed else shape[1]
    panels = flat.view(dtype).reshape(groups, -1, taps * channels, 16)
    rows = torch.stack(
        [_rows(group, per_group) for group in panels]
    )  # [groups, N/groups, taps * C]
    split = rows.reshape(groups, per_group, *kernel, channels).movedim(-1, 2)
    return (split.transpose(1, 2) if transposed else split).reshape(shape).contiguous()


def conv_layout(groups: int, transposed: bool) -> str:
    return f"conv_n16_g{groups}" + ("_t" if transposed else "")


def _conv_parameters(layout: str) -> tuple[int, bool]:
    match = re.fullmatch(r"conv_n16_g(\d+)(_t)?", layout)
    if match is None:
        raise UnknownLayout(
            "read", "layout", f"{layout!r}", "use the svdqc that the artifact was made with"
        )
    return int(match.group(1)), match.group(2) is not None


def _rows(panels: Tensor, count: int) -> Tensor:
    """[ceil(N/16), K, 16] → [N, K]."""
    return panels.transpose(1, 2).reshape(-1, panels.shape[1])[:count].contiguous()
