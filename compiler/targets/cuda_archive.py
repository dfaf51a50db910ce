"""The code section of a CUDA variant: cubins, one per kernel, behind an index (runtime/FORMAT.md, "Code")."""

from __future__ import annotations

import struct
from collections.abc import Mapping

MAGIC = b"SVDQCUBN"
KERNEL_INTERFACE = 1
ALIGNMENT = 64
HEADER = struct.Struct("<8sII")  # magic, interface, count
ENTRY = struct.Struct("<IIQQQ")  # name offset, name bytes, cubin offset, cubin bytes, 0


def pack_cubins(cubins: Mapping[str, bytes]) -> bytes:
    """The section that holds `cubins` (kernel name → ELF file); the same for any order of the mapping."""
    names = sorted(cubins, key=str.encode)
    first_name = HEADER.size + ENTRY.size * len(names)
    text = b"".join(name.encode("ascii") for name in names)
    parts = [HEADER.pack(MAGIC, KERNEL_INTERFACE, len(names))]
    contents = bytearray()
    name_offset, end = first_name, first_name + len(text)
    begin_of_cubins = end
    for name in names:
        cubin = cubins[name]
        contents += bytes(-end % ALIGNMENT) + cubin
        offset = begin_of_cubins + len(contents) - len(cubin)
        end = offset + len(cubin)
        parts.append(ENTRY.pack(name_offset, len(name), offset, len(cubin), 0))
        name_offset += len(name)
    return b"".join(parts) + text + bytes(contents)


def unpack_cubins(section: bytes) -> dict[str, bytes]:
    """Kernel name → cubin, of a section that pack_cubins made; for tools and tests, the runtime has its own reader."""
    magic, interface, count = HEADER.unpack_from(section)
    if (magic, interface) != (MAGIC, KERNEL_INTERFACE):
        raise ValueError(f"not an archive of cubins: {magic!r}, interface {interface}")
    cubins = {}
    for i in range(count):
        name_offset, name_bytes, offset, size, _ = ENTRY.unpack_from(
            section, HEADER.size + i * ENTRY.size
        )
        name = section[name_offset : name_offset + name_bytes].decode("ascii")
        cubins[name] = section[offset : offset + size]
    return cubins
