"""What a pass is: a function from Program to a report of what it changed and what it skipped, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from svdqc.compiler.ir.program import Program


@dataclass
class PassReport:
    """changed: rewrites by kind; skipped: (node source, reason) for each candidate left as it was."""

    changed: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)


Pass = Callable[[Program], PassReport]
