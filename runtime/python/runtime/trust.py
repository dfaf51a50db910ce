"""The user's list of code that may run: the trust digests of artifacts compiled here.

An artifact holds machine code. It runs if its digest, sha256(sha256(code) + sha256(plan)), stands in this list,
which local compiles extend, or if the caller says `trust=True`. A checksum inside the file proves nothing about
who wrote it, so it is never taken for trust.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from svdqc.errors import SvdqcError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_LINES, _KEPT_LINES = 100_000, 50_000


class TrustRegistryError(SvdqcError):
    """The list cannot be written."""


def registry_path() -> Path:
    """$XDG_STATE_HOME/svdqc/trusted, else ~/.local/state/svdqc/trusted. The runtime library looks in the same place."""
    state = os.environ.get("XDG_STATE_HOME", "")
    home = os.environ.get("HOME", "")
    if state.startswith("/"):
        return Path(state, "svdqc", "trusted")
    if home.startswith("/"):
        return Path(home, ".local", "state", "svdqc", "trusted")
    raise TrustRegistryError("trust", "HOME", "neither HOME nor XDG_STATE_HOME is set", "set HOME")


def trusted_digests() -> tuple[str, ...]:
    try:
        lines = registry_path().read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple(line for line in lines if _DIGEST.fullmatch(line))


def is_trusted(digest: str) -> bool:
    return digest in trusted_digests()


def register(*digests: str) -> None:
    """Trust these digests from now on. Call it for code that this machine has just compiled, and nothing else."""
    for digest in digests:
        if not _DIGEST.fullmatch(digest):
            raise TrustRegistryError(
                "trust", digest, "not a sha256", "give 64 lower-case hexadecimal digits"
            )
    path = registry_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = trusted_digests()
        fresh = [digest for digest in dict.fromkeys(digests) if digest not in set(known)]
        if not fresh:
            return
        if len(known) + len(fresh) > _MAX_LINES:
            _rewrite(path, [*known, *fresh][-_KEPT_LINES:])
            return
        # One write of whole lines to a file opened for appending: concurrent compiles do not mix theirs.
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, "".join(f"{digest}\n" for digest in fresh).encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise TrustRegistryError(
            "trust", str(path), f"cannot be written: {error.strerror}", "make it writable"
        ) from error


def _rewrite(path: Path, digests: list[str]) -> None:
    partial = path.with_name(f".trusted.{os.getpid()}")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write("".join(f"{digest}\n" for digest in digests))
    os.replace(partial, path)
