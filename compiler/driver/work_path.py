"""Where a compilation lays its finished work aside, and what can be wrong with that place. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path

from svdqc.errors import SvdqcError


class WorkFolderBusy(SvdqcError):
    """Another compilation writes the same artifact."""


class WorkFolderUnwritable(SvdqcError):
    """Finished work cannot be kept: no space, no permission."""


def work_path(output: str | os.PathLike[str]) -> Path:
    """The work folder of an artifact: a hidden one beside it."""
    return Path(output).parent / f".{Path(output).name}.work"
