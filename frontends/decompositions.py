"""Which ATen ops survive the frontend, and what becomes of the rest.

`torch.export` yields a graph of about ninety different ops. Some carry meaning that a compiler must not
lose (a `linear` is what gets quantized, an attention is one region), others are spellings of the same
thing. PRESERVED is the visible list of the first kind: everything else goes through PyTorch's own
decompositions to core ATen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OperatorBase, OpOverload
from torch.export import default_decompositions

aten = torch.ops.aten

PRESERVED: tuple[OpOverload, ...] = (
    # Matrix products: what is quantized, and what a GEMM template takes.
    aten.linear.default,
    aten.matmul.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    aten.scaled_dot_product_attention.default,
    # Rows and groups.
    aten.layer_norm.default,
    aten.rms_norm.default,
    aten.group_norm.default,
    aten.instance_norm.default,
    aten.softmax.int,
    # Pointwise functions that are one instruction sequence, or one epilogue.
    aten.silu.default,
    aten.gelu.default,
    aten.mish.default,
    aten.softplus.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.leaky_relu.default,
    aten.rsub.Scalar,
    aten.rsub.Tensor,
    # Data movement whose decomposition is a cloud of index arithmetic.
    aten.embedding.default,
    aten.pad.default,
    aten.stack.default,
    aten.col2im.default,
    aten.roll.default,
    aten.repeat_interleave.self_int,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_bicubic2d.vec,
    # Constants.
    aten.arange.start_step,
    aten.full.default,
)


def decomposition_table() -> dict[OperatorBase, Callable[..., Any]]:
    """PyTorch's core-ATen decompositions without those of PRESERVED."""
    table = dict(default_decompositions().materialize())
    for op in PRESERVED:
        table.pop(op, None)
    return table
