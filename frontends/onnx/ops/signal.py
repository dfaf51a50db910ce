"""Fourier transforms, windows and filter banks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.dtypes import torch_dtype
from svdqc.frontends.onnx.host import Value
from svdqc.frontends.onnx.registry import onnx_op

# w(n) = c0 - c1 cos(2πn/N) + c2 cos(4πn/N)
WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25.0 / 46.0, 21.0 / 46.0, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@onnx_op(*WINDOWS, since=17, host=(0,))
def window(call: Call, size: Value) -> Tensor:
    (length,) = call.ints(size, "the window's size")
    c0, c1, c2 = WINDOWS[call.node.op_type]
    period = length if call.flag("periodic", True) else length - 1
    angle = torch.arange(length, dtype=torch.float32) * (2 * math.pi / period)
    values = c0 - c1 * torch.cos(angle) + c2 * torch.cos(2 * angle)
    return values.to(torch_dtype(call.attribute("output_datatype", 1), call.node.label))


@onnx_op("DFT", since=17, host=(1,))
def dft_with_axis_attribute(call: Call, x: Tensor, length: Value | None = None) -> Tensor:
    return _dft(call, x, length, call.attribute("axis", 1))


@onnx_op("DFT", since=20, host=(1, 2))
def dft(call: Call, x: Tensor, length: Value | None = None, axis: Value | None = None) -> Tensor:
    return _dft(call, x, length, -2 if axis is None else call.static_ints(axis, "the axis")[0])


def _dft(call: Call, x: Tensor, length: Value | None, axis: int) -> Tensor:
    """x [..., 1 or 2]: real, or real and imaginary parts in the last axis."""
    axis = axis % x.dim()
    size: Any = None if length is None else call.ints(length, "the length")[0]
    dtype = x.dtype
    wide = x if dtype in (torch.float32, torch.float64) else x.to(torch.float32)
    is_real = x.shape[-1] == 1
    signal = wide.squeeze(-1) if is_real else torch.view_as_complex(wide.contiguous())
    inverse, onesided = call.flag("inverse"), call.flag("onesided")
    if onesided and inverse:
        real: Tensor = torch.fft.irfft(signal, n=size, dim=axis)
        return real.unsqueeze(-1).to(dtype)
    if onesided:
        spectrum = torch.fft.rfft(signal, n=size, dim=axis)
    else:
        spectrum = (torch.fft.ifft if inverse else torch.fft.fft)(signal, n=size, dim=axis)
    return torch.view_as_real(spectrum).to(dtype)


@onnx_op("STFT", since=17, host=(1, 3))
def stft(
    call: Call,
    signal: Tensor,
    frame_step: Value,
    window_values: Tensor | None = None,
    frame_length: Value | None = None,
) -> Tensor:
    """[batch, length, 1 or 2] → [batch, frames, bins, 2]."""
    step = int(call.static_ints(frame_step, "the step")[0])
    if frame_length is not None:
        length = int(call.static_ints(frame_length, "the frame's length")[0])
    else:
        length = int(window_values.shape[0] if window_values is not None else signal.shape[1])
    is_real = signal.shape[-1] == 1
    plain = signal.squeeze(-1) if is_real else torch.view_as_complex(signal.contiguous())
    frames = plain.unfold(1, length, step)  # [batch, frames, length]
    if window_values is not None:
        frames = frames * window_values
    transform = torch.fft.rfft if is_real and call.flag("onesided", True) else torch.fft.fft
    return torch.view_as_real(transform(frames, dim=-1))


@onnx_op("MelWeightMatrix", since=17, host="all")
def mel_weight_matrix(
    call: Call, bins: Value, dft_length: Value, sample_rate: Value, lowest: Value, highest: Value
) -> Tensor:
    """[dft_length / 2 + 1, bins]: triangles over the spectrum, evenly spaced in mels."""
    num_bins = int(call.host(bins, "the bins").number())
    length = int(call.host(dft_length, "the length").number())
    rate = float(call.host(sample_rate, "the rate").number())
    low, high = (
        2595.0 * math.log10(1.0 + float(call.host(value, "the band").number()) / 700.0)
        for value in (lowest, highest)
    )
    edges = []
    for i in range(num_bins + 2):
        mel = i * (high - low) / (num_bins + 2) + low
        hertz = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
        edges.append(int((length + 1) * hertz // rate))
    rows = length // 2 + 1
    weights = [[0.0] * num_bins for _ in range(rows)]
    for i in range(num_bins):
        left, centre, right = edges[i], edges[i + 1], edges[i + 2]
        if left == centre:
            weights[centre][i] = 1.0
        for j in range(left, centre + 1 if left != centre else left):
            weights[j][i] = (j - left) / (centre - left)
        for j in range(centre, right):
            weights[j][i] = (right - j) / (right - centre)
    dtype = torch_dtype(call.attribute("output_datatype", 1), call.node.label)
    return torch.tensor(weights, dtype=dtype)
