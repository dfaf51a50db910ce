"""Functions whose ops have no rule of their own and are made of others: what users write, at odd sizes.

A case is a function of tensors; its name says what is asked of it. Dims: sizes that may vary, where that is part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tests.compiler.element_operands import BF16, F64, I32, bools, floats, ints, positive
from torch import Tensor


@dataclass(frozen=True)
class Case:
    name: str
    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]


def ties(*shape: int) -> Tensor:
    """Few values, so that many are equal."""
    return ints(*shape, low=0, high=3).float()


def holes(*shape: int) -> Tensor:
    """A NaN and both infinities among others."""
    x = floats(*shape).clone()
    x.view(-1)[1::5] = float("nan")
    x.view(-1)[2::7], x.view(-1)[3::7] = float("inf"), float("-inf")
    return x


def distinct(rows: int, count: int, below: int) -> Tensor:
    """Each row: `count` different integers."""
    generator = torch.Generator().manual_seed(rows + below)
    picks = [torch.randperm(below, generator=generator)[:count] for _ in range(rows)]
    return torch.stack(picks)


def order() -> Iterator[Case]:
    yield Case("sort", lambda x: torch.sort(x), (floats(3, 17),))
    yield Case("sort__first_axis_down", lambda x: torch.sort(x, 0, True), (floats(7, 3),))
    yield Case("sort__equal_values", lambda x: torch.sort(x, stable=True), (ties(3, 11),))
    yield Case(
        "sort__equal_values_down",
        lambda x: torch.sort(x, stable=True, descending=True),
        (ties(3, 11),),
    )
    yield Case("sort__nan_is_greatest", lambda x: torch.sort(x, stable=True)[1], (holes(2, 9),))
    yield Case("sort__integers", lambda x: torch.sort(x, stable=True), (ints(2, 9),))
    yield Case("sort__one_element", lambda x: torch.sort(x), (floats(3, 1),))
    yield Case("argsort__middle_axis", lambda x: x.argsort(1), (floats(2, 5, 3),))
    yield Case("topk", lambda x: torch.topk(x, 3), (floats(3, 9),))
    yield Case("topk__smallest_of_an_axis", lambda x: x.topk(2, 1, False), (floats(3, 9, 2),))
    yield Case("topk__all", lambda x: torch.topk(x, 5), (floats(2, 5),))
    yield Case("argmax__nan_is_greatest", lambda x: (x.argmax(1), x.argmin(1)), (holes(3, 9),))
    yield Case("max__with_position", lambda x: x.max(1), (ties(3, 9),))
    yield Case("quantile", lambda x: torch.quantile(x, 0.3, dim=-1), (floats(3, 9),))
    boundaries = torch.tensor([-1.0, -0.5, 0.0, 0.0, 2.0])
    x = torch.cat([floats(6), boundaries])
    yield Case("bucketize", lambda x, b: torch.bucketize(x, b), (x, boundaries))
    yield Case(
        "bucketize__right_i32",
        lambda x, b: torch.bucketize(x, b, right=True, out_int32=True),
        (x, boundaries),
    )
    rows = floats(3, 7).sort()[0]
    yield Case("searchsorted", lambda s, x: torch.searchsorted(s, x), (rows, floats(3, 4)))
    yield Case(
        "searchsorted__right",
        lambda s, x: torch.searchsorted(s, x, side="right"),
        (rows, rows[:, 1:4].clone()),
    )


def running() -> Iterator[Case]:
    yield Case("cumsum", lambda x: x.cumsum(1), (floats(3, 9, 2),))
    yield Case("cumsum__of_flags", lambda x: x.cumsum(-1), (bools(3, 9),))
    yield Case("cumprod", lambda x: x.cumprod(1), (positive(3, 9),))
    yield Case("norm__3", lambda x: torch.linalg.vector_norm(x, 3, dim=-1), (floats(3, 9),))
    yield Case(
        "norm__least", lambda x: torch.linalg.vector_norm(x, float("-inf"), dim=0), (floats(3, 9),)
    )
    yield Case("cdist", lambda x, y: torch.cdist(x, y), (floats(2, 5, 4), floats(2, 6, 4)))
    yield Case("cdist__1", lambda x, y: torch.cdist(x, y, 1.0), (floats(5, 4), floats(6, 4)))
    yield Case("var_mean", lambda x: torch.var_mean(x, dim=1, correction=0), (floats(3, 9),))
    yield Case(
        "std_mean__keepdim",
        lambda x: torch.std_mean(x, dim=(0, 2), keepdim=True),
        (floats(3, 4, 5),),
    )


def scattering() -> Iterator[Case]:
    base, places = floats(3, 8), distinct(3, 5, 8)
    yield Case("scatter", lambda b, i, v: b.scatter(1, i, v), (base, places, floats(3, 5)))
    yield Case("scatter__a_number", lambda b, i: b.scatter(1, i, 2.5), (base, places))
    yield Case(
        "scatter__smaller_index",
        lambda b, i, v: b.scatter(1, i, v),
        (floats(5, 8, 3), distinct(2, 4, 8)[..., None], floats(5, 6, 3)),
    )
    yield Case(
        "scatter__first_axis",
        lambda b, i, v: b.scatter(0, i, v),
        (floats(6, 2), distinct(2, 4, 6).T.contiguous(), floats(4, 2)),
    )
    repeated = ints(3, 7, low=0, high=8)
    values = floats(3, 7)
    yield Case("scatter_add", lambda b, i, v: b.scatter_add(1, i, v), (base, repeated, values))
    for how in ("sum", "prod", "mean", "amax", "amin"):
        for include in (True, False):
            yield Case(
                f"scatter_reduce__{how}_{'with' if include else 'without'}_base",
                lambda b, i, v, how=how, include=include: b.scatter_reduce(
                    1, i, v, how, include_self=include
                ),
                (base, repeated, values),
            )
    yield Case(
        "scatter__multiply_by_a_number",
        lambda b, i: b.scatter(1, i, 3.0, reduce="multiply"),
        (base, places),
    )
    yield Case(
        "index_add", lambda b, i, v: b.index_add(0, i, v), (floats(8, 4), repeated[0], floats(7, 4))
    )
    yield Case(
        "index_copy",
        lambda b, i, v: b.index_copy(1, i, v),
        (floats(4, 8), places[0], floats(4, 5)),
    )


def writing() -> Iterator[Case]:
    def put(b: Tensor, v: Any, *indices: Any) -> Tensor:
        result = b.clone()
        result[indices] = v
        return result

    base, rows, columns = floats(6, 5, 4), torch.tensor([4, -1, 0]), torch.tensor([2, 0, 1])
    yield Case("index_put__rows", lambda b, v, i: put(b, v, i), (base, floats(3, 5, 4), rows))
    yield Case(
        "index_put__pairs", lambda b, v, i, j: put(b, v, i, j), (base, floats(3, 4), rows, columns)
    )
    yield Case(
        "index_put__middle_axis",
        lambda b, v, i: put(b, v, slice(None), i),
        (base, floats(6, 3, 4), columns),
    )
    yield Case(
        "index_put__apart",
        lambda b, v, i, j: put(b, v, i, slice(None), j),
        (base, floats(3, 5), rows, columns),
    )
    yield Case(
        "index_put__grid_of_a_number",
        lambda b, i, j: put(b, 7.0, i[:, None], j[None, :]),
        (base, rows, columns),
    )
    yield Case(
        "index_put__added",
        lambda b, i, v: b.index_put((i,), v, accumulate=True),
        (floats(6, 4), ints(9, low=0, high=6), floats(9, 4)),
    )
    yield Case("index_put__mask_of_a_number", lambda b, m: put(b, 0.0, m), (base, bools(6, 5, 4)))
    yield Case("index_put__mask_of_rows", lambda b, m: put(b, 1.5, m), (base, bools(6)))
    yield Case(
        "index_put__mask_of_one_row", lambda b, v, m: put(b, v, m), (base, floats(4), bools(6, 5))
    )

    def strided(x: Tensor) -> Tensor:
        result = torch.zeros(3, 12)
        result[:, 1::3] = x
        result[..., -1] += 2
        return result

    yield Case("slices__written_and_added_to", strided, (floats(3, 4),))


def windows() -> Iterator[Case]:
    x = floats(2, 3, 8, 7)
    yield Case("adaptive_avg_pool__divides", lambda x: F.adaptive_avg_pool2d(x, (4, 7)), (x,))
    yield Case("adaptive_avg_pool__overlaps", lambda x: F.adaptive_avg_pool2d(x, (3, 5)), (x,))
    yield Case("adaptive_avg_pool__larger", lambda x: F.adaptive_avg_pool2d(x, (11, 9)), (x,))
    yield Case("adaptive_avg_pool__1d", lambda x: F.adaptive_avg_pool1d(x, 4), (floats(2, 3, 9),))
    yield Case(
        "adaptive_avg_pool__3d", lambda x: F.adaptive_avg_pool3d(x, 2), (floats(1, 2, 3, 4, 5),)
    )
    yield Case("adaptive_max_pool", lambda x: F.adaptive_max_pool2d(x, (3, 2)), (x,))
    yield Case("interpolate__area", lambda x: F.interpolate(x, size=(5, 3), mode="area"), (x,))
    yield Case("fold__patches", lambda x: F.fold(x, (6, 8), 2, stride=2), (floats(2, 12, 12),))
    yield Case(
        "fold__overlapping_and_dilated",
        lambda x: F.fold(x, (7, 6), (3, 2), dilation=2, padding=1, stride=(2, 1)),
        (floats(2, 18, 18),),
    )
    yield Case("unfold", lambda x: F.unfold(x, 3, padding=1, stride=2), (x,))
    yield Case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), (floats(2, 8, 3, 5),))
    yield Case("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), (floats(2, 2, 6, 4),))
    for mode in ("reflect", "replicate", "circular"):
        yield Case(f"pad__{mode}", lambda x, mode=mode: F.pad(x, (1, 2, 2, 0), mode=mode), (x,))
        yield Case(
            f"pad__{mode}_by_nothing",
            lambda x, mode=mode: F.pad(x, (0, 0), mode=mode) + 1,
            (floats(2, 3, 5),),
        )


def norms() -> Iterator[Case]:
    x, scale, shift = floats(2, 3, 5, 4) + 1, floats(3), positive(3)
    yield Case("instance_norm", lambda x: F.instance_norm(x), (x,))
    yield Case(
        "instance_norm__affine_1d",
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        (floats(2, 3, 9), scale, shift),
    )
    yield Case(
        "instance_norm__stored_statistics",
        lambda x, m, v: F.instance_norm(x, m, v, use_input_stats=False),
        (x, scale, shift),
    )
    yield Case("group_norm__of_one_picture", lambda x: F.group_norm(x, 2), (floats(1, 4, 3, 3),))
    yield Case("batch_norm", lambda x, m, v: F.batch_norm(x, m, v), (x, scale, shift))


def products() -> Iterator[Case]:
    def rotated(x: Tensor) -> Tensor:
        steps = torch.outer(torch.arange(x.shape[1]).float(), 10.0 ** -torch.arange(4))
        turns = torch.polar(torch.ones_like(steps), steps)
        pairs = torch.view_as_complex(x.unflatten(-1, (4, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2)

    q, kv = floats(2, 4, 6, 8), floats(2, 2, 6, 8, seed=1)
    yield Case("rope__complex", rotated, (floats(2, 6, 8),))
    yield Case("einsum__scores", lambda a, b: torch.einsum("bqd,bkd->bqk", a, b), (q[0], q[1]))
    yield Case(
        "einsum__heads", lambda a, b: torch.einsum("bhnd,hde->bnhe", a, b), (q, floats(4, 8, 3))
    )
    yield Case(
        "einsum__rows",
        lambda a, b: torch.einsum("ij,ij->i", a, b),
        (floats(3, 8), floats(3, 8, seed=1)),
    )
    attend = F.scaled_dot_product_attention
    yield Case(
        "attention__flags",
        lambda q, m: attend(q, q, q, m),
        (q, bools(2, 1, 6, 6) | torch.eye(6).bool()),
    )
    yield Case("attention__bias", lambda q, m: attend(q, q, q, m), (q, floats(6, 6)))
    yield Case("attention__causal", lambda q: attend(q, q, q, is_causal=True), (q,))
    yield Case("attention__grouped", lambda q, kv: attend(q, kv, kv, enable_gqa=True), (q, kv))
    # Both sides are one value, but never the same element of it.
    yield Case("pairs__transposed", lambda x: (x.exp() + x.exp().T).sum(0), (floats(5, 5),))
    yield Case(
        "pairs__of_an_axis",
        lambda x: (x.exp()[:, :, None] < x.exp()[:, None, :]).sum(-1),
        (floats(3, 7),),
    )
    yield Case("matmul__f64", lambda x: x @ x.mT, (floats(3, 5, dtype=F64),))
    yield Case("one_hot", lambda i: F.one_hot(i, 7), (ints(3, 4, low=0, high=7),))
    yield Case("gather__i32", lambda x, i: x[i], (floats(5, 2), ints(4, low=0, high=5, dtype=I32)))
    yield Case("roll__two_axes", lambda x: x.roll((1, -2), (1, 2)), (floats(2, 5, 6),))
    yield Case("softmax__bf16", lambda x: x.softmax(-1), (floats(3, 9, dtype=BF16),))


FAMILIES = {
    "order": order,
    "running": running,
    "scattering": scattering,
    "writing": writing,
    "windows": windows,
    "norms": norms,
    "products": products,
}
