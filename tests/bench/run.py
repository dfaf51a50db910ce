"""`make bench`: every benchmark of the list, one after another. Each checks its output first and reports ratios."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BENCHMARKS = ("cpu_linear.py", "cpu_f32.py", "emoji.py", "emoji_quality.py")


def main() -> int:
    failed = []
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'build' / 'dev'}:{ROOT}"}
        done = subprocess.run([sys.executable, str(HERE / name)], env=environment, check=False)
        if done.returncode != 0:
            failed.append(name)
    for name in failed:
        print(f"bench: {name} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
