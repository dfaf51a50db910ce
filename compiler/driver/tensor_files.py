"""Named tensors in .npz and .safetensors files, read and written with numpy alone.

bfloat16, which numpy lacks, is held as `ml_dtypes.bfloat16` where that package is installed (it comes with onnx), else
widened to float32. Writing is atomic: a file appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from svdqc.errors import SvdqcError

Array = NDArray[Any]

SUFFIXES = (".npz", ".safetensors")
MAX_HEADER_BYTES = 100 << 20

_TO_NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "BF16": "<u2",
}
_DAMAGE = (
    *(ValueError, KeyError, TypeError, AttributeError, OSError, EOFError),
    *(struct.error, zipfile.BadZipFile),
)
_FROM_NUMPY = {np.dtype(text): name for name, text in _TO_NUMPY.items() if name != "BF16"}


class TensorFileMissing(SvdqcError):
    """There is no such file, or its suffix is neither .npz nor .safetensors."""


class TensorFileDamaged(SvdqcError):
    """The file cannot be read as what its suffix says."""


class TensorFileUnwritable(SvdqcError):
    """The file could not be written: no such folder, no permission, no space."""


def read_tensors(path: str | os.PathLike[str], where: str = "inputs") -> dict[str, Array]:
    """Every tensor of a file, by name."""
    file = Path(path)
    if file.suffix not in SUFFIXES:
        remedy = "give a .npz or a .safetensors file"
        raise TensorFileMissing(where, str(path), f"the suffix is {file.suffix!r}", remedy)
    if not file.is_file():
        remedy = "give the path of a .npz or .safetensors file that exists"
        raise TensorFileMissing(where, str(path), "no such file", remedy)
    try:
        return _read_npz(file) if file.suffix == ".npz" else _read_safetensors(file)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        EOFError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        found = f"not a readable {file.suffix} file ({error})"
        raise TensorFileDamaged(where, str(path), found, "write the file again") from error


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], where: str = "outputs"
) -> None:
    """Write arrays (anything numpy can view) to a .npz or .safetensors file, whole or not at all."""
    file = Path(path)
    if file.suffix not in SUFFIXES:
        remedy = "name a .npz or a .safetensors file"
        raise TensorFileUnwritable(where, str(path), f"the suffix is {file.suffix!r}", remedy)
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    with atomic_write(file, where) as stream:
        if file.suffix == ".npz":
            _write_npz(stream, arrays)
        else:
            _write_safetensors(stream, arrays)


@contextmanager
def atomic_write(path: Path, where: str) -> Iterator[IO[bytes]]:
    """A stream whose content appears under `path` when the block ends, and leaves nothing when it fails."""
    unfinished: str | None = None
    if path.exists() and not path.is_file():  # a folder or a device: never replace it
        remedy = "name an ordinary file; nothing was written"
        raise TensorFileUnwritable(where, str(path), "not an ordinary file", remedy)
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
        ) as stream:
            unfinished = stream.name
            yield stream  # type: ignore[misc]
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(unfinished, 0o666 & ~umask)
        os.replace(unfinished, path)
        unfinished = None
    except OSError as error:
        found = f"could not be written ({error.strerror or error})"
        remedy = "name a place with enough space that you may write to; nothing was written"
        raise TensorFileUnwritable(where, str(path), found, remedy) from error
    finally:
        if unfinished is not None:
            Path(unfinished).unlink(missing_ok=True)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword paths to keyword arguments: {"cond.0.mask": x} -> {"cond": [{"mask": x}]}."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        branch = tree
        for part in parents:
            branch = branch.setdefault(part, {})
        branch[leaf] = value
    return {name: _with_lists(value) for name, value in tree.items()}


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    items = {name: _with_lists(item) for name, item in value.items()}
    if set(items) == {str(i) for i in range(len(items))}:
        return [items[str(i)] for i in range(len(items))]
    return items


def _read_npz(file: Path) -> dict[str, Array]:
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(file: Path) -> dict[str, Array]:
    with file.open("rb") as stream:
        (header_bytes,) = struct.unpack("<Q", stream.read(8))
        if header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {header_bytes} bytes")
        header: dict[str, Any] = json.loads(stream.read(header_bytes))
        start = stream.tell()
        tensors: dict[str, Array] = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            dtype = np.dtype(_TO_NUMPY[entry["dtype"]])
            if end - begin != prod(entry["shape"]) * dtype.itemsize:
                raise ValueError(f"{name!r} has {end - begin} bytes for shape {entry['shape']}")
            stream.seek(start + begin)
            values = np.frombuffer(stream.read(end - begin), dtype).reshape(entry["shape"])
            tensors[name] = from_bfloat16_bits(values) if entry["dtype"] == "BF16" else values
    return tensors


def from_bfloat16_bits(bits: Array) -> Array:
    """bits [...] uint16 -> [...] bfloat16 where numpy can have it, else float32 (the same values)."""
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(bfloat16)


def as_port_dtype(array: Array, dtype: str) -> Array:
    """float32 narrowed for a bf16 or f16 input (a .npz file cannot hold bfloat16); all else as it is."""
    if array.dtype != np.float32 or dtype not in ("bf16", "f16"):
        return array
    if dtype == "f16":
        return array.astype(np.float16)
    try:
        from ml_dtypes import bfloat16
    except ImportError as error:
        found = "the model takes bfloat16, which numpy lacks"
        remedy = "install it with: pip install ml_dtypes"
        raise TensorFileDamaged("inputs", dtype, found, remedy) from error
    return array.astype(bfloat16)


def _plain(array: Array) -> Array:
    # A .npz file cannot say bfloat16, float32 holds every value of it.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _write_npz(stream: IO[bytes], arrays: Mapping[str, Array]) -> None:
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            # A fixed date: the same tensors give the same bytes.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _plain(array), allow_pickle=False)


def _write_safetensors(stream: IO[bytes], arrays: Mapping[str, Array]) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name, array in arrays.items():
        dtype = "BF16" if array.dtype.name == "bfloat16" else _FROM_NUMPY.get(array.dtype)
        if dtype is None:
            remedy = "convert it, or write a .npz file"
            raise TensorFileUnwritable("outputs", name, f"dtype {array.dtype}", remedy)
        extent = [offset, offset + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": extent}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for array in arrays.values():
        stream.write(array.tobytes())
