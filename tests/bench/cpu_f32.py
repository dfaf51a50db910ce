"""The 16- and 32-bit CPU kernels against PyTorch's, in one process, taking turns: linear, attention, convolution.

    PYTHONPATH=build/dev:. python tests/bench/cpu_f32.py [--threads 2] [--clock wall|cpu] [--rounds 9] [KIND ...]

    KIND is linear, attention or conv.

Outputs are checked before anything is timed, caches are flushed before every call. A line gives the median GFLOP/s of
both and the median of the ratios of neighbouring calls (above 1: ours is faster). On a busy machine: --clock cpu
--threads 1. The peers are torch's linear in f32 (in bf16 for bf16dot), scaled_dot_product_attention and conv2d.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from tests.kernels.cpu_build import ISAS, build_harness, call, poisoned_scratch
from torch import Tensor
from torch.nn import functional

from svdqc.compiler.targets.cpu_layouts_f32 import (
    pack_conv,
    pack_gemm_bf16dot,
    pack_gemm_f32,
    pack_gemm_w16,
)

Task = Callable[[int], None]
LINEAR = ((1152, 1152), (1152, 4608), (4608, 1152), (3072, 3072), (3072, 12288))
LINEAR_ROWS = 1024
ATTENTION = ((1024, 64, 8, False), (4096, 64, 2, False), (1024, 128, 8, False), (4096, 128, 2, False),
             (4096, 64, 2, True), (256, 64, 16, False))  # fmt: skip
# height = width, input channels, output channels, kernel, stride, channels last
CONV = ((64, 320, 320, 3, 1, True), (32, 640, 640, 3, 1, True), (64, 320, 640, 1, 1, True),
        (64, 320, 320, 3, 1, False), (128, 16, 1152, 2, 2, False))  # fmt: skip
ROWS_PER_TASK = 48
QUERIES_PER_TASK = 192


@dataclass
class Contest:
    """One comparison: what to call `rounds` times in turn, and how to check it."""

    name: str
    gflop: float
    torch_op: Callable[[], Tensor]
    tasks: int
    task: Task
    error: Callable[[], Tensor]  # our output less the expected one


TOLERANCE = 1e-4  # of the largest output: sums of at most 12288 f32 terms in another order


class Pool:
    """`threads` threads that take tasks 0, 1, 2, ... from one counter, as the runtime does."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.pool = ThreadPoolExecutor(max(1, threads - 1))

    def run(self, tasks: int, task: Task) -> None:
        counter = count()
        others = [
            self.pool.submit(self._drain, counter, tasks, task) for _ in range(self.threads - 1)
        ]
        self._drain(counter, tasks, task)
        for other in others:
            other.result()

    @staticmethod
    def _drain(counter: Iterator[int], tasks: int, task: Task) -> None:
        while (index := next(counter)) < tasks:
            task(index)


def linear_contests(library: ctypes.CDLL) -> Iterator[Contest]:
    generator = torch.Generator().manual_seed(0)
    for k, n in LINEAR:
        x = torch.randn(LINEAR_ROWS, k, generator=generator)
        w = torch.randn(n, k, generator=generator) / k**0.5
        yield _linear(library, "f32", x, w, pack_gemm_f32(w), (x, w))
        yield _linear(library, "wbf16", x, w.bfloat16(), pack_gemm_w16(w.bfloat16()), (x, w))
        yield _linear(library, "wf16", x, w.half(), pack_gemm_w16(w.half()), (x, w))
        both = (x.bfloat16(), w.bfloat16())
        yield _linear(library, "bf16dot", *both, pack_gemm_bf16dot(w), both)


def _linear(
    library: ctypes.CDLL,
    kind: str,
    x: Tensor,
    w: Tensor,
    packed: Tensor,
    theirs: tuple[Tensor, Tensor],
) -> Contest:
    """x @ w.T by gemm_<kind> against PyTorch's product of `theirs`."""
    (rows, k), n = x.shape, w.shape[0]
    columns = packed.shape[0] * 16
    out = torch.empty(rows, columns)
    function = getattr(library, f"run_gemm_{kind}")
    exact = functional.linear(x.float(), w.float())

    def task(index: int) -> None:
        begin = index * ROWS_PER_TASK
        num_rows = min(ROWS_PER_TASK, rows - begin)
        call(function, num_rows, k, x[begin:], k, packed, 0, columns // 16, out[begin:], columns, 0)

    return Contest(
        name=f"linear {kind:8s} {k}x{n}",
        gflop=2e-9 * rows * k * n,
        torch_op=lambda: functional.linear(*theirs),
        tasks=-(-rows // ROWS_PER_TASK),
        task=task,
        error=lambda: out[:, :n] - exact,
    )


def attention_contests(library: ctypes.CDLL) -> Iterator[Contest]:
    library.attention_scratch.restype = ctypes.c_int64
    for length, dim, heads, causal in ATTENTION:
        yield _attention(library, length, dim, heads, causal)


def _attention(library: ctypes.CDLL, length: int, dim: int, heads: int, causal: bool) -> Contest:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, dim, generator=generator) for _ in range(3))
    out = torch.empty(heads, length, dim)
    size = library.attention_scratch(ctypes.c_int64(dim), ctypes.c_int64(dim))
    sizes = np.array([length, length, dim, dim])
    strides = np.array([dim, dim, dim, dim, 1, 1, 1, 0, 0])
    blocks = -(-length // QUERIES_PER_TASK)
    step = -(-length // blocks)

    def theirs() -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def task(index: int) -> None:
        head, begin = index // blocks, index % blocks * step
        call(
            library.run_attention,
            *(q[0, head], k[0, head], v[0, head], out[head], sizes, strides, None, None),
            *(float(dim**-0.5), int(causal), begin, min(length, begin + step)),
            scratch_of_thread(size),
        )

    exact = theirs()[0]
    return Contest(
        name=f"attention {heads} heads, {length} tokens, d={dim}{', causal' * causal}",
        gflop=4e-9 * heads * length * length * dim / (2 if causal else 1),
        torch_op=theirs,
        tasks=heads * blocks,
        task=task,
        error=lambda: out - exact,
    )


def conv_contests(library: ctypes.CDLL) -> Iterator[Contest]:
    library.conv_scratch.restype = ctypes.c_int64
    for size, channels, outputs, kernel, stride, channels_last in CONV:
        yield _conv(library, size, channels, outputs, kernel, stride, channels_last)


def _conv(
    library: ctypes.CDLL,
    size: int,
    channels: int,
    outputs: int,
    kernel: int,
    stride: int,
    channels_last: bool,
) -> Contest:
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(1, channels, size, size, generator=generator).contiguous(memory_format=layout)
    w = torch.randn(outputs, channels, kernel, kernel, generator=generator)
    w = (w / (channels * kernel**2) ** 0.5).contiguous(memory_format=layout)
    pad = 0 if stride == kernel else kernel // 2

    def theirs() -> Tensor:
        return functional.conv2d(x, w, stride=stride, padding=pad)

    exact = theirs()[0].flatten(1).T  # [pixels, outputs]
    side = (size + 2 * pad - kernel) // stride + 1
    numbers = np.array(
        [
            *(channels, *x.stride()[:2], 0, *x.stride()[2:]),
            *(1, size, size, 1, side, side, 1, kernel, kernel),
            *(1, stride, stride, 0, pad, pad, 1, 1, 1, 0),
        ]
    )
    packed = pack_conv(w)
    columns = packed.shape[1] * 16
    out = torch.empty(side * side, columns)
    need = library.conv_scratch(ctypes.c_int64(ROWS_PER_TASK), ctypes.c_int64(channels))

    def task(index: int) -> None:
        begin = index * ROWS_PER_TASK
        end = min(side * side, begin + ROWS_PER_TASK)
        parts = (x, numbers, begin, end, packed, 0, columns // 16, out[begin:], columns)
        call(library.run_conv_rows_f32, *parts, scratch_of_thread(need))

    return Contest(
        name=f"conv {size}x{size} {channels}->{outputs} {kernel}x{kernel}/{stride} "
        f"{'NHWC' if channels_last else 'NCHW'}",
        gflop=2e-9 * exact.numel() * channels * kernel**2,
        torch_op=theirs,
        tasks=-(-side * side // ROWS_PER_TASK),
        task=task,
        error=lambda: out[:, :outputs] - exact,
    )


_SCRATCH: dict[tuple[int, int], np.ndarray] = {}


def scratch_of_thread(num_bytes: int) -> np.ndarray:
    key = (threading.get_ident(), num_bytes)
    if key not in _SCRATCH:
        _SCRATCH[key] = poisoned_scratch(num_bytes)
    return _SCRATCH[key]


def compete(contest: Contest, pool: Pool, clock: Callable[[], float], rounds: int) -> float:
    reference = contest.torch_op()
    pool.run(contest.tasks, contest.task)
    error = float(contest.error().abs().max() / reference.float().abs().max())
    assert error <= TOLERANCE, f"{contest.name}: off by {error:.2e} of the largest output"
    flush = torch.empty(16 << 20)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, taken in (
            (contest.torch_op, times[0]),
            (lambda: pool.run(contest.tasks, contest.task), times[1]),
        ):
            flush.fill_(0)
            start = clock()
            run()
            taken.append(clock() - start)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    theirs, ours = (contest.gflop / statistics.median(t) for t in times)
    print(
        f"{contest.name:44s} torch {theirs:6.0f}  ours {ours:6.0f} GFLOP/s  ratio {ratio:.2f}",
        flush=True,
    )
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("kinds", nargs="*", metavar="linear|attention|conv")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pool = Pool(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    contests = {"linear": ("gemm_f32.cpp", linear_contests), "attention": ("attention.cpp", attention_contests),
                "conv": ("conv.cpp", conv_contests)}  # fmt: skip
    print(f"{ISAS[0]}, {options.threads} threads, {options.clock} clock")
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds or contests:
            source, make = contests[kind]
            for contest in make(build_harness(source, ISAS[0], Path(folder))):
                compete(contest, pool, clock, options.rounds)


if __name__ == "__main__":
    main()
