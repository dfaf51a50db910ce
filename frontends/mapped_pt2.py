"""Load a .pt2 file with its weights left where they lie: mapped into memory, read when they are first used.

torch.export.load reads every weight. Its archive is a zip file whose members are stored as they are, so a weight is a
range of the file. The one function of torch that reads them is stood in for during the call; where a version of torch
has no such function, or stores weights otherwise, they are read as ever.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export import pt2_archive as archive

_PATCHING = threading.Lock()


def load_mapped(path: Path) -> ExportedProgram:
    """torch.export.load(path), its weights mapped copy-on-write."""
    with _PATCHING, _mapping(path):
        return torch.export.load(path)


@contextmanager
def _mapping(path: Path) -> Iterator[None]:
    package: Any = getattr(archive, "_package", None)
    read = getattr(package, "_build_file_map", None)
    if read is None:
        yield
        return

    def mapped(archive_reader: Any, config: Any, base_dir: str) -> dict[str, torch.Tensor]:
        try:
            return _mapped(path, archive_reader.archive_file, config, base_dir)
        except (AttributeError, KeyError, TypeError, RuntimeError, _Unmappable):
            found: dict[str, torch.Tensor] = read(archive_reader, config, base_dir)
            return found

    package._build_file_map = mapped
    try:
        yield
    finally:
        package._build_file_map = read


class _Unmappable(Exception):
    """A weight that is not a plain range of the file."""


def _mapped(path: Path, reader: Any, config: Any, base_dir: str) -> dict[str, torch.Tensor]:
    """Name of a member → its values as one flat tensor, as torch's function of this task gives it."""
    from torch._export.serde.serialize import deserialize_device, deserialize_scalar_type

    whole = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    found: dict[str, torch.Tensor] = {}
    for payload in config.config.values():
        if payload.use_pickle or payload.path_name in found:
            continue
        meta = payload.tensor_meta
        dtype = deserialize_scalar_type(meta.dtype)
        record = f"{base_dir}{payload.path_name}"
        offset, num_bytes = reader.get_record_offset(record), reader.get_record_size(record)
        on_cpu = deserialize_device(meta.device) == torch.device("cpu")
        if num_bytes == 0 or num_bytes % dtype.itemsize or offset % dtype.itemsize or not on_cpu:
            raise _Unmappable(payload.path_name)
        numel = num_bytes // dtype.itemsize
        flat = torch.empty(0, dtype=dtype).set_(whole[offset : offset + num_bytes], 0, (numel,))  # type: ignore[call-overload]
        found[payload.path_name] = flat.requires_grad_(meta.requires_grad)
    return found
