"""Measure a candidate in a process of its own, which is ended when it takes too long."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict

from svdqc.compiler.tune.child import Request, Timing

START_SECONDS = 60.0
"""For the process to start, open the file and run each kernel once; on a busy machine."""

Measure = Callable[[Request], "Timing | str"]


def measure_apart(request: Request) -> Timing | str:
    """What the child found, or why it found nothing."""
    command = [sys.executable, "-m", "svdqc.compiler.tune.child", json.dumps(asdict(request))]
    limit = START_SECONDS + 20 * request.seconds
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return f"took more than {limit:.0f} s"
    finally:
        if process.poll() is None:  # too slow, or this process was interrupted
            process.kill()
            process.wait()
    if process.returncode < 0:
        return f"ended by {signal.Signals(-process.returncode).name}"
    if process.returncode > 0:
        lines = errors.strip().splitlines()
        return lines[-1] if lines else f"exit code {process.returncode}"
    return Timing(**json.loads(output.splitlines()[-1]))
