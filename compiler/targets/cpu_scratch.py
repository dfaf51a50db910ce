"""Scratch sizes of the handwritten CPU kernels, as their headers define them; a test compares the two."""

from __future__ import annotations

_LANES = 16
_QUERY_BLOCK = 192
_KV_BLOCK = 512
_QUERY_TILE = 48  # at most
_CONV_SLICE = 1024


def attention_scratch_bytes(head_dim: int, v_dim: int) -> int:
    """svdq::attention_scratch_bytes (attention.h)."""
    v_width = -(-v_dim // _LANES) * _LANES
    return 4 * (
        _QUERY_BLOCK * (head_dim + v_width + 2)
        + _KV_BLOCK * (head_dim + v_width)
        + _QUERY_TILE * _KV_BLOCK
    )


def conv_scratch_bytes(rows: int, channels: int) -> int:
    """svdq::conv_scratch_bytes (conv.h)."""
    return 4 * rows * max(channels, _CONV_SLICE)
