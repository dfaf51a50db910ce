"""The scale of each group of weight codes: by the largest magnitude, or by the least squared error over a grid.

    choose argmin_s sum_k energy_k (w_k - s * clamp(round(w_k / s)))^2      s = bf16(ratio * full_range(w))

The scale is rounded to bf16 before it is judged, since that is the scale the kernel multiplies by.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.compiler.quantize.ranges import code_limits, encode, group_scales, to_bf16_values

_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


def choose_scales(w: Tensor, range_name: str, clip: bool, energy: Tensor | None = None) -> Tensor:
    """One scale per group: w [..., group_size] f32 -> [...] f32 of bf16 values, negative ones for "signed8" only.

    energy  weighs the squared error of each element; broadcasts against w; None is all ones
    """
    full = group_scales(w, range_name)
    if not clip:
        return to_bf16_values(full)
    limits = code_limits(range_name)
    candidates = [full * ratio for ratio in _RATIOS]
    if range_name == "signed8":  # the extreme at +7 instead of -8: better when the far side is as long
        candidates += [full * -ratio for ratio in (8.0 / 7.0, *_RATIOS)]
    best_loss = torch.full_like(full, torch.inf)
    best = torch.zeros_like(full)
    for candidate in candidates:
        scale = to_bf16_values(candidate)
        codes = encode(w, scale, limits)
        miss = torch.addcmul(w, codes, scale.unsqueeze(-1), value=-1.0).square_()
        loss = miss.sum(-1) if energy is None else miss.mul_(energy).sum(-1)
        better = loss < best_loss
        best_loss = torch.where(better, loss, best_loss)
        best = torch.where(better, scale, best)
    return best
