"""CPU targets: one per instruction set, from the most capable to plain C++."""

from __future__ import annotations

from dataclasses import dataclass

from svdqc.errors import SvdqcError


@dataclass(frozen=True)
class CpuTarget:
    """isa_features: what the code needs, spelled as GCC's -m flags; the runtime compares them with the machine's."""

    isa: str
    isa_features: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"cpu:{self.isa}"

    @property
    def flags(self) -> tuple[str, ...]:
        wide = ("-mprefer-vector-width=512",) if "avx512f" in self.isa_features else ()
        return (*(f"-m{feature}" for feature in self.isa_features), *wide)


AVX512VNNI = CpuTarget(
    "avx512vnni",
    ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"),
)
AVX2 = CpuTarget("avx2", ("avx2", "fma", "f16c"))
PORTABLE = CpuTarget("portable", ())
CPU_TARGETS = (AVX512VNNI, AVX2, PORTABLE)


class UnknownTarget(SvdqcError):
    """A target that this compiler does not know, or cannot build for."""


def parse_targets(text: str, machine_features: tuple[str, ...]) -> list[CpuTarget]:
    """`native`, `cpu`, `cpu:avx2`, or several separated by commas; in order of preference, best first.

    "native" and "cpu" are the best instruction set of this machine.
    """
    chosen: list[CpuTarget] = []
    for part in (p.strip() for p in text.split(",")):
        target = _parse_one(part, machine_features)
        if target not in chosen:
            chosen.append(target)
    return sorted(chosen, key=CPU_TARGETS.index)


def _parse_one(text: str, machine_features: tuple[str, ...]) -> CpuTarget:
    if text in ("native", "cpu"):
        return next(t for t in CPU_TARGETS if set(t.isa_features) <= set(machine_features))
    for target in CPU_TARGETS:
        if text == target.name:
            return target
    known = ", ".join(["native", "cpu", *(t.name for t in CPU_TARGETS)])
    raise UnknownTarget("compile", text, "no such target in this version", f"use one of {known}")
