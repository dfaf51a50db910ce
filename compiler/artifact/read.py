"""Read an artifact with every rule checked, for inspection, the reference and tests. The runtime has its own reader."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from svdqc.compiler.artifact.errors import (
    AlteredArtifactError,
    ArtifactContentError,
    ArtifactNotFoundError,
    MalformedArtifactError,
    NewerArtifactError,
    NotAnArtifactError,
    TruncatedArtifactError,
    UnknownFeatureError,
)
from svdqc.compiler.artifact.format import (
    CONTAINER_MAJOR,
    HEADER,
    MAGIC,
    MAX_DIMS,
    MAX_MANIFEST_BYTES,
    MAX_NAME_BYTES,
    MAX_PORTS,
    MAX_SECTIONS,
    MAX_TENSORS,
    MAX_VARIANTS,
    QUANTIZATION_VERSION,
    ROW_MAJOR,
    SECTION_ALIGNMENT,
    SECTION_KINDS,
    TENSOR_ALIGNMENT,
    Variant,
    align_up,
    canonical_json,
    check_json,
    trust_digest,
)
from svdqc.compiler.plan.encode import PLAN_ABI, decode_plan
from svdqc.compiler.plan.records import Plan
from svdqc.compiler.plan.verify import verify_plan

NUMPY_DTYPES = {
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.float16,
    "bf16": np.uint16,  # the bits
    "i8": np.int8,
    "u8": np.uint8,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
    "bool": np.bool_,
}


@dataclass(frozen=True)
class SectionEntry:
    kind: str
    offset: int
    size: int
    sha256: str
    segment: str


@dataclass(frozen=True)
class TensorEntry:
    """offset is in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    offset: int
    size: int


@dataclass(frozen=True)
class VariantEntry:
    target: str
    isa_features: tuple[str, ...]
    code: SectionEntry
    plan: SectionEntry
    provenance: dict[str, Any]

    @property
    def trust_digest(self) -> str:
        return trust_digest(self.code.sha256, self.plan.sha256)


class Artifact:
    """A checked artifact. Tensors are slices of the mapped file, read when touched."""

    def __init__(
        self, path: Path, data: np.ndarray, manifest: dict[str, Any], reader: _Reader
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.name: str = manifest["name"]
        self.producer: str = manifest["producer"]
        self.source_digest: str = manifest["source_digest"]
        self.quantization: dict[str, Any] = manifest["quantization"]
        self.meta: dict[str, Any] = manifest["meta"]
        self.dims: list[dict[str, Any]] = manifest["dims"]
        self.inputs: list[dict[str, Any]] = manifest["inputs"]
        self.outputs: list[dict[str, Any]] = manifest["outputs"]
        self.sections = reader.sections
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.variants = reader.variants
        self._data = data

    @property
    def num_bytes(self) -> int:
        return len(self._data)

    def tensor_bytes(self, name: str) -> np.ndarray:
        """[num_bytes] u8, as stored."""
        if name not in self.tensors:
            raise ArtifactContentError(
                name, f"no such tensor in {self.path}", "see `Artifact.tensors`"
            )
        entry = self.tensors[name]
        return self._data[entry.offset : entry.offset + entry.size]

    def tensor(self, name: str) -> np.ndarray:
        """A row-major tensor in its shape (bf16 as its bits, u16); any other layout as `tensor_bytes`."""
        raw = self.tensor_bytes(name)
        entry = self.tensors[name]
        if entry.layout != ROW_MAJOR:
            return raw
        return raw.view(NUMPY_DTYPES[entry.dtype]).reshape(entry.shape)

    def section_bytes(self, section: SectionEntry) -> bytes:
        return self._data[section.offset : section.offset + section.size].tobytes()

    def graph(self) -> bytes:
        """The quantized graph's JSON; b"" if the artifact has none."""
        return b"".join(self.section_bytes(s) for s in self.sections if s.kind == "graph")

    def code(self, variant: VariantEntry) -> bytes:
        return self.section_bytes(variant.code)

    def plan(self, variant: VariantEntry) -> Plan:
        """The decoded, proved plan."""
        plan = decode_plan(self.section_bytes(variant.plan))
        verify_plan(plan, [t.size for t in self.tensors.values()])
        return plan

    def to_variant(self, variant: VariantEntry) -> Variant:
        """What `write_artifact` takes."""
        return Variant(
            variant.target,
            variant.isa_features,
            self.code(variant),
            self.plan(variant),
            variant.provenance,
        )


def read_artifact(path: str | os.PathLike[str], *, check_weights: bool = True) -> Artifact:
    """Open and check. check_weights=False leaves the hashes of weights alone (they are the bulk of the file)."""
    return _Reader(Path(path)).read(check_weights)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.sections: list[SectionEntry] = []
        self.tensors: list[TensorEntry] = []
        self.variants: list[VariantEntry] = []

    def bad(self, what: str) -> MalformedArtifactError:
        return MalformedArtifactError(str(self.path), what)

    def read(self, check_weights: bool) -> Artifact:
        try:
            size = self.path.stat().st_size
            empty = np.zeros(0, np.uint8)
            data = np.memmap(self.path, np.uint8, mode="r") if size else empty
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ArtifactNotFoundError(str(self.path), reason) from error
        manifest_size = self.check_header(data)
        text = data[HEADER.size : HEADER.size + manifest_size].tobytes()
        if hashlib.sha256(text).digest() != data[0x20:0x40].tobytes():
            raise AlteredArtifactError(str(self.path), "the manifest does not match its checksum")
        try:
            manifest = json.loads(text)
            check_json(manifest)
            canonical = canonical_json(manifest) == text
        except (ValueError, RecursionError) as error:
            raise self.bad(f"the manifest is not JSON: {error}") from error
        if not canonical or not isinstance(manifest, dict):
            raise self.bad("the manifest is not canonical JSON")
        try:
            self.check_manifest(manifest, HEADER.size + manifest_size, len(data))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise self.bad(f"manifest: {type(error).__name__}: {error}") from error
        self.check_bytes(data, HEADER.size + manifest_size, check_weights)
        return Artifact(self.path, data, manifest, self)

    def check_header(self, data: np.ndarray) -> int:
        path = str(self.path)
        if len(data) == 0 or not MAGIC.startswith(data[:8].tobytes()):
            raise NotAnArtifactError(path)
        if len(data) < HEADER.size:
            raise TruncatedArtifactError(path, f"only {len(data)} bytes of a 64-byte header")
        _, major, minor, header, file_size, manifest_size, _ = HEADER.unpack(data[:64].tobytes())
        if major > CONTAINER_MAJOR:
            raise NewerArtifactError(
                path, f"container version {major}.{minor}, this svdqc reads {CONTAINER_MAJOR}.x"
            )
        if major == 0 or header != HEADER.size:
            raise self.bad("a damaged header")
        if len(data) < file_size:
            raise TruncatedArtifactError(path, f"has {len(data)} of {file_size} bytes")
        if len(data) > file_size:
            raise AlteredArtifactError(
                path, f"{len(data) - file_size} bytes follow the end of the artifact"
            )
        if not 2 <= manifest_size <= min(MAX_MANIFEST_BYTES, file_size - HEADER.size):
            raise self.bad(f"a manifest of {manifest_size} bytes")
        return int(manifest_size)

    def check_manifest(self, manifest: dict[str, Any], end: int, file_size: int) -> None:
        for feature in manifest["required_features"]:
            raise UnknownFeatureError(str(self.path), str(feature))
        for key, ours in (("plan", PLAN_ABI), ("quantization", QUANTIZATION_VERSION)):
            if self.integer(manifest["versions"][key], 1, 2**31 - 1) > ours:
                raise NewerArtifactError(
                    str(self.path),
                    f"has {key} version {manifest['versions'][key]}, this svdqc reads up to {ours}",
                )
        for key in ("name", "producer", "source_digest"):
            self.text(manifest[key])
        for key in ("quantization", "meta"):
            if not isinstance(manifest[key], dict):
                raise self.bad(f"manifest {key} is not an object")
        for entry in self.entries(manifest, "sections", MAX_SECTIONS):
            end = self.add_section(entry, end, file_size)
        if end != file_size:
            raise self.bad("sections end before the end of the file")
        for entry in self.entries(manifest, "tensors", MAX_TENSORS):
            self.add_tensor(entry)
        for entry in self.entries(manifest, "variants", MAX_VARIANTS):
            self.add_variant(entry)
        if not self.variants:
            raise self.bad("no variants")
        self.unique("tensors", [t.name for t in self.tensors])
        for key, cap in (("dims", MAX_DIMS), ("inputs", MAX_PORTS), ("outputs", MAX_PORTS)):
            self.unique(key, [self.text(e["name"]) for e in self.entries(manifest, key, cap)])

    def add_section(self, entry: dict[str, Any], end: int, file_size: int) -> int:
        section = SectionEntry(
            kind=entry["kind"],
            offset=self.integer(entry["offset"], 0),
            size=self.integer(entry["size"], 1),
            sha256=self.text(entry["sha256"]),
            segment=self.text(entry.get("segment", "")),
        )
        if section.kind not in SECTION_KINDS:
            raise self.bad(f"unknown kind of section {section.kind!r}")
        if len(bytes.fromhex(section.sha256)) != 32 or section.sha256 != section.sha256.lower():
            raise self.bad("a sha256 that is not 64 hexadecimal digits")
        aligned = align_up(end, SECTION_ALIGNMENT)
        if section.offset % SECTION_ALIGNMENT or section.offset < end:
            raise self.bad(
                f"a section at {section.offset} overlaps what comes before or is not aligned"
            )
        if self.sections and section.offset != aligned:
            raise self.bad(f"a gap before the section at {section.offset}")
        if section.offset + section.size > file_size:
            raise self.bad(f"the section at {section.offset} goes beyond the end of the file")
        self.sections.append(section)
        return section.offset + section.size

    def add_tensor(self, entry: dict[str, Any]) -> None:
        section = self.sections[self.integer(entry["section"], 0, len(self.sections) - 1)]
        offset, size = self.integer(entry["offset"], 0), self.integer(entry["size"], 0)
        shape = tuple(self.integer(s, 0) for s in entry["shape"])
        tensor = TensorEntry(
            self.text(entry["name"]),
            self.text(entry["dtype"]),
            shape,
            self.text(entry["layout"]),
            section.offset + offset,
            size,
        )
        if section.kind != "weights" or offset % TENSOR_ALIGNMENT or offset + size > section.size:
            raise self.bad(f"tensor {tensor.name!r} is not inside a weights section")
        if tensor.layout == ROW_MAJOR:
            item = np.dtype(NUMPY_DTYPES[tensor.dtype]).itemsize
            if prod(shape) * item != size:
                raise self.bad(
                    f"tensor {tensor.name!r} has {size} bytes for {tensor.dtype}{list(shape)}"
                )
        self.tensors.append(tensor)

    def add_variant(self, entry: dict[str, Any]) -> None:
        code, plan = (
            self.sections[self.integer(entry[key], 0, len(self.sections) - 1)]
            for key in ("code", "plan")
        )
        if code.kind != "code" or plan.kind != "plan":
            raise self.bad("a variant whose code or plan is another kind of section")
        features = tuple(self.text(f) for f in entry["isa_features"])
        self.variants.append(
            VariantEntry(
                self.text(entry["target"]), features, code, plan, entry.get("provenance", {})
            )
        )

    def check_bytes(self, data: np.ndarray, end: int, check_weights: bool) -> None:
        for section in self.sections:
            if data[end : section.offset].any():
                raise AlteredArtifactError(
                    str(self.path), f"bytes other than zero before {section.offset}"
                )
            end = section.offset + section.size
            if section.kind == "weights" and not check_weights:
                continue
            if hashlib.sha256(data[section.offset : end].data).hexdigest() != section.sha256:
                raise AlteredArtifactError(
                    str(self.path),
                    f"the {section.kind} section at {section.offset} does not match its checksum",
                )

    def entries(self, manifest: dict[str, Any], key: str, cap: int) -> Sequence[dict[str, Any]]:
        entries = manifest[key]
        if not isinstance(entries, list) or len(entries) > cap:
            raise self.bad(f"manifest {key}: not a list of at most {cap}")
        return entries

    def integer(self, value: object, lo: int, hi: int = 2**63 - 1) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not lo <= value <= hi:
            raise self.bad(f"{value!r} is not an integer in [{lo}, {hi}]")
        return value

    def text(self, value: object) -> str:
        if not isinstance(value, str) or len(value.encode()) > MAX_NAME_BYTES or "\0" in value:
            raise self.bad(f"{value!r} is not a text of at most {MAX_NAME_BYTES} bytes")
        return value

    def unique(self, where: str, names: list[str]) -> None:
        if len(set(names)) != len(names) or "" in names:
            raise self.bad(f"{where}: a name that is empty or appears twice")
