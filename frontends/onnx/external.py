"""Tensors of a model file: read where they lie, without a copy, and never outside of the model's folder."""

from __future__ import annotations

import mmap
import os
import stat
import warnings
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from svdqc.frontends.onnx.dtypes import NARROW_FLOATS, NARROW_INTS, is_narrow, torch_dtype
from svdqc.frontends.onnx.errors import (
    ExternalDataMissingError,
    ExternalDataPathError,
    ExternalDataRangeError,
    MalformedOnnxError,
)


class TensorReader:
    """Turns TensorProtos into torch tensors; external files are memory-mapped once each."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._maps: dict[str, tuple[mmap.mmap | bytes, int]] = {}

    def read(self, proto: TensorProto) -> Tensor:
        """The tensor of `proto`, CPU, in its carrier dtype. It shares the file's pages: never write to it."""
        subject = proto.name or "constant"
        shape = tuple(proto.dims)
        if any(size < 0 for size in shape):
            raise MalformedOnnxError(subject, f"shape {shape}", "export the model again")
        dtype = torch_dtype(proto.data_type, subject)
        if proto.data_location == TensorProto.EXTERNAL:
            num_bytes = _num_bytes(proto.data_type, prod(shape), dtype)
            buffer, offset = self._external(proto, subject, num_bytes)
        elif proto.HasField("raw_data"):
            buffer, offset = proto.raw_data, 0
            num_bytes = _num_bytes(proto.data_type, prod(shape), dtype)
            if len(buffer) != num_bytes:
                raise MalformedOnnxError(
                    subject,
                    f"{len(buffer)} bytes of data for {num_bytes} bytes of shape {shape}",
                    "the file is damaged: download or export it again",
                )
        else:
            return _from_fields(proto, subject, shape)
        if is_narrow(proto.data_type):
            return _unpack(proto, bytes(memoryview(buffer)[offset : offset + num_bytes]))
        return _from_buffer(buffer, offset, shape, dtype)

    def _external(
        self, proto: TensorProto, subject: str, num_bytes: int
    ) -> tuple[mmap.mmap | bytes, int]:
        entries = {entry.key: entry.value for entry in proto.external_data}
        buffer, file_bytes = self._map(entries.get("location", ""), subject)
        offset = _whole(entries.get("offset", "0"), "offset", subject)
        length = _whole(entries.get("length", str(num_bytes)), "length", subject)
        if length != num_bytes:
            raise ExternalDataRangeError(
                subject,
                f"length {length} for {num_bytes} bytes of shape {tuple(proto.dims)}",
                "the model and its data file do not belong together: export again",
            )
        if offset + length > file_bytes:
            raise ExternalDataRangeError(
                subject,
                f"bytes {offset} to {offset + length} of a file of {file_bytes} bytes",
                "the data file is truncated: download or export it again",
            )
        return buffer, offset

    def _map(self, location: str, subject: str) -> tuple[mmap.mmap | bytes, int]:
        if location in self._maps:
            return self._maps[location]
        path = _inside(self._folder, location, subject)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self._maps[location] = (buffer, size)
        return buffer, size


def _inside(folder: Path | None, location: str, subject: str) -> Path:
    """The regular file `location` names, which must lie in `folder` after every link is followed."""
    keep_inside = "external data must be a file next to the model, or in a folder beside it"
    if folder is None:
        raise ExternalDataPathError(subject, "external data without a folder", keep_inside)
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if not location or "\0" in location:
        raise ExternalDataPathError(subject, f"location {location!r}", keep_inside)
    if posix.is_absolute() or windows.is_absolute() or windows.drive or windows.root:
        raise ExternalDataPathError(subject, f"absolute location {location!r}", keep_inside)
    if ".." in posix.parts or ".." in windows.parts:
        raise ExternalDataPathError(subject, f"location {location!r} climbs out", keep_inside)
    root = folder.resolve()
    try:
        resolved = (root / location).resolve(strict=True)
        mode = resolved.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise ExternalDataMissingError(
            subject, f"no file {location!r} beside the model", "put the data file next to the model"
        ) from error
    if not resolved.is_relative_to(root):
        raise ExternalDataPathError(
            subject, f"location {location!r} is a link out of the folder", keep_inside
        )
    if not stat.S_ISREG(mode):
        raise ExternalDataPathError(subject, f"location {location!r} is no file", keep_inside)
    return resolved


def _whole(text: str, key: str, subject: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ExternalDataRangeError(
            subject, f"{key} {text!r}", f"{key} must be a number of bytes: export the model again"
        )
    return int(text)


def _num_bytes(code: int, num_elements: int, dtype: torch.dtype) -> int:
    if code in NARROW_INTS:
        return (num_elements * NARROW_INTS[code].bits + 7) // 8
    if code in NARROW_FLOATS:
        return (num_elements * NARROW_FLOATS[code].bits + 7) // 8
    return num_elements * dtype.itemsize


def _from_buffer(
    buffer: mmap.mmap | bytes, offset: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    num_elements = prod(shape)
    if num_elements == 0:
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():
        # The buffer is read-only, and stays so: nobody writes to a model's weights.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        if offset % dtype.itemsize:
            num_bytes = num_elements * dtype.itemsize
            buffer, offset = bytes(memoryview(buffer)[offset : offset + num_bytes]), 0
        flat = torch.frombuffer(buffer, dtype=dtype, count=num_elements, offset=offset)
    return flat.reshape(shape)


def _unpack(proto: TensorProto, data: bytes) -> Tensor:
    inline = TensorProto(name=proto.name, dims=proto.dims, data_type=proto.data_type, raw_data=data)
    return torch_of_numpy(numpy_helper.to_array(inline))


def _from_fields(proto: TensorProto, subject: str, shape: tuple[int, ...]) -> Tensor:
    try:
        return torch_of_numpy(numpy_helper.to_array(proto))
    except (ValueError, TypeError) as error:
        raise MalformedOnnxError(
            subject,
            f"data that does not fill shape {shape} ({error})",
            "the file is damaged: download or export it again",
        ) from error


def torch_of_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """A torch tensor in the carrier dtype, of an array that may have an ml_dtypes type."""
    name = array.dtype.name
    if name in ("int4", "int2"):
        return torch.from_numpy(array.astype(np.int8))
    if name in ("uint4", "uint2"):
        return torch.from_numpy(array.astype(np.uint8))
    if name.startswith(("float4_", "float6_")):
        return torch.from_numpy(array.astype(np.float32))
    array = np.array(array, order="C", copy=True)
    if name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if name.startswith("float8_"):
        return torch.from_numpy(array.view(np.uint8)).view(getattr(torch, name))
    return torch.from_numpy(array)
