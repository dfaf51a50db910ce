"""Files of tuning records: JSON lines, only ever appended to, each whole or not there.

A crash or a full disk can leave half a line at the end. Readers ignore it and say so; the next append removes it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from svdqc.compiler.tune.errors import (
    AmbiguousMachine,
    NotATuningFile,
    TuningFileUnreadable,
    TuningFileUnwritable,
)
from svdqc.compiler.tune.record import (
    Machine,
    NewerRecord,
    TuningKey,
    TuningRecord,
    parse_record,
)

LARGEST_BYTES = 1 << 28


@dataclass
class Records:
    """Of one file: the last record of each key. notes: what was passed over, in words."""

    by_key: dict[TuningKey, TuningRecord] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def machines(self, target: str) -> list[Machine]:
        """The machines that have records for a target, in the file's order."""
        return list(dict.fromkeys(k.machine for k in self.by_key if k.target == target))

    def machine(self, target: str, text: str) -> Machine:
        """The only machine with records for the target whose description has `text` in it."""
        known = self.machines(target)
        fitting = [machine for machine in known if text.lower() in str(machine).lower()]
        if len(fitting) == 1:
            return fitting[0]
        listed = "; ".join(map(str, fitting or known)) or "none"
        found = f"fits {len(fitting)} machines with records for {target}"
        raise AmbiguousMachine("tuning", text, found, f"name one of: {listed}")


def read_records(path: str | os.PathLike[str]) -> Records:
    """Every record of a file. A torn last line and lines of newer versions are passed over, and told of."""
    name = str(path)
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "give a file that `svdqc tune` has written"
        raise TuningFileUnreadable("tuning", name, f"cannot be read: {reason}", remedy) from error
    if len(data) > LARGEST_BYTES:
        raise NotATuningFile("tuning", name, "is larger than 256 MiB", "give a tuning file")
    records, newer = Records(), 0
    *whole, torn = data.split(b"\n")
    if torn:
        records.notes.append(f"{name}: the last line is torn and was ignored")
    for number, line in enumerate(whole, 1):
        try:
            record = parse_record(line.decode())
        except NewerRecord:
            newer += 1
        except (ValueError, RecursionError) as error:  # those of JSON and of UTF-8 are ValueErrors
            remedy = "give a file that `svdqc tune` has written, or remove the line"
            found = f"line {number} is no tuning record"
            raise NotATuningFile("tuning", name, found, remedy) from error
        else:
            records.by_key[record.key] = record
    if newer:
        records.notes.append(f"{name}: passed over {newer} of a newer svdqc")
    return records


def read_if_there(path: str | os.PathLike[str]) -> Records:
    return read_records(path) if Path(path).exists() else Records()


def check_appendable(path: str | os.PathLike[str]) -> None:
    """Refuse, before long work, a file that cannot be written; one that is not there is not left behind."""
    existed = Path(path).exists()
    append_records(path, ())
    if not existed:
        Path(path).unlink(missing_ok=True)


def append_records(path: str | os.PathLike[str], records: Iterable[TuningRecord]) -> None:
    """Add lines, durably. Other processes may append too; what does not fit on the disk leaves nothing behind."""
    data = "".join(f"{record.line()}\n" for record in records).encode()
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        end = _whole_lines(fd)
        os.ftruncate(fd, end)
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(fd, data[done:], end + done)
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, end)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        os.close(fd)


def _whole_lines(fd: int) -> int:
    """Bytes up to the end of the last whole line."""
    end = os.fstat(fd).st_size
    while end > 0:
        begin = max(0, end - 4096)
        position = os.pread(fd, end - begin, begin).rfind(b"\n")
        if position >= 0:
            return begin + position + 1
        end = begin
    return 0


def _unwritable(path: str | os.PathLike[str], error: OSError) -> TuningFileUnwritable:
    found = f"cannot be written: {error.strerror or error}"
    remedy = "make room, or name a file that may be written to; what was recorded is kept"
    return TuningFileUnwritable("tuning", str(path), found, remedy)
