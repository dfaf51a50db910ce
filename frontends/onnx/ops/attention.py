"""Attention and rotary position embedding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.dtypes import torch_dtype
from svdqc.frontends.onnx.registry import onnx_op


@onnx_op("Attention", since=23)
def attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    valid_lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """softmax(q · kᵀ · scale + bias) · v, over [batch, heads, tokens, head_size] or packed heads.

    Outputs: the result, the keys and values with the past before them, and the scores at some stage.
    """
    packed = query.dim() == 3
    if packed:
        query = _unpacked(query, call.required("q_num_heads"))
        key = _unpacked(key, call.required("kv_num_heads"))
        value = _unpacked(value, call.required("kv_num_heads"))
    offset: Any = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        key = torch.cat([past_key, key], dim=2)
        value = torch.cat([past_value, value], dim=2)
    present_key, present_value = key, value
    repeats = query.shape[1] // key.shape[1]
    if repeats != 1:
        key, value = _repeated(key, repeats), _repeated(value, repeats)
    scale = call.attribute("scale", 0.0) or float(query.shape[-1]) ** -0.5
    bias = _bias(call, query, key, mask, offset, valid_lengths)
    scores = None
    if call.wants(3) or call.attribute("softcap", 0.0) > 0 or _precise(call, query):
        y, scores = _explicit(call, query, key, value, bias, scale)
    elif bias is None and call.flag("is_causal") and _starts_at_zero(offset, valid_lengths):
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    else:
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    if packed:
        y = y.transpose(1, 2).flatten(2)
    results = (y, present_key, present_value, y if scores is None else scores)
    return results[: max(call.num_outputs, 1)]


def _unpacked(x: Tensor, num_heads: int) -> Tensor:
    """[batch, tokens, heads · size] → [batch, heads, tokens, size]."""
    return x.reshape(x.shape[0], x.shape[1], num_heads, x.shape[2] // num_heads).transpose(1, 2)


def _repeated(x: Tensor, repeats: int) -> Tensor:
    """Each head `repeats` times in a row: [batch, heads, …] → [batch, heads · repeats, …]."""
    batch, heads, tokens, size = x.shape
    expanded = x.unsqueeze(2).expand(batch, heads, repeats, tokens, size)
    return expanded.reshape(batch, heads * repeats, tokens, size)


def _precise(call: Call, query: Tensor) -> bool:
    """Whether the softmax is asked for in a type that torch would not use."""
    if not call.has("softmax_precision"):
        return False
    wanted = torch_dtype(call.attribute("softmax_precision"), call.node.label)
    return wanted not in (torch.float32, query.dtype)


def _starts_at_zero(offset: Any, valid_lengths: Tensor | None) -> bool:
    return isinstance(offset, int) and offset == 0 and valid_lengths is None


def _bias(
    call: Call,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    offset: Any,
    valid_lengths: Tensor | None,
) -> Tensor | None:
    """What the scores are masked with: a bool tensor, an additive one, or None."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    left, right = call.attribute("left_window_size", -1), call.attribute("right_window_size", -1)
    causal = call.flag("is_causal")
    if mask is not None:
        mask = _padded_mask(mask, num_keys)
    plain_causal = causal and mask is None and left < 0 and right < 0
    if plain_causal and _starts_at_zero(offset, valid_lengths):
        explicit = call.wants(3) or call.attribute("softcap", 0.0) > 0 or _precise(call, query)
        if not explicit:
            return None
    allowed: Tensor | None = None
    if causal or left >= 0 or right >= 0:
        first = torch.arange(num_queries)[:, None]  # [queries, 1]
        if valid_lengths is not None:
            first = first + (valid_lengths.reshape(-1, 1, 1, 1) - num_queries)
        else:
            first = first + offset
        distance = first - torch.arange(num_keys)  # how far a key lies before its query
        allowed = distance >= 0 if causal else None
        if left >= 0:
            near = distance <= left
            allowed = near if allowed is None else allowed & near
        if right >= 0:
            near = distance >= -right
            allowed = near if allowed is None else allowed & near
    if valid_lengths is not None:
        valid = torch.arange(num_keys) < valid_lengths.reshape(-1, 1, 1, 1)
        allowed = valid if allowed is None else allowed & valid
    if mask is None:
        return allowed
    if allowed is None:
        return mask
    if mask.dtype == torch.bool:
        return mask & allowed
    return torch.where(allowed, mask, float("-inf"))


def _padded_mask(mask: Tensor, num_keys: Any) -> Tensor:
    """A mask may cover the first keys only: the others are masked out."""
    covered = mask.shape[-1]
    if isinstance(covered, int) and isinstance(num_keys, int) and 1 < covered < num_keys:
        if mask.dtype == torch.bool:
            return F.pad(mask.to(torch.uint8), [0, num_keys - covered]).to(torch.bool)
        return F.pad(mask, [0, num_keys - covered], value=float("-inf"))
    return mask


def _explicit(
    call: Call, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention step by step, with the scores at the stage that qk_matmul_output_mode names."""
    root = scale**0.5
    raw = torch.matmul(query * root, key.transpose(-1, -2) * root)
    softcap = call.attribute("softcap", 0.0)
    capped = torch.tanh(raw / softcap) * softcap if softcap > 0 else raw
    masked, dead = capped, None
    if bias is not None:
        if bias.dtype == torch.bool:
            additive = torch.zeros_like(bias, dtype=raw.dtype).masked_fill(~bias, float("-inf"))
        else:
            additive = bias
        masked = capped + additive
        dead = torch.isneginf(additive).all(dim=-1, keepdim=True)
    if call.has("softmax_precision"):
        precise = masked.to(torch_dtype(call.attribute("softmax_precision"), call.node.label))
    else:
        precise = masked
    weights = torch.softmax(precise, dim=-1)
    if dead is not None:
        # Nothing to attend to: zeros instead of NaN.
        weights = torch.where(dead, torch.zeros_like(weights), weights)
    weights = weights.to(query.dtype)
    stage = (raw, capped, masked, weights)[call.attribute("qk_matmul_output_mode", 0)]
    return torch.matmul(weights, value), stage


@onnx_op("RotaryEmbedding", since=23)
def rotary_embedding(
    call: Call, x: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """Rotate pairs of elements of [batch, heads, tokens, size], or of packed heads, by an angle.

    cos, sin   [positions, size / 2] with position_ids, else [batch, tokens, size / 2]
    """
    shape = x.shape
    packed = x.dim() == 3
    if packed:
        x = _unpacked(x, call.required("num_heads"))
    rotated_size = call.attribute("rotary_embedding_dim", 0) or x.shape[-1]
    if position_ids is not None:
        cos, sin = F.embedding(position_ids, cos), F.embedding(position_ids, sin)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [batch, 1, tokens, size / 2]
    turned, rest = x[..., :rotated_size], x[..., rotated_size:]
    if call.flag("interleaved"):
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, dim=-1)
    real = first * cos - second * sin
    imaginary = first * sin + second * cos
    if call.flag("interleaved"):
        turned = torch.stack([real, imaginary], dim=-1).flatten(-2)
    else:
        turned = torch.cat([real, imaginary], dim=-1)
    y = turned if rotated_size == x.shape[-1] else torch.cat([turned, rest], dim=-1)
    return y.transpose(1, 2).reshape(shape) if packed else y
