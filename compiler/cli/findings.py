"""What `svdqc doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """state: "ok", "missing" (something that is needed does not work), "note" (something optional is absent)."""

    topic: str
    state: str
    found: str
    remedy: str = ""
