"""The runtime under sanitizers, with a main that opens files."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def probe() -> Path:
    """The runtime under AddressSanitizer and UndefinedBehaviorSanitizer, with a main that opens files."""
    cmake = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
    build = REPOSITORY / "build" / "runtime-asan"
    source = REPOSITORY / "tests" / "attacks" / "probe.cpp"
    configure = [cmake, "-S", str(REPOSITORY / "runtime"), "-B", str(build)]
    build.parent.mkdir(exist_ok=True)
    with build.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be building it
        for command in (
            [*configure, "-DSVDQ_SANITIZE=ON", f"-DSVDQ_PROBE={source}"],
            [cmake, "--build", str(build), "--target", "probe", "--parallel", "2"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return build / "probe"
