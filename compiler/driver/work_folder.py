"""The folder beside an artifact in which a compilation lays aside what it has finished.

    .model.svdq.work/lock                  held while a compilation uses the folder
    .model.svdq.work/NAME.safetensors      one finished piece: tensors, a text, and a checksum of both

Names are digests of everything that a piece follows from, so a piece is right whenever it is found: for another model,
recipe or sample it has another name. Each appears whole, by a rename; what does not match its checksum is made again.
The folder is made for the first piece, stays when the compilation is interrupted or fails, and goes when it is done.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from svdqc.compiler.driver.work_path import WorkFolderBusy, WorkFolderUnwritable, work_path
from svdqc.compiler.quantize.linear import QuantizedLinear
from svdqc.compiler.quantize.stored import from_stored, tensor_digest, to_stored
from svdqc.errors import SvdqcError


class WorkFolder:
    """Finished pieces by name; safe to use from several threads."""

    def __init__(self, output: str | os.PathLike[str], resume: bool = False) -> None:
        """`resume` keeps what an earlier compilation left; otherwise it is removed."""
        self.path = work_path(output)
        self._lock: IO[bytes] | None = None
        self._opening = threading.Lock()
        self._sound: set[str] = set()
        if self.path.is_dir():
            self._open()
            if not resume:
                self.remove()

    def has(self, name: str) -> bool:
        """Whether the piece is there and whole; a damaged one is removed."""
        if name in self._sound:
            return True
        if not self._file(name).is_file():
            return False
        try:
            sound = _checksum(*_read(self._file(name))) == _recorded(self._file(name))
        except Exception:  # safetensors raises its own type, which has no stable name
            sound = False
        if sound:
            self._sound.add(name)
        else:
            self._file(name).unlink(missing_ok=True)
        return sound

    def write(
        self, name: str, tensors: Mapping[str, Tensor], text: str = "", durable: bool = True
    ) -> None:
        """Keep a piece; it is there whole, or not at all. `durable` survives a loss of power."""
        self._open()
        stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        partial = self.path / f"{name}.partial"
        try:
            metadata = {"text": text, "sha256": _checksum(stored, text)}
            save_file(_apart(stored), str(partial), metadata)
            if durable:
                with partial.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(partial, self._file(name))
        except Exception as error:  # safetensors has its own type for errors of the system
            partial.unlink(missing_ok=True)
            raise self._mistake(error) from error
        self._sound.add(name)

    def discard(self, name: str) -> None:
        """A piece that nothing follows from any more."""
        self._sound.discard(name)
        self._file(name).unlink(missing_ok=True)

    def read(self, name: str) -> tuple[dict[str, Tensor], str]:
        return _read(self._file(name))

    def reader(self, name: str, key: str) -> Callable[[], Tensor]:
        """A function that reads one tensor of a piece."""
        file = str(self._file(name))

        def read() -> Tensor:
            with safe_open(file, framework="pt") as stored:
                tensor: Tensor = stored.get_tensor(key)
            return tensor

        return read

    def folder(self, name: str) -> Path:
        """A folder in the folder, for what is not pieces."""
        self._open()
        path = self.path / name
        path.mkdir(exist_ok=True)
        return path

    def num_bytes(self) -> int:
        files = [path for path in self.path.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)

    def close(self) -> None:
        """Let go of the folder and leave it where it is."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        self._sound.clear()
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def _open(self) -> None:
        with self._opening:
            if self._lock is None:
                self._lock = self._take()

    def _take(self) -> IO[bytes]:
        """The folder, made where it is not, and its lock."""
        try:
            self.path.mkdir(exist_ok=True)
            lock = (self.path / "lock").open("ab")
        except OSError as error:
            raise self._mistake(error) from error
        if not _locked(lock):
            lock.close()
            raise WorkFolderBusy(
                "compile",
                str(self.path),
                "another compilation uses it",
                "wait for it, or name another output",
            )
        return lock

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    def _mistake(self, error: Exception) -> SvdqcError:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
            f"os error {number})" in str(error)
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        )
        found = "no space left" if full else f"finished work cannot be kept there ({error})"
        remedy = (
            "make space, then continue with --resume: finished layers are kept"
            if full
            else "write the artifact to a place where files can be made"
        )
        return WorkFolderUnwritable("compile", str(self.path), found, remedy)


@contextmanager
def work_folder(output: str | os.PathLike[str], resume: bool) -> Iterator[WorkFolder]:
    """The work folder of an artifact, removed when the block succeeds and kept when it does not."""
    work = WorkFolder(output, resume)
    try:
        yield work
        work.remove()
    finally:
        work.close()


class StoredResults:
    """Quantized layers in a work folder, as `passes.svdquant.Results` wants them."""

    def __init__(self, work: WorkFolder) -> None:
        self._work = work
        self._loaded: tuple[str, dict[str, Tensor]] = ("", {})

    def has(self, key: str) -> bool:
        return self._work.has(key)

    def save(self, key: str, layer: QuantizedLinear) -> None:
        self._work.write(key, *to_stored(layer))

    def load(self, key: str) -> QuantizedLinear:
        tensors, text = self._work.read(key)
        self._loaded = key, tensors
        return from_stored(tensors, text)

    def spill(self, key: str, name: str, tensor: Tensor) -> Callable[[], Tensor]:
        """A constant that is a field of the layer last loaded is read from there, another one gets a piece."""
        loaded, fields = self._loaded
        if loaded == key:
            for field, stored in fields.items():
                if _same_memory(stored, tensor):
                    read, dtype = self._work.reader(key, field), tensor.dtype
                    return lambda: read().view(dtype)
        piece = f"{key}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        self._work.write(piece, {"constant": tensor})
        return self._work.reader(piece, "constant")


def _same_memory(one: Tensor, other: Tensor) -> bool:
    at, like = one.data_ptr() == other.data_ptr(), one.stride() == other.stride()
    return at and like and one.shape == other.shape and one.element_size() == other.element_size()


def _read(file: Path) -> tuple[dict[str, Tensor], str]:
    with safe_open(str(file), framework="pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        return tensors, (stored.metadata() or {})["text"]


def _recorded(file: Path) -> str:
    with safe_open(str(file), framework="pt") as stored:
        return str((stored.metadata() or {})["sha256"])


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        digest.update(key.encode() + b"\0" + tensor_digest(tensors[key]))
    return digest.hexdigest()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory."""
    seen: set[int] = set()
    result = {}
    for key, tensor in tensors.items():
        result[key] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return result


def _locked(file: Any) -> bool:
    """Take the lock of a file, which goes with the process; True where the system has none."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
