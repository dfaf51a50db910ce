"""Sampling at computed positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.host import Value
from svdqc.frontends.onnx.registry import onnx_op

GRID_MODES = {
    "bilinear": "bilinear",
    "linear": "bilinear",
    "nearest": "nearest",
    "bicubic": "bicubic",
    "cubic": "bicubic",
}


@onnx_op("GridSample", since=16)
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    mode = GRID_MODES[call.attribute("mode", "bilinear")]
    if x.dim() not in (4, 5) or (mode == "bicubic" and x.dim() != 4):
        raise call.error(
            f"mode {mode} on rank {x.dim()}", "sample images of rank 4, or 5 if linear"
        )
    return F.grid_sample(
        x,
        grid,
        mode=mode,
        padding_mode=call.attribute("padding_mode", "zeros"),
        align_corners=call.flag("align_corners"),
    )


@onnx_op("AffineGrid", since=20, host=(1,))
def affine_grid(call: Call, theta: Tensor, size: Value) -> Tensor:
    return F.affine_grid(theta, call.ints(size), align_corners=call.flag("align_corners"))


@onnx_op("RoiAlign", since=16)
def roi_align(call: Call, x: Tensor, rois: Tensor, batch_indices: Tensor) -> Tensor:
    """Bilinear samples on a grid in each bin of each region, averaged or maximised."""
    samples = call.attribute("sampling_ratio", 0)
    if samples <= 0:
        raise call.error("a sampling_ratio that depends on the regions", "give a sampling_ratio")
    height, width = call.attribute("output_height", 1), call.attribute("output_width", 1)
    scale = call.attribute("spatial_scale", 1.0)
    half = call.attribute("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    left, top, right, bottom = (rois * scale - (0.5 if half else 0.0)).unbind(1)  # [regions]
    extent_y, extent_x = bottom - top, right - left
    if not half:
        extent_y, extent_x = extent_y.clamp(min=1.0), extent_x.clamp(min=1.0)
    y = _bin_positions(top, extent_y, height, samples)  # [regions, height · samples]
    z = _bin_positions(left, extent_x, width, samples)  # [regions, width · samples]
    maps = x[batch_indices]  # [regions, channels, H, W]
    outside = ((y < -1) | (y > x.shape[2]))[:, None, :, None] | ((z < -1) | (z > x.shape[3]))[
        :, None, None, :
    ]
    low_y, y_part = _corner(y, x.shape[2])
    low_x, x_part = _corner(z, x.shape[3])
    rows = torch.arange(rois.shape[0])[:, None, None]

    def tap(row: Tensor, column: Tensor) -> Tensor:
        index_y = row.clamp(0, x.shape[2] - 1)[:, :, None]
        index_x = column.clamp(0, x.shape[3] - 1)[:, None, :]
        return maps[rows, :, index_y, index_x].permute(0, 3, 1, 2)

    wy, wx = y_part[:, None, :, None], x_part[:, None, None, :]
    taps = [
        (1 - wy) * (1 - wx) * tap(low_y, low_x),
        (1 - wy) * wx * tap(low_y, low_x + 1),
        wy * (1 - wx) * tap(low_y + 1, low_x),
        wy * wx * tap(low_y + 1, low_x + 1),
    ]
    shape = (rois.shape[0], x.shape[1], height, samples, width, samples)
    masked = [torch.where(outside, torch.zeros_like(t), t).reshape(shape) for t in taps]
    if call.attribute("mode", "avg") == "avg":
        return (masked[0] + masked[1] + masked[2] + masked[3]).mean(dim=(3, 5))
    # ONNX takes the maximum over the weighted corners, not over their sum.
    return torch.stack(masked).amax(dim=(0, 4, 6))


def _bin_positions(start: Tensor, extent: Tensor, bins: int, samples: int) -> Tensor:
    steps = (torch.arange(bins * samples, dtype=start.dtype) + 0.5) / (bins * samples)
    return start[:, None] + extent[:, None] * steps


def _corner(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The lower neighbour of a position, and the weight of the upper one."""
    inside = position.clamp(min=0.0)
    low = inside.floor().to(torch.int64).clamp(max=size - 1)
    part = torch.where(low >= size - 1, torch.zeros_like(inside), inside - low)
    return low, part
