"""The runtime's errors: one class per status of the C interface, with the message the library wrote."""

from __future__ import annotations

import re

from svdqc.errors import SvdqcError

_MESSAGE = re.compile(
    r"\[(?P<where>[^\]]*)\] '(?P<subject>.*?)': (?P<found>.*); (?P<remedy>.*)\.", re.DOTALL
)


class RuntimeFailure(SvdqcError):
    """The base of every error of the runtime library."""

    def __init__(self, message: str) -> None:
        parts = _MESSAGE.fullmatch(message)
        fields = parts.groups() if parts else ("runtime", "", message, "")
        super().__init__(*fields)
        self.args = (message,)


class ArtifactNotFound(RuntimeFailure):
    """The file cannot be opened."""


class NotAnArtifact(RuntimeFailure):
    """The file is something else."""


class TruncatedArtifact(RuntimeFailure):
    """The file is shorter than it says."""


class AlteredArtifact(RuntimeFailure):
    """A checksum does not match."""


class MalformedArtifact(RuntimeFailure):
    """The manifest breaks a rule of the format."""


class NewerArtifact(RuntimeFailure):
    """Written by a newer svdqc."""


class UnknownFeature(RuntimeFailure):
    """The file needs a feature this runtime does not have."""


class WrongMachine(RuntimeFailure):
    """No variant in the file runs on this CPU or GPU."""


class NotEnoughMemory(RuntimeFailure):
    """The model does not fit this machine."""


class UntrustedCode(RuntimeFailure):
    """The code was compiled elsewhere and no trust was given."""


class BadPlan(RuntimeFailure):
    """A plan that would leave its buffers."""


class BadCode(RuntimeFailure):
    """The code cannot be loaded."""


class BadArgument(RuntimeFailure):
    """A call that breaks the interface's rules."""


class BadInput(RuntimeFailure):
    """A tensor's name, dtype, shape or memory is not what the model takes."""


class BadDim(RuntimeFailure):
    """A named dim is outside its range, or two inputs disagree about it."""


class InternalError(RuntimeFailure):
    """A mistake in svdqc itself."""


class NoDevice(RuntimeFailure):
    """No such GPU, no driver for it, or one that is too old."""


class DeviceFailure(RuntimeFailure):
    """The GPU or its driver reported an error."""


BY_STATUS: dict[int, type[RuntimeFailure]] = dict(
    enumerate(
        (
            ArtifactNotFound,
            NotAnArtifact,
            TruncatedArtifact,
            AlteredArtifact,
            MalformedArtifact,
            NewerArtifact,
            UnknownFeature,
            WrongMachine,
            NotEnoughMemory,
            UntrustedCode,
            BadPlan,
            BadCode,
            BadArgument,
            BadInput,
            BadDim,
            InternalError,
            NoDevice,
            DeviceFailure,
        ),
        start=1,
    )
)


class LibraryMissing(SvdqcError):
    """The compiled runtime library is not where it should be."""

    def __init__(self, searched: list[str]) -> None:
        super().__init__(
            "runtime",
            "libsvdq.so",
            f"not found in {', '.join(searched)}",
            "reinstall svdqc, or in a source tree run `make setup`",
        )


class UnknownDevice(SvdqcError):
    """The name of no kind of device."""

    def __init__(self, device: str) -> None:
        remedy = "use 'cpu', 'cuda:0' (or another number) or 'auto'"
        super().__init__("load", device, "there is no such kind of device", remedy)


class BadTensor(SvdqcError):
    """A value that is no tensor the runtime can read."""

    def __init__(self, name: str, found: str, remedy: str) -> None:
        super().__init__("run", name, found, remedy)
