"""conv_transpose(x, w) → convolution(x with zeros between its elements, w turned around)."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from svdqc.compiler.ir.rewrite import Rewriter, aten, operands
from svdqc.compiler.passes.rules import Rule


def _transposed_convolution(rw: Rewriter, node: Node) -> Node | None:
    """x [n, c, …], w [c, out / groups, …]: stride s puts s - 1 zeros between neighbours of x."""
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    given: dict[str, Any] = dict(zip(names, operands(node), strict=False)) | node.kwargs
    x, weight = given["input"], given["weight"]
    shape, rank = list(x.meta["val"].shape), x.meta["val"].dim() - 2

    def each(name: str, default: int) -> list[int]:
        value = given.get(name, default)
        values = [value] if isinstance(value, int) else list(value)
        return values * rank if len(values) == 1 else values

    if not all(isinstance(size, int) for size in shape[1:]):
        return None
    stride, dilation = each("stride", 1), each("dilation", 1)
    padding, extra = each("padding", 0), each("output_padding", 0)
    groups = int(given.get("groups", 1))
    kernel = [int(k) for k in weight.meta["val"].shape[2:]]
    around: list[int] = []
    for axis in reversed(range(rank)):
        x = spread(rw, x, axis + 2, stride[axis])
        reach = dilation[axis] * (kernel[axis] - 1)
        before, after = reach - padding[axis], reach - padding[axis] + extra[axis]
        around += [before, after - (stride[axis] - 1)]  # zeros behind the last element are there
    x = rw.call(aten.constant_pad_nd.default, x, around, 0)
    turned = _turned(rw, weight, groups, kernel)
    return rw.call(
        aten.convolution.default,
        x,
        turned,
        given.get("bias"),
        [1] * rank,
        [0] * rank,
        dilation,
        False,
        [0] * rank,
        groups,
    )


def spread(rw: Rewriter, x: Node, axis: int, stride: int) -> Node:
    """stride - 1 zeros behind each element along an axis."""
    if stride == 1:
        return x
    rank = x.meta["val"].dim()
    wide = rw.call(aten.unsqueeze.default, x, axis + 1)
    pad = [0, 0] * (rank - 1 - axis) + [0, stride - 1]
    wide = rw.call(aten.constant_pad_nd.default, wide, pad, 0)
    sizes = [s if isinstance(s, int) else -1 for s in x.meta["val"].shape]
    sizes[axis] *= stride
    return rw.call(aten.reshape.default, wide, sizes)


def _turned(rw: Rewriter, weight: Node, groups: int, kernel: list[int]) -> Node:
    """[c, out / groups, …] → [out, c / groups, …], each window from its end."""
    c, out, *_ = (int(s) for s in weight.meta["val"].shape)
    space = list(range(3, 3 + len(kernel)))
    split = rw.call(aten.reshape.default, weight, [groups, c // groups, out, *kernel])
    split = rw.call(aten.permute.default, split, [0, 2, 1, *space])
    merged = rw.call(aten.reshape.default, split, [groups * out, c // groups, *kernel])
    return rw.call(aten.flip.default, merged, [a - 1 for a in space])


TRANSPOSED_RULES: dict[Any, Rule] = {
    aten.conv_transpose1d.default: _transposed_convolution,
    aten.conv_transpose2d.input: _transposed_convolution,
    aten.conv_transpose3d.input: _transposed_convolution,
}
