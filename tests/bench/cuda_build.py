"""What it costs to compile a model for GPUs: each target from an empty kernel cache, and again from a full one.

    python tests/bench/cuda_build.py [--model examples/emoji/model] [--targets cuda:sm_80,cuda:sm_90a] [--jobs 2]

Needs nvcc, no GPU. Both artifacts must have the same bytes. Columns: distinct kernels; CPU seconds of all compilers
together and the largest one's memory; seconds the first and the second time; bytes of the artifact.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HEADER = "target         kernels  compilers  largest  first  second  artifact"


def main() -> int:
    from svdqc.compiler.targets.cuda import CUDA_TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(ROOT / "examples" / "emoji" / "model"))
    parser.add_argument("--targets", default=",".join(t.name for t in CUDA_TARGETS))
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", metavar="OUTPUT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(compile_one(options)))
        return 0
    print(HEADER)
    for target in options.targets.split(","):
        with tempfile.TemporaryDirectory(prefix="svdqc-") as folder:
            first, second = (in_process(options, target, Path(folder), i) for i in range(2))
        if first["sha256"] != second["sha256"]:
            print(f"{target}: two compilations differ", file=sys.stderr)
            return 1
        print(
            f"{target:<14} {first['kernels']:7} {first['compiler_s']:8.1f} s"
            f" {first['largest_mb']:5.0f} MB {first['s']:4.0f} s {second['s']:5.0f} s"
            f" {first['bytes'] / 1e6:6.1f} MB",
            flush=True,
        )
    return 0


def in_process(
    options: argparse.Namespace, target: str, folder: Path, attempt: int
) -> dict[str, Any]:
    """Compile in a process of its own, whose children are then all compilers."""
    command = [sys.executable, __file__, "--one", str(folder / f"{attempt}.svdq")]
    command += ["--model", options.model, "--targets", target]
    command += ["--precision", options.precision, "--jobs", str(options.jobs)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def compile_one(options: argparse.Namespace) -> dict[str, Any]:
    import hashlib

    import svdqc

    sys.path.insert(0, str(ROOT / "examples" / "emoji"))
    begin = time.perf_counter()
    artifact = svdqc.compile(
        options.model,
        output=options.one,
        target=options.targets,
        recipe=svdqc.Recipe(precision=options.precision),
        jobs=options.jobs,
    )
    elapsed = time.perf_counter() - begin
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "kernels": artifact.report["num_kernels"],
        "compiler_s": children.ru_utime + children.ru_stime,
        "largest_mb": children.ru_maxrss / 1024,
        "s": elapsed,
        "bytes": artifact.num_bytes,
        "sha256": hashlib.sha256(Path(artifact.path).read_bytes()).hexdigest(),
    }


if __name__ == "__main__":
    sys.exit(main())
