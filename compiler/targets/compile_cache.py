"""Compile sources once: results by content, in parallel within a memory bound, whole or absent."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from svdqc.errors import SvdqcError

Progress = Callable[[int, int, str], None]
NUM_LINES_SHOWN = 12


class CompilationFailed(SvdqcError):
    """A compiler rejected generated code, or died."""


@dataclass(frozen=True)
class CompileJob:
    """`command`, run in an empty folder that holds `source` as source_name, leaves result_name, which becomes `result`.

    memory_bytes: what the compiler is expected to take; 0 where it does not matter. remedy: said when it fails.
    """

    name: str
    source: str
    source_name: str
    result_name: str
    command: tuple[str, ...]
    result: Path
    memory_bytes: int = 0
    remedy: str = ""


def cache_folder() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/svdqc/kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "svdqc" / "kernels"


def digest(parts: Iterable[str]) -> str:
    """One name for all that a result depends on."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def compile_all(
    jobs: Sequence[CompileJob],
    workers: int = 0,
    progress: Progress | None = None,
    memory_bound: int | None = None,
) -> None:
    """Make every result that is not there yet; at any time jobs of at most memory_bound bytes run (but always one)."""
    missing = [job for job in jobs if not job.result.exists()]
    done = len(jobs) - len(missing)
    if progress is not None:
        progress(done, len(jobs), "cached")
    if not missing:
        return
    for folder in {job.result.parent for job in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    bound = _MemoryBound(memory_bound)
    # The largest first: what is left over at the end is then small.
    ordered = sorted(missing, key=lambda job: -job.memory_bytes)
    with ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1) as pool:
        futures = {job: pool.submit(_compile_within, bound, job) for job in ordered}
        try:
            for job, future in futures.items():
                future.result()
                done += 1
                if progress is not None:
                    progress(done, len(jobs), job.name)
        except BaseException:
            for future in futures.values():
                future.cancel()
            raise


class _MemoryBound:
    """Lets jobs begin while the sum of what they expect to take stays within a bound."""

    def __init__(self, bound: int | None) -> None:
        self._bound, self._taken, self._running = bound, 0, 0
        self._changed = threading.Condition()

    def enter(self, num_bytes: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._fits(num_bytes))
            self._taken += num_bytes
            self._running += 1

    def leave(self, num_bytes: int) -> None:
        with self._changed:
            self._taken -= num_bytes
            self._running -= 1
            self._changed.notify_all()

    def _fits(self, num_bytes: int) -> bool:
        return self._bound is None or self._running == 0 or self._taken + num_bytes <= self._bound


def _compile_within(bound: _MemoryBound, job: CompileJob) -> None:
    bound.enter(job.memory_bytes)
    try:
        _compile(job)
    finally:
        bound.leave(job.memory_bytes)


def _compile(job: CompileJob) -> None:
    """Compile into the cache; the result appears whole, under its final name."""
    with tempfile.TemporaryDirectory(prefix="svdqc-") as work:
        (Path(work) / job.source_name).write_text(job.source)
        run_tool(job.command, job.name, Path(work), job.remedy)
        partial = job.result.with_suffix(f".{os.getpid()}.{threading.get_ident()}.partial")
        try:
            shutil.copyfile(Path(work) / job.result_name, partial)
            os.replace(partial, job.result)
        finally:
            partial.unlink(missing_ok=True)


def run_tool(command: Sequence[str], name: str, folder: Path, remedy: str) -> str:
    """Run a compiler or linker in `folder`; its standard output, or CompilationFailed with its first lines."""
    done = subprocess.run(list(command), capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[:NUM_LINES_SHOWN]
        detail = "\n".join(lines) or f"exit status {done.returncode}"
        raise CompilationFailed("compile kernels", name, f"{command[0]} failed:\n{detail}", remedy)
    return done.stdout


_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def included_headers(source: str, folders: Sequence[Path]) -> Mapping[str, bytes]:
    """The project's headers that `source` includes, directly or not, by the included name; conditions are ignored.

    So a changed header recompiles the kernels that use it, and no others.
    """
    found: dict[str, bytes] = {}
    waiting = _INCLUDE.findall(source)
    while waiting:
        name = waiting.pop()
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if name in found or path is None:
            continue
        found[name] = path.read_bytes()
        waiting += _INCLUDE.findall(found[name].decode())
    return dict(sorted(found.items()))


def headers_digest(source: str, folders: Sequence[Path]) -> str:
    """One name for the contents of every header of the project that `source` includes."""
    total = hashlib.sha256()
    for name, content in included_headers(source, folders).items():
        total.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return total.hexdigest()
