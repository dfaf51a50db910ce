"""The artifact's envelope, shared by writer and reader (runtime/FORMAT.md)."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import Any

from svdqc.compiler.plan.records import Plan

MAGIC = b"\x89SVDQ\r\n\x1a"
CONTAINER_MAJOR, CONTAINER_MINOR = 1, 0
QUANTIZATION_VERSION = 2
HEADER = struct.Struct(
    "<8sHHIQQ32s"
)  # magic, major, minor, header size, file size, manifest size, sha256
SECTION_ALIGNMENT, TENSOR_ALIGNMENT = 4096, 256
MAX_MANIFEST_BYTES = 16 << 20
MAX_JSON_DEPTH, MAX_JSON_VALUES = 32, 1_000_000
MAX_NAME_BYTES = 4096
MAX_SECTIONS, MAX_TENSORS, MAX_VARIANTS, MAX_DIMS, MAX_PORTS = 65536, 262144, 256, 64, 4096
SECTION_KINDS = ("weights", "code", "plan", "graph")
ROW_MAJOR = "row_major"

assert HEADER.size == 64


@dataclass(frozen=True)
class Variant:
    """The model for one target. Variants stand in order of preference.

    target        "cpu:avx512vnni", "cuda:sm_90a", …: what comes before the colon chooses the runtime's back end
    isa_features  instruction sets the code needs, spelled as GCC's -m flags; () runs everywhere
    code          one shared object
    provenance    how it was made: compiler, flags, tuning (JSON)
    """

    target: str
    isa_features: tuple[str, ...]
    code: bytes
    plan: Plan
    provenance: dict[str, Any] = field(default_factory=dict)


def align_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value: keys sorted, no white space, UTF-8. Raises ValueError or TypeError."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def trust_digest(code_sha256: str, plan_sha256: str) -> str:
    """What a user trusts: the code together with the plan that chooses the sizes it is called with."""
    return hashlib.sha256(bytes.fromhex(code_sha256) + bytes.fromhex(plan_sha256)).hexdigest()


def check_json(value: object, depth: int = 0) -> int:
    """Number of values; raises ValueError beyond the reader's caps."""
    if depth > MAX_JSON_DEPTH:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}")
    count = 1
    if isinstance(value, dict):
        count += sum(check_json(v, depth + 1) for v in value.values())
    elif isinstance(value, list | tuple):
        count += sum(check_json(v, depth + 1) for v in value)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"the integer {value} is beyond 64 bits")
    if count > MAX_JSON_VALUES:
        raise ValueError(f"more than {MAX_JSON_VALUES} values")
    return count
