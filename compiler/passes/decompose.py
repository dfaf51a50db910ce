"""layer_norm, rms_norm, group_norm, softmax, matmul, splits … → means, exponentials, linears, slices.

After this pass a normalisation is only row reductions and pointwise ops, so one mechanism fuses all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import Rewriter, argument, aten, is_tensor, operands
from svdqc.compiler.passes.base import PassReport
from svdqc.compiler.passes.decompose_norms import NORM_RULES
from svdqc.compiler.passes.decompose_order import ORDER_RULES
from svdqc.compiler.passes.decompose_scatter import SCATTER_RULES
from svdqc.compiler.passes.decompose_sort import SORT_RULES
from svdqc.compiler.passes.decompose_transposed import TRANSPOSED_RULES
from svdqc.compiler.passes.decompose_windows import WINDOW_RULES
from svdqc.compiler.passes.rules import Rules, shape_of

RULES = Rules(
    {
        **NORM_RULES,
        **ORDER_RULES,
        **SCATTER_RULES,
        **SORT_RULES,
        **TRANSPOSED_RULES,
        **WINDOW_RULES,
    }
)


def decompose(program: Program) -> PassReport:
    """Apply `RULES` until none matches."""
    report, rewriter = PassReport(), Rewriter(program)
    changed = True
    while changed:
        changed = False
        for node in list(rewriter.graph.nodes):
            rule = RULES.get(node.target) if node.op == "call_function" else None
            if rule is None or not node.users:
                continue
            with rewriter.before(node):
                replacement = rule(rewriter, node)
            if replacement is not None:
                rewriter.replace(node, replacement)
            if not node.users:  # replaced, as a whole or result by result
                report.changed[str(node.target)] += 1
                changed = True
    rewriter.finish()
    return report


@RULES.of(aten.addmm.default)
def _addmm(rw: Rewriter, node: Node) -> Node:
    bias, x, weight = node.args[:3]
    product = rw.call(aten.mm.default, x, weight)
    if node.kwargs.get("alpha", 1) != 1:
        product = rw.call(aten.mul.Tensor, product, node.kwargs["alpha"])
    if node.kwargs.get("beta", 1) != 1:
        bias = rw.call(aten.mul.Tensor, bias, node.kwargs["beta"])
    return rw.call(aten.add.Tensor, product, bias)


@RULES.of(aten.mm.default, aten.matmul.default)
def _matmul(rw: Rewriter, node: Node) -> Node | None:
    """x @ w for a two-dimensional w is a linear with w transposed; anything else becomes a bmm of flattened batches."""
    x, y = operands(node)[:2]
    assert is_tensor(x)
    assert is_tensor(y)
    if len(shape_of(x)) < 2 or len(shape_of(y)) < 2:
        return _vector_matmul(rw, node)
    if not _has_product_kernel(node):
        return _summed_products(rw, x, y, node)
    if len(shape_of(y)) > 2:
        return _batched(rw, x, y)
    if _is_stored(y):
        return rw.call(aten.linear.default, x, rw.call(aten.permute.default, y, [1, 0]))
    *lead, columns = rw.sizes(x)
    rows = rw.call(aten.reshape.default, x, [1, -1, columns])
    product = rw.call(aten.bmm.default, rows, rw.call(aten.unsqueeze.default, y, 0))
    return rw.call(aten.reshape.default, product, [*lead, rw.sizes(y)[1]])


@RULES.of(aten.linear.default)
def _linear_of_values(rw: Rewriter, node: Node) -> Node | None:
    """A linear whose weight is computed from inputs is a product of two activations."""
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    if _is_stored(weight) and _has_product_kernel(node):  # type: ignore[arg-type]
        return None
    product = rw.call(aten.matmul.default, x, rw.call(aten.permute.default, weight, [1, 0]))
    return product if bias is None else rw.call(aten.add.Tensor, product, bias)


@RULES.of(aten.bmm.default)
def _bmm(rw: Rewriter, node: Node) -> Node | None:
    if _has_product_kernel(node):
        return None
    x, y = node.args[:2]
    return _summed_products(rw, x, y, node)  # type: ignore[arg-type]


def _has_product_kernel(node: Node) -> bool:
    """Kernels multiply in f32: integers and f64 are summed by a plain loop."""
    return node.meta["val"].dtype in (torch.float32, torch.float16, torch.bfloat16)


def _summed_products(rw: Rewriter, x: Node, y: Node, node: Node) -> Node:
    """Σ_k x[…, i, k] · y[…, k, j]; the products are never stored."""
    products = rw.call(
        aten.mul.Tensor,
        rw.call(aten.unsqueeze.default, x, -1),
        rw.call(aten.unsqueeze.default, y, -3),
    )
    dtype = node.meta["val"].dtype
    return rw.call(aten.sum.dim_IntList, products, [-2], False, dtype=dtype)


def _is_stored(value: Node) -> bool:
    """Whether a value is made of weights alone, so that it can be packed when compiling."""
    if value.op == "get_attr":
        return True
    inputs = value.all_input_nodes
    return value.op == "call_function" and bool(inputs) and all(map(_is_stored, inputs))


def _vector_matmul(rw: Rewriter, node: Node) -> Node:
    x, y = node.args[:2]
    left, right = len(shape_of(x)) == 1, len(shape_of(y)) == 1  # type: ignore[arg-type]
    x = rw.call(aten.unsqueeze.default, x, 0) if left else x
    y = rw.call(aten.unsqueeze.default, y, 1) if right else y
    product = rw.call(aten.matmul.default, x, y)
    if right:
        product = rw.call(aten.squeeze.dim, product, -1)
    return rw.call(aten.squeeze.dim, product, -1 if right else -2) if left else product


def _batched(rw: Rewriter, x: Node, y: Node) -> Node:
    batch = torch.broadcast_shapes(shape_of(x)[:-2], shape_of(y)[:-2])
    lead = _broadcast_sizes(rw, x, y, len(batch))

    def flat(value: Node) -> Node:
        rows, columns = rw.sizes(value)[-2:]
        if len(batch) == 1 and len(shape_of(value)) == 3 and _same(shape_of(value)[0], batch[0]):
            return value
        expanded = rw.call(aten.expand.default, value, [*lead, rows, columns])
        return rw.call(aten.reshape.default, expanded, [-1, rows, columns])

    product = rw.call(aten.bmm.default, flat(x), flat(y))
    if len(batch) == 1:
        return product
    rows, columns = rw.sizes(x)[-2], rw.sizes(y)[-1]
    return rw.call(aten.reshape.default, product, [*lead, rows, columns])


def _same(a: Any, b: Any) -> bool:
    return str(a) == str(b)


def _broadcast_sizes(rw: Rewriter, x: Node, y: Node, rank: int) -> list[Any]:
    sizes: list[Any] = [1] * rank
    for value in (x, y):
        own = rw.sizes(value)[:-2]
        for axis, size in enumerate(own, rank - len(own)):
            if not (isinstance(size, int) and size == 1):
                sizes[axis] = size
    return sizes


@RULES.of(aten.baddbmm.default)
def _baddbmm(rw: Rewriter, node: Node) -> Node:
    bias, x, y = node.args[:3]
    product = rw.call(aten.bmm.default, x, y)
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    if alpha != 1:
        product = rw.call(aten.mul.Tensor, product, alpha)
    if beta == 0:
        return product
    return rw.call(
        aten.add.Tensor, product, bias if beta == 1 else rw.call(aten.mul.Tensor, bias, beta)
    )


@RULES.of(
    aten.split_with_sizes.default,
    aten.split.Tensor,
    aten.unbind.int,
    aten.chunk.default,
    aten.split_with_sizes_copy.default,
)
def _split(rw: Rewriter, node: Node) -> Node | None:
    """Each getitem of a split becomes a slice (or a select) of its source; sizes may be symbolic."""
    axis = argument(node, 1 if node.target is aten.unbind.int else 2, "dim", 0)
    users = [(user, int(user.args[1])) for user in node.users]  # type: ignore[arg-type]
    for user, position in users:
        if node.target is aten.unbind.int:
            piece = rw.call(aten.select.int, node.args[0], axis, position)
        else:
            start, end = _piece_bounds(rw, node, axis, position)
            piece = rw.call(aten.slice.Tensor, node.args[0], axis, start, end)
        rw.replace(user, piece)
    return None


def _piece_bounds(rw: Rewriter, node: Node, axis: int, position: int) -> tuple[Any, Any]:
    """First element and end of a split's piece; a slice stops at the end of its source by itself."""
    sizes: Any = node.args[1]
    if not isinstance(sizes, (list, tuple)):
        size = sizes
        if node.target is aten.chunk.default:
            total = rw.sizes(node.args[0])[axis]  # type: ignore[arg-type]
            size = _int(rw, operator.floordiv, _int(rw, operator.add, total, sizes - 1), sizes)
        start = _int(rw, operator.mul, size, position)
        return start, _int(rw, operator.add, start, size)
    start = 0
    for size in sizes[:position]:
        start = _int(rw, operator.add, start, size)
    return start, _int(rw, operator.add, start, sizes[position])


def _int(rw: Rewriter, op: Callable[[Any, Any], Any], lhs: Any, rhs: Any) -> Any:
    """An integer operation on sizes: a number where both are, else a node."""
    known = isinstance(lhs, int) and isinstance(rhs, int)
    return op(lhs, rhs) if known else rw.call(op, lhs, rhs)


@RULES.of(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def _conv(rw: Rewriter, node: Node) -> Node | None:
    """One convolution op for every rank: aten.convolution(x, w, b, stride, padding, dilation, transposed, …)."""
    x: Any = node.args[0]
    rank = len(shape_of(operands(node)[1])) - 2
    if len(shape_of(x)) == rank + 1:  # a single picture
        batch = rw.call(aten.unsqueeze.default, x, 0)
        result = rw.call(node.target, batch, *node.args[1:], **node.kwargs)
        return rw.call(aten.squeeze.dim, result, 0)

    def each(value: Any) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * rank if len(values) == 1 else values

    stride, padding, dilation = (
        each(argument(node, 3, "stride", 1)),
        each(argument(node, 4, "padding", 0)),
        each(argument(node, 5, "dilation", 1)),
    )
    return rw.call(
        aten.convolution.default,
        x,
        node.args[1],
        argument(node, 2, "bias"),
        stride,
        padding,
        dilation,
        False,
        [0] * rank,
        argument(node, 6, "groups", 1),
    )


@RULES.of(aten.pad.default)
def _pad(rw: Rewriter, node: Node) -> Node | None:
    """Constant padding has an op of its own; reflect, replicate and circular gather along each axis."""
    x, pad, mode = node.args[0], list(node.args[1]), argument(node, 2, "mode", "constant")  # type: ignore[arg-type]
    if mode == "constant":
        return rw.call(aten.constant_pad_nd.default, x, pad, argument(node, 3, "value") or 0)
    rank = len(shape_of(x))  # type: ignore[arg-type]
    result: Node = operands(node)[0]
    for pair in range(len(pad) // 2):
        axis, before, after = rank - 1 - pair, pad[2 * pair], pad[2 * pair + 1]
        size = shape_of(x)[axis]  # type: ignore[arg-type]
        if before == after == 0:
            continue
        if not isinstance(size, int):
            return None
        source = torch.arange(-before, size + after)
        if mode == "reflect":
            source = (size - 1) - ((size - 1) - source.abs()).abs()
        elif mode == "replicate":
            source = source.clamp(0, size - 1)
        else:
            source = source % size
        indices = rw.constant(f"pad_{mode}_{size}_{before}_{after}", source)
        result = rw.call(aten.index_select.default, result, axis, indices)
    return result


@RULES.of(aten.glu.default)
def _glu(rw: Rewriter, node: Node) -> Node | None:
    x, axis = node.args[0], argument(node, 1, "dim", -1)
    size = shape_of(x)[axis]  # type: ignore[arg-type]
    if not isinstance(size, int):
        return None
    value = rw.call(aten.slice.Tensor, x, axis, 0, size // 2)
    gate = rw.call(aten.slice.Tensor, x, axis, size // 2, size)
    return rw.call(aten.mul.Tensor, value, rw.call(aten.sigmoid.default, gate))


@RULES.of(aten.repeat_interleave.self_int)
def _repeat_interleave(rw: Rewriter, node: Node) -> Node | None:
    x, count, axis = node.args[0], node.args[1], argument(node, 2, "dim")
    if axis is None:
        x, axis = rw.call(aten.reshape.default, x, [-1]), 0
    sizes = rw.sizes(x)  # type: ignore[arg-type]
    axis = int(axis) % len(sizes)
    wide = rw.call(
        aten.expand.default,
        rw.call(aten.unsqueeze.default, x, axis + 1),
        [*sizes[: axis + 1], count, *sizes[axis + 1 :]],
    )
    merged = sizes[axis] * count if isinstance(sizes[axis], int) else -1
    return rw.call(aten.reshape.default, wide, [*sizes[:axis], merged, *sizes[axis + 1 :]])


@RULES.of(aten.stack.default)
def _stack(rw: Rewriter, node: Node) -> Node:
    axis = argument(node, 1, "dim", 0)
    pieces = [rw.call(aten.unsqueeze.default, piece, axis) for piece in node.args[0]]  # type: ignore[union-attr]
    return rw.call(aten.cat.default, pieces, axis)


@RULES.of(aten.copy.default)
def _copy(rw: Rewriter, node: Node) -> Node:
    target = node.meta["val"]
    value: Node = operands(node)[1]
    if value.meta["val"].dtype != target.dtype:
        value = rw.call(aten._to_copy.default, value, dtype=target.dtype)
    if len(value.meta["val"].shape) != len(target.shape) or not _same(
        value.meta["val"].shape, target.shape
    ):
        value = rw.call(aten.expand.default, value, rw.sizes(node.args[0]))  # type: ignore[arg-type]
    return value


@RULES.of(aten.mish.default, aten.hardswish.default, aten.hardsigmoid.default)
def _activation(rw: Rewriter, node: Node) -> Node:
    x = node.args[0]
    if node.target is aten.mish.default:
        return rw.call(
            aten.mul.Tensor, x, rw.call(aten.tanh.default, rw.call(aten.softplus.default, x))
        )
    shifted = rw.call(aten.clamp.default, rw.call(aten.add.Tensor, x, 3.0), 0.0, 6.0)
    gate = rw.call(aten.div.Tensor, shifted, 6.0)
    return gate if node.target is aten.hardsigmoid.default else rw.call(aten.mul.Tensor, x, gate)
