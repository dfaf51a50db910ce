"""Sliding windows: what convolutions and pools share. No operator of its own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.host import sym_max


@dataclass(frozen=True)
class Window:
    """A window over the spatial axes, pads resolved.

    before, after   explicit or automatic padding
    extra           what ceil_mode adds behind the padding, so that the last window fits
    """

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    before: list[Any]
    after: list[Any]
    extra: list[Any]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    def is_symmetric(self) -> bool:
        pairs = zip(self.before, self.after, self.extra, strict=True)
        return all(
            isinstance(b, int) and isinstance(a, int) and isinstance(e, int) and b == a and e == 0
            for b, a, e in pairs
        )

    def pads(self, with_extra: bool = True) -> list[Any]:
        """For F.pad: last axis first, before and after."""
        ends = [a + e if with_extra else a for a, e in zip(self.after, self.extra, strict=True)]
        pairs = list(zip(self.before, ends, strict=True))
        return [pad for pair in reversed(pairs) for pad in pair]


def window_of(call: Call, sizes: list[Any], kernel: list[int]) -> Window:
    """The window of a convolution or pool over spatial axes of `sizes`."""
    rank = len(kernel)
    stride = call.attribute("strides", [1] * rank)
    dilation = call.attribute("dilations", [1] * rank)
    auto_pad = call.attribute("auto_pad", "NOTSET")
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for size, step, extent in zip(sizes, stride, reach, strict=True):
            out = (size + step - 1) // step
            total = sym_max((out - 1) * step + extent - size, 0)
            smaller = total // 2
            larger = total - smaller
            before.append(smaller if auto_pad == "SAME_UPPER" else larger)
            after.append(larger if auto_pad == "SAME_UPPER" else smaller)
    else:
        pads = call.attribute("pads", [0] * 2 * rank) if auto_pad == "NOTSET" else [0] * 2 * rank
        before, after = pads[:rank], pads[rank:]
    extra: list[Any] = [0] * rank
    if call.flag("ceil_mode"):
        for axis in range(rank):
            span = sizes[axis] + before[axis] + after[axis] - reach[axis]
            steps = (span + stride[axis] - 1) // stride[axis]
            # A window that would start in the right padding is dropped.
            if steps * stride[axis] >= sizes[axis] + before[axis]:
                steps = steps - 1
            extra[axis] = sym_max(steps * stride[axis] - span, 0)
    return Window(kernel, stride, dilation, before, after, extra)


def padded(x: Tensor, window: Window, value: float, with_extra: bool = True) -> Tensor:
    pads = window.pads(with_extra)
    if all(isinstance(pad, int) and pad == 0 for pad in pads):
        return x
    return F.pad(x, pads, value=value)


def stacked(x: Tensor, window: Window) -> Tensor:
    """[batch, channels, out…] → [batch, channels, taps, out…] of an already padded x."""
    taps = []
    out = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(
            x.shape[2:], window.kernel, window.dilation, window.stride, strict=True
        )
    ]
    for offsets in product(*(range(k) for k in window.kernel)):
        tap = x
        for axis, offset in enumerate(offsets):
            start, step = offset * window.dilation[axis], window.stride[axis]
            end = start + (out[axis] - 1) * step + 1
            tap = torch.ops.aten.slice.Tensor(tap, axis + 2, start, end, step)
        taps.append(tap)
    return torch.stack(taps, dim=2)
