"""How convolution weights lie in memory for tensor cores: as the matrix of the product that the convolution is.

conv_f32_mma, conv_bf16_mma, conv_f16_mma   [N, C, *kernel] -> f32_mma, ... of [N, taps * C], channels innermost
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from svdqc.compiler.targets import cuda_layouts
from svdqc.compiler.targets.layout import Layout, Shape


def _layout(matrix: Layout) -> Layout:
    def pack(weight: Tensor) -> Tensor:
        return matrix.pack(weight.movedim(1, -1).flatten(1))

    def unpack(flat: Tensor, shape: Shape) -> Tensor:
        outputs, channels, *kernel = shape
        rows = matrix.unpack(flat, _matrix_shape(shape))
        return rows.reshape(outputs, *kernel, channels).movedim(-1, 1).contiguous()

    return Layout(pack, unpack, lambda shape: matrix.num_bytes(_matrix_shape(shape)))


def _matrix_shape(shape: Shape) -> Shape:
    return shape[0], prod(shape[1:])


LAYOUTS: dict[str, Layout] = {
    f"conv_{name}": _layout(cuda_layouts.LAYOUTS[name])
    for name in ("f32_mma", "bf16_mma", "f16_mma")
}
