"""Calls of interpolation and sampling, whose places lie between elements."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tests.compiler.element_operands import floats, unit
from tests.compiler.programs import Call, call


def interpolation() -> Iterator[Call]:
    for sizes, outs in (((5,), (10,)), ((5,), (7,)), ((6,), (4,)), ((7,), (7,))):
        source = floats(2, 3, *sizes)
        yield call("aten.upsample_nearest1d.default", source, list(outs), label=f"{sizes}{outs}")
    yield call("aten.upsample_nearest1d.vec", floats(1, 2, 5), None, [2.0])
    yield call("aten.upsample_nearest2d.default", floats(1, 3, 4, 5), [8, 15])
    yield call("aten.upsample_nearest2d.vec", floats(1, 3, 4, 5), None, [2.0, 3.0])
    yield call("aten.upsample_nearest2d.vec", floats(1, 3, 4, 5), [6, 3], None, label="size")
    yield call("aten.upsample_nearest3d.default", floats(1, 2, 3, 4, 2), [6, 4, 6])
    yield call("aten.upsample_nearest3d.vec", floats(1, 2, 3, 4, 2), None, [2.0, 2.0, 2.0])
    for align in (False, True):
        yield call("aten.upsample_linear1d.default", floats(2, 3, 5), [11], align, label=f"{align}")
        yield call(
            "aten.upsample_linear1d.vec", floats(2, 3, 5), [3], align, None, label=f"{align}"
        )
        yield call(
            "aten.upsample_bilinear2d.default", floats(1, 3, 4, 5), [8, 10], align, label=f"{align}"
        )
        yield call(
            "aten.upsample_bilinear2d.vec",
            floats(1, 3, 4, 5),
            None,
            align,
            [2.0, 2.0],
            label=f"{align}",
        )
        yield call(
            "aten.upsample_bilinear2d.default",
            floats(1, 2, 7, 5),
            [3, 9],
            align,
            label=f"{align} down",
        )
    yield call("aten.upsample_bilinear2d.default", floats(1, 2, 7, 5), [1, 1], True, label="to one")
    for align in (False, True):
        x = unit(
            2, 3, 5, 4
        )  # 16 terms that partly cancel: their rounding is that of values of size 1
        yield call("aten.upsample_bicubic2d.default", x, [9, 7], align, label=f"{align}")
        yield call("aten.upsample_bicubic2d.default", x, [3, 2], align, label=f"{align} down")
        yield call("aten.upsample_bicubic2d.vec", x, None, align, [2.0, 3.0], label=f"{align}")
    # A factor of which the sizes are no multiple: PyTorch takes its inverse, not the ratio of the sizes.
    for factor in (1.7, 0.6):
        x, factors = unit(1, 2, 7, 9), [factor, factor + 0.3]
        yield call("aten.upsample_bilinear2d.vec", x, None, False, factors, label=f"x{factor}")
        yield call("aten.upsample_bicubic2d.vec", x, None, False, factors, label=f"x{factor}")
        yield call("aten.upsample_nearest2d.vec", x, None, factors, label=f"x{factor}")
    x = floats(1, 2, 7, 9)
    yield call("aten.upsample_nearest2d.default", x, [10, 5], 1.5, 0.6, label="scales")
    yield call("aten.upsample_bilinear2d.default", x, [10, 5], False, 1.5, 0.6, label="scales")


PADDINGS = ("zeros", "border", "reflection")


def grid_sampling() -> Iterator[Call]:
    """Places inside, on the border and far outside; one element wide; both corner conventions."""
    flat, grid = floats(2, 3, 5, 6), floats(2, 4, 7, 2) * 1.5
    solid, places = floats(1, 2, 3, 5, 4), floats(1, 2, 3, 4, 3) * 1.5
    for align in (False, True):
        for padding, name in enumerate(PADDINGS):
            for mode, kind in enumerate(("bilinear", "nearest", "bicubic")):
                label = f"{kind} {name} {align}"
                yield call(
                    "aten.grid_sampler_2d.default", flat, grid, mode, padding, align, label=label
                )
                if kind != "bicubic":
                    yield call(
                        *("aten.grid_sampler_3d.default", solid, places, mode, padding, align),
                        label=label,
                    )
    corners = torch.tensor([-1.0, 1.0, 0.0, -1.0, 1.0, 0.0, 9.0, -9.0]).reshape(1, 2, 2, 2)
    for padding, name in enumerate(PADDINGS):
        yield call(
            *("aten.grid_sampler_2d.default", floats(1, 1, 4, 4), corners, 0, padding, True),
            label=f"corners {name}",
        )
        yield call(
            *("aten.grid_sampler_2d.default", floats(1, 1, 1, 4), corners, 0, padding, True),
            label=f"one row {name}",
        )
    yield call(
        "aten.grid_sampler_2d.default", flat.double(), grid.double(), 0, 0, False, label="f64"
    )
