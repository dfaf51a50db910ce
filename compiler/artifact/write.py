"""Write an artifact: whole or not at all, one tensor in memory at a time, equal inputs giving equal bytes.

The manifest stands before the sections but names their hashes, so room is reserved for the largest it could
become, the sections are streamed after it, and it is filled in last. The file appears under its name by a rename.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from svdqc.compiler.artifact.errors import ArtifactContentError, ArtifactWriteError, DiskFullError
from svdqc.compiler.artifact.format import (
    CONTAINER_MAJOR,
    CONTAINER_MINOR,
    HEADER,
    MAGIC,
    MAX_MANIFEST_BYTES,
    MAX_NAME_BYTES,
    QUANTIZATION_VERSION,
    ROW_MAJOR,
    SECTION_ALIGNMENT,
    TENSOR_ALIGNMENT,
    Variant,
    align_up,
    canonical_json,
    check_json,
    trust_digest,
)
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.plan.encode import encode_plan, plan_version
from svdqc.compiler.plan.records import TensorPort
from svdqc.compiler.plan.verify import ITEM_BYTES, verify_plan

Data = bytes | bytearray | memoryview | np.ndarray
_LARGEST = 10**16  # longer than any offset or size, when room for the manifest is reserved


@dataclass(frozen=True)
class ArtifactTensor:
    """A tensor to store. The order of tensors is the order in which the model uses them.

    dtype      of DTYPES, or another name ("i4", …) with a layout of its own
    layout     "row_major", or the id of a kernel's packing
    num_bytes  what `load` gives
    segment    consecutive tensors with the same segment share a section, the unit of streaming
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    num_bytes: int
    load: Callable[[], Data]
    segment: str = ""


@dataclass(frozen=True)
class WrittenArtifact:
    """trust_digests  one per variant; `svdqc.runtime.trust.register` them for code compiled here"""

    path: Path
    num_bytes: int
    trust_digests: tuple[str, ...]


@dataclass
class _Section:
    kind: str
    offset: int
    segment: str = ""
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def entry(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "offset": self.offset,
            "segment": self.segment,
            "sha256": self.digest.hexdigest(),
            "size": self.size,
        }


class ArtifactWriter:
    """Streams sections to a temporary file beside `path`; `close` fills in the manifest and renames."""

    def __init__(
        self, path: str | os.PathLike[str], manifest_room: int, expected_bytes: int
    ) -> None:
        self.path = Path(path)
        self.expected_bytes = expected_bytes
        self.manifest_room = manifest_room
        self.sections: list[_Section] = []
        self.position = HEADER.size + manifest_room
        self._stored: dict[tuple[bytes, int], tuple[int, int]] = {}
        self._partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.partial")
        self._fd = -1
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            self._fd = os.open(self._partial, flags, 0o666)
            os.lseek(self._fd, self.position, os.SEEK_SET)
        except OSError as error:
            self.abandon()
            raise self._mistake(error) from error

    def __enter__(self) -> ArtifactWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()  # does nothing after `close`

    def abandon(self) -> None:
        """Remove what was written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._partial.unlink(missing_ok=True)

    def begin_section(self, kind: str, segment: str = "") -> int:
        """Start a section; returns its index."""
        self._zeros(align_up(self.position, SECTION_ALIGNMENT) - self.position)
        self.sections.append(_Section(kind, self.position, segment))
        return len(self.sections) - 1

    def append(self, data: Data) -> int:
        """Add bytes to the current section; returns where in the section they start."""
        section = self.sections[-1]
        start = section.size
        view = _view(data)
        section.digest.update(view)
        section.size += len(view)
        self._write(view)
        return start

    def add_section(self, kind: str, data: bytes) -> int:
        index = self.begin_section(kind)
        self.append(data)
        return index

    def add_tensor(self, tensor: ArtifactTensor) -> dict[str, object]:
        """Store a tensor, unless its bytes are stored already; returns its manifest entry."""
        view = _view(tensor.load())
        if len(view) != tensor.num_bytes:
            raise ArtifactContentError(
                tensor.name, f"{len(view)} bytes, announced were {tensor.num_bytes}", "report this"
            )
        key = hashlib.sha256(view).digest(), len(view)
        if key not in self._stored:
            last = self.sections[-1] if self.sections else None
            if last is None or last.kind != "weights" or last.segment != tensor.segment:
                self.begin_section("weights", tensor.segment)
                last = self.sections[-1]
            self.append(bytes(align_up(last.size, TENSOR_ALIGNMENT) - last.size))
            start = self.append(view)
            if not view:  # a section is never empty
                self.append(bytes(TENSOR_ALIGNMENT))
            self._stored[key] = len(self.sections) - 1, start
        section, offset = self._stored[key]
        return _tensor_entry(tensor, section, offset)

    def close(self, manifest: bytes) -> int:
        """Write header and manifest, make everything durable, rename. Returns the file's size."""
        assert len(manifest) <= self.manifest_room, "the manifest outgrew the room reserved for it"
        header = HEADER.pack(
            MAGIC,
            CONTAINER_MAJOR,
            CONTAINER_MINOR,
            HEADER.size,
            self.position,
            len(manifest),
            hashlib.sha256(manifest).digest(),
        )
        try:
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._write(memoryview(header + manifest), count=False)
            os.fsync(self._fd)
            os.replace(self._partial, self.path)
            fd, self._fd = self._fd, -1
            os.close(fd)
            _sync_folder(self.path.parent)
        except OSError as error:
            raise self._mistake(error) from error
        return self.position

    def _zeros(self, count: int) -> None:
        self._write(memoryview(bytes(count)))

    def _write(self, view: memoryview, count: bool = True) -> None:
        self.position += len(view) if count else 0
        while view:
            try:
                view = view[os.write(self._fd, view[: 1 << 26]) :]
            except OSError as error:
                raise self._mistake(error) from error

    def _mistake(self, error: OSError) -> Exception:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(self.path.parent).free
            written = max(0, self.position - HEADER.size)
            return DiskFullError(str(self.path), max(self.expected_bytes, written), free)
        return ArtifactWriteError(str(self.path), error.strerror or str(error))


def write_artifact(
    path: str | os.PathLike[str],
    *,
    name: str,
    producer: str,
    tensors: Sequence[ArtifactTensor],
    variants: Sequence[Variant],
    graph: bytes,
    quantization: dict[str, Any],
    source_digest: str,
    meta: dict[str, Any],
    required_features: Sequence[str] = (),
    quantization_version: int = 1,
) -> WrittenArtifact:
    """Write `path` atomically. Plans are proved first; nothing partial is left behind, whatever happens.

    graph  JSON of the quantized graph, for `svdqc.reference`; b"" for none
    quantization_version  the lowest that can say what codes and scales mean
    """
    assert quantization_version <= QUANTIZATION_VERSION, quantization_version
    _check_contents(tensors, variants)
    plan = variants[0].plan
    manifest: dict[str, Any] = {
        "dims": [
            {"hi": d.hi, "lo": d.lo, "multiple": d.multiple, "name": d.name} for d in plan.dims
        ],
        "inputs": [_port_entry(p) for p in plan.inputs],
        "meta": meta,
        "name": name,
        "outputs": [_port_entry(p) for p in plan.outputs],
        "producer": producer,
        "quantization": quantization,
        "required_features": sorted(required_features),
        "source_digest": source_digest,
        "versions": {
            "plan": max(plan_version(variant.plan) for variant in variants),
            "quantization": quantization_version,
        },
    }
    plans = [encode_plan(variant.plan) for variant in variants]
    room = _manifest_room(manifest, tensors, variants)
    expected = HEADER.size + room + sum(align_up(t.num_bytes, TENSOR_ALIGNMENT) for t in tensors)
    expected += sum(len(v.code) + len(p) for v, p in zip(variants, plans, strict=True)) + len(graph)
    with ArtifactWriter(path, room, expected) as writer:
        manifest["tensors"] = [writer.add_tensor(tensor) for tensor in tensors]
        manifest["variants"] = [
            _variant_entry(
                variant, writer.add_section("code", variant.code), writer.add_section("plan", data)
            )
            for variant, data in zip(variants, plans, strict=True)
        ]
        if graph:
            writer.add_section("graph", graph)
        manifest["sections"] = [section.entry() for section in writer.sections]
        hashes = [section.digest.hexdigest() for section in writer.sections]
        num_bytes = writer.close(canonical_json(manifest))
    return WrittenArtifact(
        Path(path),
        num_bytes,
        tuple(trust_digest(hashes[v["code"]], hashes[v["plan"]]) for v in manifest["variants"]),
    )


def _check_contents(tensors: Sequence[ArtifactTensor], variants: Sequence[Variant]) -> None:
    if not variants:
        raise ArtifactContentError("variants", "none", "compile for at least one target")
    names: set[str] = set()
    for tensor in tensors:
        if not tensor.name or len(tensor.name.encode()) > MAX_NAME_BYTES or "\0" in tensor.name:
            raise ArtifactContentError(tensor.name, "not a name", "use 1 to 4096 bytes of text")
        if tensor.name in names:
            raise ArtifactContentError(
                tensor.name, "the tensor is given twice", "give each name once"
            )
        names.add(tensor.name)
        dense = prod(tensor.shape) * ITEM_BYTES.get(tensor.dtype, 0)
        if tensor.layout == ROW_MAJOR and tensor.num_bytes != dense:
            raise ArtifactContentError(
                tensor.name,
                f"{tensor.num_bytes} bytes for {tensor.dtype}{list(tensor.shape)}",
                f"a row-major tensor has {dense}; name another layout",
            )
    first = variants[0].plan
    for variant in variants:
        plan = variant.plan
        if (plan.dims, plan.inputs, plan.outputs) != (first.dims, first.inputs, first.outputs):
            raise ArtifactContentError(
                variant.target,
                "its inputs, outputs or dims differ from the first variant's",
                "report this",
            )
        if not variant.code:
            raise ArtifactContentError(variant.target, "no code", "report this")
        verify_plan(plan, [tensor.num_bytes for tensor in tensors])


def _manifest_room(
    manifest: dict[str, Any], tensors: Sequence[ArtifactTensor], variants: Sequence[Variant]
) -> int:
    """An upper bound of the manifest's size, filling the space up to a section boundary."""
    largest = _Section("weights", _LARGEST, size=_LARGEST)
    labels = {tensor.segment for tensor in tensors}
    switches = sum(a.segment != b.segment for a, b in itertools.pairwise(tensors)) + 1
    longest = max(labels, key=lambda s: len(canonical_json(s)), default="")
    largest.segment = longest
    sections = [largest.entry()] * (switches + 2 * len(variants) + 1)
    try:
        complete = {
            **manifest,
            "tensors": [_tensor_entry(tensor, _LARGEST, _LARGEST) for tensor in tensors],
            "variants": [_variant_entry(variant, _LARGEST, _LARGEST) for variant in variants],
            "sections": sections,
        }
        check_json(complete)
        size = len(canonical_json(complete))
    except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
        raise ArtifactContentError(
            "manifest", f"not JSON: {error}", "use finite numbers and text"
        ) from error
    room = align_up(HEADER.size + size, SECTION_ALIGNMENT) - HEADER.size
    if room > MAX_MANIFEST_BYTES:
        raise ArtifactContentError(
            "manifest",
            f"{room} bytes",
            f"at most {MAX_MANIFEST_BYTES}; store less in `meta` or `quantization`",
        )
    return room


def _port_entry(port: TensorPort) -> dict[str, object]:
    sizes = [IntExpr.of(size) for size in port.shape]
    shape = [str(size) if size.as_int() is None else size.const for size in sizes]
    return {"dtype": port.dtype, "name": port.name, "shape": shape}


def _tensor_entry(tensor: ArtifactTensor, section: int, offset: int) -> dict[str, object]:
    return {
        "dtype": tensor.dtype,
        "layout": tensor.layout,
        "name": tensor.name,
        "offset": offset,
        "section": section,
        "shape": [int(size) for size in tensor.shape],
        "size": tensor.num_bytes,
    }


def _variant_entry(variant: Variant, code: int, plan: int) -> dict[str, object]:
    return {
        "code": code,
        "isa_features": list(variant.isa_features),
        "plan": plan,
        "provenance": variant.provenance,
        "target": variant.target,
    }


def _view(data: Data) -> memoryview:
    if isinstance(data, np.ndarray):
        flat = np.ascontiguousarray(data).reshape(-1)
        data = flat.view(np.uint8).data if flat.size else b""
    view = memoryview(data)
    return view.cast("B") if view.format != "B" or view.ndim != 1 else view


def _sync_folder(folder: Path) -> None:
    """Make the rename durable, where the system can."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)
