"""Resize: torch's own interpolation where it means the same, and the definition elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.host import SYMBOLS, Value
from svdqc.frontends.onnx.registry import onnx_op

TORCH_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


@dataclass(frozen=True)
class Axis:
    """How one axis is resized. `roi` is its (start, end) for tf_crop_and_resize."""

    dim: int
    size: Any
    out: Any
    scale: Any
    roi: tuple[float, float]


@onnx_op("Resize", host=(1, 2, 3))
def resize(
    call: Call,
    x: Tensor,
    roi: Value | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
) -> Tensor:
    axes = [axis for axis in _axes(call, x, roi, scales, sizes) if not _unchanged(call, axis)]
    if not axes:
        return x
    native = _native(call, x, axes)
    if native is not None:
        return native
    mode = call.attribute("mode", "nearest")
    for axis in axes:
        x = _nearest(call, x, axis) if mode == "nearest" else _weighted(call, x, axis)
    return x


def _axes(
    call: Call, x: Tensor, roi: Value | None, scales: Value | None, sizes: Value | None
) -> list[Axis]:
    dims = [axis % x.dim() for axis in call.attribute("axes", list(range(x.dim())))]
    crops = call.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    bounds = call.ints(roi, "the region") if crops and roi is not None and roi.shape != (0,) else []
    regions = [
        (float(bounds[i]), float(bounds[i + len(dims)])) if bounds else (0.0, 1.0)
        for i in range(len(dims))
    ]
    axes = []
    if scales is not None and scales.shape != (0,):
        for dim, scale, region in zip(dims, call.ints(scales, "the scale"), regions, strict=True):
            out = _floor(x.shape[dim] * _whole(scale) * _whole(region[1] - region[0]))
            axes.append(Axis(dim, x.shape[dim], out, scale, region))
        return axes
    assert sizes is not None, "neither scales nor sizes"
    wanted = call.ints(sizes, "the size")
    policy = call.attribute("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        for dim, out, region in zip(dims, wanted, regions, strict=True):
            axes.append(Axis(dim, x.shape[dim], out, out / x.shape[dim], region))
        return axes
    ratios = [out / x.shape[dim] for dim, out in zip(dims, wanted, strict=True)]
    common = min(ratios) if policy == "not_larger" else max(ratios)
    for dim, region in zip(dims, regions, strict=True):
        out = math.floor(common * x.shape[dim] + 0.5)
        axes.append(Axis(dim, x.shape[dim], out, common, region))
    return axes


def _whole(scale: Any) -> Any:
    """A scale that is a whole number as an int, so that it multiplies a symbol exactly."""
    is_whole = not isinstance(scale, SYMBOLS) and float(scale).is_integer()
    return int(scale) if is_whole else scale


def _floor(value: Any) -> Any:
    return value if isinstance(value, (int, torch.SymInt)) else math.floor(value)


def _unchanged(call: Call, axis: Axis) -> bool:
    if call.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return False
    return isinstance(axis.scale, float) and axis.scale == 1.0


def _native(call: Call, x: Tensor, axes: list[Axis]) -> Tensor | None:
    """torch's interpolation of [batch, channels, space…], if it has this case."""
    if min(axis.dim for axis in axes) < 2 or x.dim() not in TORCH_LINEAR:
        return None
    if not x.dtype.is_floating_point or call.flag("antialias") or call.flag("exclude_outside"):
        return None
    if any(not _exact(axis) for axis in axes):
        return None
    by_dim = {axis.dim: axis for axis in axes}
    size = [by_dim[dim].out if dim in by_dim else x.shape[dim] for dim in range(2, x.dim())]
    mode = call.attribute("mode", "nearest")
    transform = call.attribute("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        rounding = call.attribute("nearest_mode", "round_prefer_floor")
        if transform == "asymmetric" and rounding == "floor":
            return F.interpolate(x, size=size, mode="nearest")
        return None
    torch_mode = TORCH_LINEAR[x.dim()]
    if mode == "cubic":
        if x.dim() != 4 or call.attribute("cubic_coeff_a", -0.75) != -0.75 or len(axes) != 2:
            return None
        torch_mode = "bicubic"
    if transform == "align_corners":
        return F.interpolate(x, size=size, mode=torch_mode, align_corners=True)
    halves = ("half_pixel", "half_pixel_symmetric") if mode == "linear" else ("half_pixel",)
    larger = all(isinstance(axis.out, torch.SymInt) or axis.out > 1 for axis in axes)
    if transform in halves or (transform == "pytorch_half_pixel" and larger):
        return F.interpolate(x, size=size, mode=torch_mode, align_corners=False)
    return None


def _exact(axis: Axis) -> bool:
    """Whether the scale is the ratio of the sizes: torch knows only that."""
    if isinstance(axis.scale, SYMBOLS):
        return True
    if isinstance(axis.size, torch.SymInt) or isinstance(axis.out, torch.SymInt):
        return float(axis.scale).is_integer()
    return bool(math.isclose(axis.size * axis.scale, axis.out, rel_tol=1e-7))


def _coordinates(call: Call, axis: Axis) -> Tensor:
    """Position in the input of each output element, f64 [out]."""
    position: Tensor = _transformed(call, axis)
    return position


def _transformed(call: Call, axis: Axis) -> Any:
    transform = call.attribute("coordinate_transformation_mode", "half_pixel")
    y = torch.arange(axis.out, dtype=torch.float64)
    width = axis.scale * axis.size
    if transform == "align_corners":
        return y * 0.0 if _is_one(width) else y * ((axis.size - 1) / (width - 1))
    if transform == "asymmetric":
        return y / axis.scale
    if transform == "half_pixel":
        return (y + 0.5) / axis.scale - 0.5
    if transform == "pytorch_half_pixel":
        return y * 0.0 - 0.5 if _is_one(width) else (y + 0.5) / axis.scale - 0.5
    if transform == "half_pixel_symmetric":
        offset = axis.size / 2 * (1 - axis.out / width)
        return offset + (y + 0.5) / axis.scale - 0.5
    if transform == "tf_crop_and_resize":
        start, end = axis.roi
        last = axis.size - 1
        if _is_one(axis.out):
            return y * 0.0 + (start + end) * last / 2
        return y * ((end - start) * last / (axis.out - 1)) + start * last
    raise call.error(f"coordinate_transformation_mode {transform!r}", "use one of the standard")


def _is_one(width: Any) -> bool:
    return not isinstance(width, SYMBOLS) and width == 1


def _nearest(call: Call, x: Tensor, axis: Axis) -> Tensor:
    position = _coordinates(call, axis)
    rounding = call.attribute("nearest_mode", "round_prefer_floor")
    roundings: dict[str, Callable[[Tensor], Tensor]] = {
        "round_prefer_floor": lambda p: torch.ceil(p - 0.5),
        "round_prefer_ceil": lambda p: torch.floor(p + 0.5),
        "floor": torch.floor,
        "ceil": torch.ceil,
    }
    index = roundings[rounding](position)
    picked = torch.index_select(x, axis.dim, index.to(torch.int64).clamp(0, axis.size - 1))
    return _extrapolated(call, picked, axis, position)


def _weighted(call: Call, x: Tensor, axis: Axis) -> Tensor:
    """A weighted sum over the taps next to each position."""
    position = _coordinates(call, axis)
    base = torch.floor(position)
    ratio = position - base  # [out]
    offsets, weights = _taps(call, ratio, axis)
    if call.flag("exclude_outside"):
        inside = [(base + o >= 0) & (base + o < axis.size) for o in offsets]
        weights = [torch.where(ok, w, 0.0) for ok, w in zip(inside, weights, strict=True)]
        total = sum(weights[1:], weights[0])
        weights = [w / total for w in weights]
    view = [1] * x.dim()
    view[axis.dim] = -1
    wide = x if x.dtype.is_floating_point else x.to(torch.float32)
    terms = []
    for offset, weight in zip(offsets, weights, strict=True):
        index = (base + offset).to(torch.int64).clamp(0, axis.size - 1)
        picked = torch.index_select(wide, axis.dim, index)
        terms.append(picked * weight.to(wide.dtype).reshape(view))
    result = sum(terms[1:], terms[0])
    result = result if x.dtype.is_floating_point else result.round().to(x.dtype)
    return _extrapolated(call, result, axis, position)


def _taps(call: Call, ratio: Tensor, axis: Axis) -> tuple[list[int], list[Tensor]]:
    """Offsets from the base position, and the weight of each, f64 [out]."""
    cubic = call.attribute("mode") == "cubic"
    a = call.attribute("cubic_coeff_a", -0.75)
    shrink = 1.0
    if call.flag("antialias") and not isinstance(axis.scale, SYMBOLS):
        # The filter is stretched over the input elements that one output element covers.
        shrink = min(float(axis.scale), 1.0)
    reach = 2 if cubic else 1
    first = math.floor(-reach / shrink) + 1
    offsets = list(range(first, 2 - first))
    distances = [((offset - ratio) * shrink).abs() for offset in offsets]
    weights = [_cubic(d, a) if cubic else (1 - d).clamp(min=0.0) for d in distances]
    total = sum(weights[1:], weights[0])
    return offsets, [weight / total for weight in weights]


def _cubic(distance: Tensor, a: float) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    zero = torch.zeros_like(distance)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, zero))


def _extrapolated(call: Call, y: Tensor, axis: Axis, position: Tensor) -> Tensor:
    if call.attribute("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize":
        return y
    outside = (position < 0) | (position > axis.size - 1)
    view = [1] * y.dim()
    view[axis.dim] = -1
    return torch.where(outside.reshape(view), call.attribute("extrapolation_value", 0.0), y)
