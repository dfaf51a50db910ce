"""Mistakes around tuning: files of records, devices, kernels that cannot be measured."""

from __future__ import annotations

from svdqc.errors import SvdqcError


class TuningFileUnreadable(SvdqcError):
    """A file of tuning records that is not there, or cannot be read."""


class NotATuningFile(SvdqcError):
    """A file that holds something else, or a damaged line before its last."""


class TuningFileUnwritable(SvdqcError):
    """Records cannot be appended: no space, no permission."""


class AmbiguousMachine(SvdqcError):
    """The text that names a machine of a tuning file fits none of them, or several."""


class CannotTune(SvdqcError):
    """Nothing here can measure kernels of the target, or the recipe leaves their shapes open."""
