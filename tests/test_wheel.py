"""The wheel: it builds, holds every source file under its installed name, and its runtime loads from it alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
MAPPED = {
    "runtime/python": "svdqc",
    "runtime/include": "svdqc/include",
    "compiler": "svdqc/compiler",
    "frontends": "svdqc/frontends",
    "templates": "svdqc/templates",
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, built by the tools of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"),
            *("--quiet", "--wheel-dir", str(folder)),
            f"--config-settings=build-dir={folder / 'build'}",
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_wheel__holds_every_source_file(unpacked: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--", *MAPPED],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    missing = []
    for line in listed.stdout.splitlines():
        if not (REPOSITORY / line).is_file():
            continue  # deleted, not yet committed
        source = max((s for s in MAPPED if line.startswith(f"{s}/")), key=len)
        installed = MAPPED[source] + line.removeprefix(source)
        if not (unpacked / installed).is_file():
            missing.append(installed)
    assert not missing, missing


def test_wheel__runtime_works_with_numpy_and_click_alone(unpacked: Path, tmp_path: Path) -> None:
    for package in (np, click):
        folder = Path(package.__file__ or "").parent
        (tmp_path / folder.name).symlink_to(folder)
        libraries = folder.with_name(f"{folder.name}.libs")
        if libraries.is_dir():
            (tmp_path / libraries.name).symlink_to(libraries)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "svdqc.compiler.cli", "doctor", "--json"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{unpacked}:{tmp_path}", "HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(unpacked / "svdqc" / "runtime" / "libsvdq.so") in done.stdout


def test_wheel__library_is_small_and_needs_only_the_c_and_cpp_runtimes(unpacked: Path) -> None:
    library = unpacked / "svdqc" / "runtime" / "libsvdq.so"
    assert library.stat().st_size < 1 << 20
    listed = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("no ldd here")
    names = {Path(line.split()[0]).name.split(".so")[0] for line in listed.stdout.splitlines()}
    allowed = {"linux-vdso", "libstdc++", "libm", "libgcc_s", "libc", "libpthread", "libdl"}
    extra = {name for name in names if not name.startswith("ld-linux")} - allowed
    assert not extra, listed.stdout
