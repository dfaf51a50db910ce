"""Mistakes about artifacts, one class each."""

from __future__ import annotations

from svdqc.errors import SvdqcError


class ArtifactError(SvdqcError):
    """The base of every complaint about an artifact."""


class ArtifactContentError(ArtifactError):
    """What was asked to be written breaks a rule of the format."""

    def __init__(self, subject: str, found: str, remedy: str) -> None:
        super().__init__("artifact", subject, found, remedy)


class DiskFullError(ArtifactError):
    """The disk has no room for the file."""

    def __init__(self, path: str, need: int, free: int) -> None:
        super().__init__(
            "artifact",
            path,
            f"needs {need} bytes of disk, {free} are free",
            "free some space or write to another disk",
        )


class ArtifactWriteError(ArtifactError):
    """The file cannot be created or written."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            "artifact", path, f"cannot be written: {reason}", "choose a folder that you may write"
        )


class ArtifactNotFoundError(ArtifactError):
    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            "open",
            path,
            f"cannot be opened: {reason}",
            "give the path of a .svdq file that you may read",
        )


class NotAnArtifactError(ArtifactError):
    def __init__(self, path: str) -> None:
        super().__init__("open", path, "not an svdqc artifact", "'svdqc compile' makes one")


class TruncatedArtifactError(ArtifactError):
    def __init__(self, path: str, found: str) -> None:
        super().__init__("open", path, found, "copy or download the file again")


class AlteredArtifactError(ArtifactError):
    def __init__(self, path: str, found: str) -> None:
        super().__init__("open", path, found, "copy or download the file again")


class MalformedArtifactError(ArtifactError):
    def __init__(self, path: str, found: str) -> None:
        super().__init__(
            "open", path, found, "the file was not written by svdqc; compile the model again"
        )


class NewerArtifactError(ArtifactError):
    def __init__(self, path: str, found: str) -> None:
        super().__init__("open", path, found, "upgrade svdqc")


class UnknownFeatureError(ArtifactError):
    def __init__(self, path: str, feature: str) -> None:
        super().__init__(
            "open",
            path,
            f"needs the feature {feature!r}, which this svdqc does not have",
            "upgrade svdqc",
        )
