"""Calibration samples on disk: a .npz or .safetensors file, or a folder of them, each one call's inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdqc.compiler.driver.tensor_files import SUFFIXES, Array, nest, read_tensors
from svdqc.errors import SvdqcError

if TYPE_CHECKING:
    import torch


class NoCalibrationSamples(SvdqcError):
    """The folder holds no sample, or a file holds no tensor."""


def calibration_paths(path: str | os.PathLike[str]) -> list[Path]:
    """The files of a calibration source, in the order of their names (so that builds reproduce)."""
    source = Path(path)
    if not source.is_dir():
        return [source]
    files = sorted(file for file in source.iterdir() if file.suffix in SUFFIXES)
    if not files:
        found = "the folder holds no .npz and no .safetensors file"
        remedy = "save each sample's inputs as one such file, or use --calibration none"
        raise NoCalibrationSamples("calibration", str(path), found, remedy)
    return files


class CalibrationFiles:
    """An iterable of keyword arguments of the model's forward, one dict a file, read when it is reached.

    Iterating twice gives the same samples in the same order. `nested` turns keyword paths such as `cond.0.mask`
    back into dicts and lists; ONNX inputs are flat and keep their dots.
    """

    def __init__(self, path: str | os.PathLike[str], nested: bool = True) -> None:
        self.paths = calibration_paths(path)
        self._nested = nested
        _read_sample(self.paths[0])  # a missing or damaged file is an error now, not after minutes

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path in self.paths:
            sample = {name: to_torch(value) for name, value in _read_sample(path).items()}
            yield nest(sample) if self._nested else sample


def load_calibration(path: str | os.PathLike[str], nested: bool = True) -> CalibrationFiles:
    return CalibrationFiles(path, nested)


def _read_sample(path: Path) -> dict[str, Array]:
    sample = read_tensors(path, "calibration")
    if not sample:
        remedy = "each file holds one dict of the model's inputs by name"
        raise NoCalibrationSamples("calibration", str(path), "the file holds no tensor", remedy)
    return sample


def to_torch(array: Array) -> torch.Tensor:
    """A copy of `array` as a torch tensor of the same dtype, bfloat16 included."""
    import numpy as np
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))
