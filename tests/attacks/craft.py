"""Take a good artifact apart and put it together again with anything wrong, checksums included."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<8sHHIQQ32s")
PLAN_HEADER = struct.Struct("<8sIIQQ12I")
PLAN_TABLES = {  # name -> record size
    "dims": 32,
    "instructions": 16,
    "exprs": 8,
    "shapes": 4,
    "inputs": 24,
    "outputs": 24,
    "buffers": 24,
    "kernels": 8,
    "args": 16,
    "scalars": 4,
    "launches": 40,
    "strings": 1,
}


STATUS = [
    "OK",
    "NOT_FOUND",
    "NOT_AN_ARTIFACT",
    "TRUNCATED",
    "ALTERED",
    "MALFORMED",
    "NEWER_VERSION",
    "UNKNOWN_FEATURE",
    "WRONG_MACHINE",
    "NO_MEMORY",
    "UNTRUSTED",
    "BAD_PLAN",
    "BAD_CODE",
    "BAD_ARGUMENT",
    "BAD_INPUT",
    "BAD_DIM",
    "INTERNAL",
    "NO_DEVICE",
    "DEVICE_FAILED",
]


@dataclass
class Craft:
    """The parts of an artifact. `sections` holds their bytes, in the order of manifest["sections"]."""

    manifest: dict[str, Any]
    sections: list[bytes]
    raw_manifest: bytes | None = None  # instead of `manifest`
    header: dict[str, Any] = field(default_factory=dict)  # fields to override
    tail: bytes = b""
    entries: Callable[[list[dict[str, Any]]], None] | None = None  # changes the section table, last

    @staticmethod
    def of(path: Path) -> Craft:
        data = path.read_bytes()
        manifest_size = HEADER.unpack_from(data)[5]
        manifest = json.loads(data[64 : 64 + manifest_size])
        sections = [data[s["offset"] : s["offset"] + s["size"]] for s in manifest["sections"]]
        return Craft(manifest, sections)

    def index(self, kind: str) -> int:
        return next(i for i, s in enumerate(self.manifest["sections"]) if s["kind"] == kind)

    def set_plan(self, plan: bytes) -> None:
        self.sections[self.index("plan")] = plan

    def build(self) -> bytes:
        """A file in which only what was asked for is wrong."""
        room = 1 << 14
        while True:
            offsets, end = [], 64 + room
            for data in self.sections:
                offsets.append(-(-end // 4096) * 4096)
                end = offsets[-1] + len(data)
            text = self.raw_manifest
            if text is None:
                text = canonical({**self.manifest, "sections": self.table(offsets)})
            if len(text) <= room:
                break
            room = len(text)
        body = bytearray(end)
        body[64 : 64 + len(text)] = text
        for offset, data in zip(offsets, self.sections, strict=True):
            body[offset : offset + len(data)] = data
        fields = {
            "magic": b"\x89SVDQ\r\n\x1a",
            "major": 1,
            "minor": 0,
            "header_size": 64,
            "file_size": len(body),
            "manifest_size": len(text),
            "sha256": hashlib.sha256(text).digest(),
            **self.header,
        }
        body[:64] = HEADER.pack(*fields.values())
        return bytes(body) + self.tail

    def table(self, offsets: list[int]) -> list[dict[str, Any]]:
        old = self.manifest["sections"]
        entries = [
            {**e, "offset": o, "size": len(d), "sha256": hashlib.sha256(d).hexdigest()}
            for e, o, d in zip(old, offsets, self.sections, strict=True)
        ]
        if self.entries is not None:
            self.entries(entries)
        return entries


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        errors="surrogatepass"
    )


def plan_table(plan: bytes, table: str) -> tuple[int, int]:
    """(offset, count) of a table."""
    counts = PLAN_HEADER.unpack_from(plan)[5:]
    at = PLAN_HEADER.size
    for name, count in zip(PLAN_TABLES, counts, strict=True):
        if name == table:
            return at, count
        at += -(-count * record_bytes(plan, name) // 8) * 8
    raise KeyError(table)


def record_bytes(plan: bytes, table: str) -> int:
    """Kernels have the shape of a block from version 2 on."""
    version = PLAN_HEADER.unpack_from(plan)[1]
    return 16 if table == "kernels" and version > 1 else PLAN_TABLES[table]


def poke(plan: bytes, table: str, row: int, at: int, value: int, form: str = "<I") -> bytes:
    """The plan with one field of one record changed."""
    changed = bytearray(plan)
    offset, count = plan_table(plan, table)
    assert row < count
    struct.pack_into(form, changed, offset + row * record_bytes(plan, table) + at, value)
    return bytes(changed)


def poke_header(plan: bytes, at: int, value: int, form: str = "<I") -> bytes:
    changed = bytearray(plan)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)
