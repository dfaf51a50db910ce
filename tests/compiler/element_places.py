"""Calls of ops that choose or fold places: views, creation, indexing, pooling, reductions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from tests.compiler.element_operands import (
    BF16,
    BOOL,
    F16,
    F32,
    F64,
    I8,
    I32,
    I64,
    bools,
    edges,
    floats,
    ints,
)
from tests.compiler.programs import Call, call


def views() -> Iterator[Call]:
    x = floats(2, 3, 5)
    for target in ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"):
        yield call(target, floats(4, 6), [2, 12])
        yield call(target, floats(4, 6), [3, 8], label="unaligned")
        yield call(target, floats(4, 6), [-1], label="flat")
        yield call(target, floats(4, 6), [2, 1, 2, 3, 2], label="split")
        yield call(target, floats(1, 6, 1), [6, 1], label="ones")
    yield call("aten.reshape.default", floats(1), [], label="scalar")
    yield call("aten.reshape.default", torch.tensor(3.0), [1, 1], label="from scalar")
    yield call("aten.flatten.using_ints", x, 1)
    yield call("aten.flatten.using_ints", x, -2, -1, label="negative")
    yield call("aten.permute.default", x, [2, 0, 1])
    yield call("aten.permute.default", x, [-1, 0, -2], label="negative")
    yield call("aten.transpose.int", x, 0, -1)
    yield call("aten.t.default", floats(3, 5))
    yield call("aten.t.default", floats(5), label="vector")
    yield call("aten.numpy_T.default", floats(3, 5))
    yield call("aten.alias.default", x)
    yield call("aten.detach.default", x)
    yield call("aten.unsqueeze.default", x, 0)
    yield call("aten.unsqueeze.default", x, -1, label="negative")
    one = floats(1, 3, 1, 2)
    yield call("aten.squeeze.dim", one, 0)
    yield call("aten.squeeze.dim", one, -2, label="negative")
    yield call("aten.squeeze.dim", one, 1, label="not one")
    yield call("aten.squeeze.dims", one, [0, 2])
    yield call("aten.squeeze.dims", one, [1, -2], label="one of two")
    yield call("aten.squeeze.default", one)
    yield call("aten.expand.default", floats(3, 1), [2, 3, 4])
    yield call("aten.expand.default", floats(3, 1), [-1, 4], label="keep")
    for index in (0, 2, -1, -3):
        yield call("aten.select.int", x, 1, index, label=f"{index}")
    for label, rest in {
        "all": (),
        "end": (0, 0, 2),
        "start": (2, 1),
        "negative start": (2, -2),
        "negative end": (-1, 0, -1),
        "both negative": (2, -4, -1),
        "past the end": (2, 1, 99),
        "before the start": (2, -99, 3),
        "step 2": (2, 0, 9223372036854775807, 2),
        "step 3 from 1": (2, 1, 5, 3),
        "empty": (1, 2, 1),
        "empty at end": (1, 3, 9),
        "none": (1, None, None, 2),
        "one": (1, 1, 2),
    }.items():
        yield call("aten.slice.Tensor", x, *rest, label=label)
    yield call("aten.narrow.default", x, 2, 1, 3)
    yield call("aten.narrow.default", x, -1, -4, 2, label="negative")
    yield call("aten.cat.default", [x, floats(2, 1, 5), floats(2, 4, 5)], 1)
    yield call("aten.cat.default", [x, floats(2, 3, 1)], -1, label="negative")
    yield call("aten.cat.default", [x, ints(2, 3, 2)], 2, label="f32 i64")
    yield call("aten.cat.default", [floats(3, 0), floats(3, 4)], 1, label="empty part")
    yield call("aten.cat.default", [floats(3, 1), floats(3, 1), floats(3, 1)], 1, label="stack")
    yield call("aten.cat.default", [floats(0), floats(3, 4)], 0, label="legacy empty")
    yield call("aten.stack.default", [floats(3), floats(3, seed=1), floats(3, seed=2)], -1)
    yield call("aten.stack.default", [ints(3), floats(3)], 0, label="i64 f32")
    yield call("aten.constant_pad_nd.default", x, [1, 2])
    yield call("aten.constant_pad_nd.default", x, [1, 2, 0, 3], 7.5, label="value")
    yield call("aten.constant_pad_nd.default", x, [-1, 2, 1, -1], label="crop")
    yield call("aten.constant_pad_nd.default", x, [-1, -2], label="crop only")
    yield call("aten.constant_pad_nd.default", ints(3, 4), [1, 0, 0, 1], 3, label="i64")
    yield call("aten.flip.default", x, [0, 2])
    yield call("aten.flip.default", x, [-2], label="negative")
    yield call("aten.roll.default", x, [2], [2])
    yield call("aten.roll.default", x, [-1, 7], [1, -1], label="two axes")
    yield call("aten.roll.default", x, [-12], [2], label="many times")
    yield call("aten.roll.default", x, [4], label="flat")
    yield call("aten.repeat.default", floats(3, 2), [2, 1, 3])
    yield call("aten.repeat.default", floats(1, 2), [4, 2], label="one")
    yield call("aten.repeat.default", torch.tensor(2.0), [3], label="scalar")
    yield call("aten.slice_scatter.default", x, floats(2, 3, 2), 2, 1, 3)
    yield call("aten.slice_scatter.default", x, floats(2, 3, 3), -1, 0, 99, 2, label="step")
    yield call("aten.slice_scatter.default", x, floats(2, 3, 2), 2, -2, label="negative")
    yield call("aten.slice_scatter.default", x, floats(2, 2, 5), 1, None, -1, label="end")
    yield call("aten.select_scatter.default", x, floats(2, 5), 1, 2)
    yield call("aten.select_scatter.default", x, floats(2, 3), -1, -1, label="negative")
    yield call("aten.lift_fresh_copy.default", x)
    yield call("aten.unfold.default", floats(3, 9, 4), 1, 4, 2)
    yield call("aten.unfold.default", floats(3, 9), -1, 3, 3, label="last axis")
    yield call("aten.unfold.default", floats(5), 0, 5, 1, label="one window")
    yield call("aten.diagonal.default", floats(3, 4, 4))
    yield call("aten.diagonal.default", floats(3, 4, 6), 2, -2, -1, label="above")
    yield call("aten.diagonal.default", floats(3, 4, 6), -1, 2, 0, label="below")


def creation() -> Iterator[Call]:
    yield call("aten.full.default", [3, 5], 2.5)
    yield call("aten.full.default", [3, 5], 7, dtype=I32, label="i32")
    yield call("aten.full.default", [], -math.inf, label="scalar")
    yield call("aten.full_like.default", ints(3, 5), 4)
    yield call("aten.full_like.default", ints(3, 5), 1.5, dtype=F32, label="f32")
    yield call("aten.scalar_tensor.default", 1.5)
    yield call("aten.scalar_tensor.default", 3, dtype=I64, label="i64")
    yield call("aten.zeros.default", [4])
    yield call("aten.zeros.default", [0, 3], label="empty")
    yield call("aten.zeros_like.default", bools(3))
    yield call("aten.new_zeros.default", floats(3), [2, 2])
    yield call("aten.ones.default", [2, 3], dtype=BOOL)
    yield call("aten.ones_like.default", ints(3))
    yield call("aten.new_ones.default", floats(3), [2, 2])
    yield call("aten.arange.default", 7)
    yield call("aten.arange.default", 7, dtype=F32, label="f32")
    yield call("aten.arange.default", 2.5, label="float end")
    yield call("aten.arange.start", 3, 9)
    yield call("aten.arange.start", 0.5, 4.0, label="float")
    yield call("aten.arange.start_step", 9, -4, -3)
    yield call("aten.arange.start_step", 0, 9, 2, dtype=F32, label="f32")
    yield call("aten.arange.start_step", 0.0, 1.0, 0.25, label="float")
    yield call("aten.arange.start_step", 1, 9, 3, dtype=I32, label="i32")
    yield call("aten.eye.default", 5)
    yield call("aten.eye.m", 3, 5, dtype=I64)


def indexing() -> Iterator[Call]:
    x = floats(4, 5, 6)
    yield call("aten.embedding.default", floats(9, 6), ints(3, 4, low=0, high=9))
    yield call(
        "aten.embedding.default", floats(9, 6), ints(3, low=0, high=9, dtype=I32), label="i32"
    )
    yield call("aten.index_select.default", x, 1, torch.tensor([4, 0, 0, 3]))
    yield call("aten.index_select.default", x, -1, torch.tensor([5, 2]), label="negative axis")
    yield call("aten.gather.default", x, 1, ints(4, 3, 6, low=0, high=5))
    yield call("aten.gather.default", x, -1, ints(2, 3, 2, low=0, high=6), label="smaller")
    rows, columns = torch.tensor([3, -1, 0]), torch.tensor([1, -5, 4])
    yield call("aten.index.Tensor", x, [rows])
    yield call("aten.index.Tensor", x, [None, columns], label="second axis")
    yield call("aten.index.Tensor", x, [rows, columns], label="pairs")
    yield call("aten.index.Tensor", x, [rows[:, None], columns], label="grid")
    yield call("aten.index.Tensor", x, [rows, None, columns], label="apart")
    yield call("aten.index.Tensor", x, [None, rows[:2, None], columns[:1]], label="broadcast")
    yield call("aten.index.Tensor", x, [rows.to(I32)], label="i32")
    yield call("aten._unsafe_index.Tensor", x, [None, None, columns])


def pooling() -> Iterator[Call]:
    line, image, volume = floats(2, 3, 11), floats(2, 3, 7, 9), floats(1, 2, 5, 4, 6)
    yield call("aten.avg_pool1d.default", line, [3])
    yield call("aten.avg_pool1d.default", line, [3], [2], [1], label="padded")
    yield call("aten.avg_pool1d.default", line, [3], [2], [1], True, False, label="ceil, no pad")
    yield call("aten.avg_pool1d.default", line, [3], [3], [1], True, True, label="ceil")
    yield call("aten.avg_pool2d.default", image, [2, 3])
    yield call("aten.avg_pool2d.default", image, [3, 3], [2, 2], [1, 1], False, False, label="pad")
    yield call("aten.avg_pool2d.default", image, [3], [2], [1], True, True, label="ceil")
    yield call(
        "aten.avg_pool2d.default", image, [2, 2], [2, 2], [0, 0], True, False, label="ceil no pad"
    )
    yield call(
        "aten.avg_pool2d.default", image, [2, 2], [], [0, 0], False, True, 3, label="divisor"
    )
    yield call("aten.avg_pool2d.default", floats(3, 7, 9), [2, 2], label="no batch")
    yield call("aten.avg_pool3d.default", volume, [2, 2, 2])
    yield call("aten.max_pool1d.default", line, [3], [2], [1])
    yield call("aten.max_pool1d.default", line, [3], [2], [0], [2], label="dilated")
    yield call("aten.max_pool1d.default", line, [4], [3], [0], [1], True, label="ceil")
    yield call("aten.max_pool2d.default", image, [3, 3], [2, 2], [1, 1])
    yield call("aten.max_pool2d.default", image, [2, 2], [2, 2], [0, 0], [1, 1], True, label="ceil")
    yield call("aten.max_pool2d.default", image, [2, 2], [1, 1], [0, 0], [2, 3], label="dilated")
    yield call("aten.max_pool3d.default", volume, [2, 2, 2])


def reductions() -> Iterator[Call]:
    x, one = floats(3, 5, 7), floats(3, 1, 7)
    flags = bools(3, 5, 7) | bools(1, 5, 7, seed=4)
    for axes in ([1], [-1], [0, 2], [0], []):
        for keep in (False, True):
            label = f"{axes} {keep}"
            yield call("aten.sum.dim_IntList", x, axes, keep, label=label)
            yield call("aten.amax.default", x, axes, keep, label=label)
            yield call("aten.amin.default", x, axes, keep, label=label)
            yield call("aten.mean.dim", x, axes, keep, label=label)
            if axes:
                yield call("aten.any.dims", flags, axes, keep, label=label)
                yield call("aten.all.dims", flags, axes, keep, label=label)
    yield call("aten.sum.dim_IntList", x, None, label="None")
    yield call("aten.mean.dim", x, None, label="None")
    yield call("aten.sum.dim_IntList", one, [1], label="size one")
    yield call("aten.amax.default", one, [1], True, label="size one")
    yield call("aten.sum.dim_IntList", ints(3, 5), [1], label="i64")
    yield call("aten.sum.dim_IntList", ints(3, 5, dtype=I32), [0], label="i32")
    yield call("aten.sum.dim_IntList", bools(3, 5), [1], label="bool")
    yield call("aten.sum.dim_IntList", ints(3, 5), [1], dtype=F32, label="i64 as f32")
    yield call("aten.sum.dim_IntList", floats(3, 65, dtype=BF16), [1], label="bf16")
    yield call("aten.sum.dim_IntList", floats(3, 0), [1], label="empty")
    yield call("aten.mean.dim", floats(3, 65, dtype=F16), [1], label="f16")
    yield call("aten.mean.dim", floats(3, 65, dtype=F64), [1], label="f64")
    yield call("aten.mean.dim", ints(3, 5), [1], dtype=F32, label="i64 as f32")
    yield call("aten.amax.default", ints(3, 5), [1], label="i64")
    yield call("aten.amin.default", ints(3, 5, dtype=I8), [1], label="i8")
    yield call("aten.amax.default", bools(3, 5), [1], label="bool")
    yield call("aten.amin.default", bools(3, 5), [1], label="bool")
    yield call("aten.amax.default", edges().reshape(1, -1), [1], label="nan")
    yield call("aten.amin.default", edges()[:-1].reshape(2, -1), [1], label="inf")
    for target in ("aten.sum.default", "aten.mean.default", "aten.prod.default"):
        yield call(target, x)
        yield call(target, torch.tensor(2.5), label="scalar")
    yield call("aten.prod.dim_int", x, 1)
    yield call("aten.prod.dim_int", ints(3, 5), -1, True, label="i64")
    for name in ("any", "all"):
        yield call(f"aten.{name}.default", flags)
        yield call(f"aten.{name}.default", ints(3, 5, low=0, high=2), label="i64")
        yield call(f"aten.{name}.dim", flags, -1)
        yield call(f"aten.{name}.dim", floats(3, 5).round(), 0, True, label="f32")
        yield call(f"aten.{name}.dim", torch.zeros(2, 0, dtype=BOOL), 1, label="empty")
    yield call("aten.sum.dim_IntList", floats(3, 1000), [1], label="long")
    yield call("aten.sum.dim_IntList", floats(40, 3, 17), [0, 1], label="outer axes")
