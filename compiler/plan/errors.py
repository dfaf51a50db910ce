"""Mistakes in a plan: each is a mistake of the compiler, or of whoever altered the bytes."""

from __future__ import annotations

from svdqc.errors import SvdqcError


class PlanError(SvdqcError):
    """The base of every complaint about a plan."""


class PlanFormatError(PlanError):
    """Bytes that are not a plan, or a plan that has no binary form."""

    def __init__(self, subject: str, found: str) -> None:
        super().__init__("plan", subject, found, "compile the model again")


class PlanRangeError(PlanError):
    """An argument outside its buffer, or a buffer outside its memory."""

    def __init__(self, subject: str, found: str) -> None:
        super().__init__(
            "plan", subject, found, "keep every range inside its buffer for all legal dims"
        )


class PlanLifetimeError(PlanError):
    """Memory read before it is written, written where it is read-only, or shared by two buffers in use."""

    def __init__(self, subject: str, found: str) -> None:
        super().__init__(
            "plan", subject, found, "reorder the launches or give the buffers memory of their own"
        )
