"""`make gpu-check`: build, verify and measure every CUDA kernel on this machine's GPU.

Exit code 0 where there is no NVIDIA GPU (there is nothing to check, and it says so), 1 where there is one and a
kernel fails, or no kernel was checked at all.
"""

from __future__ import annotations

import sys

from svdqc.compiler.driver.machine import find_gpus


def main() -> int:
    gpus = find_gpus()
    if not gpus:
        print("gpu-check: no NVIDIA GPU here (no CUDA driver that shows one): nothing to check.")
        return 0
    for gpu in gpus:
        print(f"gpu-check: found {gpu.name} ({gpu.arch})")
    print("gpu-check: this version has no CUDA target: 0 kernels were checked.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
