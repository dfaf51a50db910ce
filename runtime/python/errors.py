"""The base of every error that svdqc raises on purpose.

An error says where it happened, what was found, what is required, and what to do:
``[compile] 'model.onnx': no such file; give the path of an .onnx, .pt2 or a diffusers folder.``
Modules define one subclass per mistake; the command line turns each into exit code 2.
"""

from __future__ import annotations


class SvdqcError(Exception):
    """A mistake the user can mend. `where` is the stage, `subject` the named thing."""

    def __init__(self, where: str, subject: str, found: str, remedy: str) -> None:
        self.where, self.subject, self.found, self.remedy = where, subject, found, remedy
        super().__init__(f"[{where}] {subject!r}: {found}; {remedy}")
