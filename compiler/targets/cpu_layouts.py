"""How weights lie in memory for the CPU kernels: panels of 16 output channels, so that a panel's row is one vector.

    s4_n16k4         w_codes [N, K] s4           -> uint8    [N/16, K/8, 16, 4]   two codes + 8 a byte
    bf16_scale_n16   w_scale [N, K/group_size]   -> bfloat16 [N/16, K/group_size, 16]

N is padded to a multiple of 16: codes with 0, scales with 0. templates/cpu/include/svdq_cpu/gemm_s4.h reads them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.errors import SvdqcError

PANEL = 16
_ZERO_POINT = 8  # nibbles are unsigned in memory: the operand order of vpdpbusd and vpmaddubsw


class UnpackableWeight(SvdqcError):
    """A weight has a shape or values that the layout cannot hold."""


def num_panels(out_features: int) -> int:
    return -(-out_features // PANEL)


def s4_n16k4_bytes(out_features: int, in_features: int) -> int:
    return num_panels(out_features) * PANEL * in_features // 2


def bf16_scale_n16_bytes(out_features: int, groups: int) -> int:
    return num_panels(out_features) * PANEL * groups * 2


def packed_codes_bytes(rows: int, in_features: int, group_size: int) -> int:
    """Scratch for the packed codes of `rows` tokens: svdq::packed_codes_bytes."""
    return rows * (in_features + 8 * (in_features // group_size))


def pack_s4_n16k4(w_codes: Tensor) -> Tensor:
    """Codes in [-8, 7], [out_features, in_features] int8, to uint8 [panels, in_features/8, 16, 4].

    The low nibble of byte (p, b, n, j) is code + 8 of channel 16p + n at k = 8b + j, the high one at k = 8b + 4 + j.
    """
    if w_codes.dim() != 2 or w_codes.shape[1] % 8:
        raise UnpackableWeight(
            "pack",
            "w_codes",
            f"shape {list(w_codes.shape)}",
            "give [out_features, a multiple of 8]",
        )
    if w_codes.numel() and not -8 <= int(w_codes.min()) <= int(w_codes.max()) <= 7:
        found = f"codes from {int(w_codes.min())} to {int(w_codes.max())}"
        raise UnpackableWeight("pack", "w_codes", found, "4-bit codes lie in [-8, 7]")
    nibbles = (_pad_channels(w_codes) + _ZERO_POINT).to(torch.uint8)
    # [panel, n, block of 8 k, half, j]
    split = nibbles.reshape(-1, PANEL, w_codes.shape[1] // 8, 2, 4)
    packed = split[:, :, :, 0] | (split[:, :, :, 1] << 4)  # [panel, n, block, j]
    return packed.transpose(1, 2).contiguous()


def unpack_s4_n16k4(w_packed: Tensor, out_features: int) -> Tensor:
    """The inverse of pack_s4_n16k4: int8 [out_features, in_features]."""
    panels, blocks = w_packed.shape[:2]
    by_channel = w_packed.transpose(1, 2)  # [panel, n, block, j]
    nibbles = torch.stack((by_channel & 15, by_channel >> 4), dim=3)  # [panel, n, block, half, j]
    codes = nibbles.reshape(panels * PANEL, blocks * 8).to(torch.int8) - _ZERO_POINT
    return codes[:out_features].contiguous()


def pack_bf16_scale_n16(w_scale: Tensor) -> Tensor:
    """Scales [out_features, groups], representable in bfloat16, to bfloat16 [panels, groups, 16]."""
    scale = w_scale.to(torch.bfloat16)
    if not torch.equal(scale.to(torch.float32), w_scale.to(torch.float32)):
        raise UnpackableWeight(
            "pack", "w_scale", "scales with more bits than bfloat16 has", "round them before coding"
        )
    return _pad_channels(scale).reshape(-1, PANEL, scale.shape[1]).transpose(1, 2).contiguous()


def unpack_bf16_scale_n16(packed: Tensor, out_features: int) -> Tensor:
    """The inverse of pack_bf16_scale_n16: bfloat16 [out_features, groups]."""
    return packed.transpose(1, 2).reshape(-1, packed.shape[1])[:out_features].contiguous()


def _pad_channels(rows: Tensor) -> Tensor:
    """[out_features, ...] with zero rows up to a multiple of PANEL."""
    missing = num_panels(rows.shape[0]) * PANEL - rows.shape[0]
    return torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:]))) if missing else rows
