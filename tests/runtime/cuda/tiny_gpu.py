"""The tiny model of tests/runtime/tiny.py for a GPU: its two kernels by hand over the intrinsic layer.

The kernels are built for the host (which the fake driver runs), and cubins are headers with nothing behind them.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from tests.runtime import tiny
from tests.runtime.cuda import fake

from svdqc.compiler.artifact.format import Variant
from svdqc.compiler.artifact.write import WrittenArtifact, write_artifact
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.plan.records import KernelEntry, Plan

INCLUDE = fake.REPOSITORY / "templates" / "cuda" / "include"
THREADS, SHARED_BYTES = 64, 4096

SOURCE = r"""
#include "svdq_cuda/kernel.h"
using namespace svdq;

SVDQ_CUDA_KERNEL(scale, 64, 0, 4096, 3, 1) {
  const float* x = (const float*)args.buffers[0];
  const float* w = (const float*)args.buffers[1];
  float* y = (float*)args.buffers[2];
  const int64_t rows = args.scalars[0], b = cta_id();
  for (int64_t r = thread_id(); r < rows; r += num_threads()) y[b * rows + r] = x[b * rows + r] * w[r % 4];
}

SVDQ_CUDA_KERNEL(shift_sum, 64, 0, 4096, 4, 1) {
  const float* x = (const float*)args.buffers[0];
  const float* bias = (const float*)args.buffers[1];
  float* y = (float*)args.buffers[2];
  float* total = (float*)args.buffers[3];
  const int64_t rows = args.scalars[0], b = cta_id();
  float* row = (float*)shared_memory();
  for (int64_t r = thread_id(); r < rows; r += num_threads()) {
    row[r] = x[b * rows + r];
    y[b * rows + r] = row[r] + bias[0];
  }
  cta_sync();
  if (thread_id() == 0) {
    float sum = 0;
    for (int64_t r = 0; r < rows; ++r) sum += row[r];
    total[b] = sum;
  }
}
"""


def build_kernels(folder: Path) -> Path:
    source, library = folder / "kernels.cu", folder / "kernels.so"
    source.write_text(SOURCE)
    flags = [
        "-std=c++17",
        "-O1",
        "-ffp-contract=off",
        "-fPIC",
        "-shared",
        "-DSVDQ_CUDA_HOST",
        f"-I{INCLUDE}",
    ]
    subprocess.run(
        [fake.compiler(), "-x", "c++", *flags, str(source), "-o", str(library), "-lpthread"],
        check=True,
    )
    return library


def make_plan(repeats: int = 1) -> Plan:
    """tiny's plan with the shapes of blocks; `repeats` times `scale`, each with the same result."""
    plan = tiny.make_plan()
    first, second = (replace(launch, scratch_bytes=IntExpr.of(0)) for launch in plan.launches)
    kernels = tuple(KernelEntry(k.name, THREADS, SHARED_BYTES) for k in plan.kernels)
    return replace(plan, kernels=kernels, launches=(*[first] * repeats, second))


def gpu_variant(capability: int = 80, suffix: str = "", plan: Plan | None = None) -> Variant:
    proved = plan or make_plan()
    code = fake.archive({kernel.name: fake.cubin(capability) for kernel in proved.kernels})
    return Variant(f"cuda:sm_{capability}{suffix}", (), code, proved)


def write(path: Path, *variants: Variant) -> WrittenArtifact:
    return write_artifact(
        path,
        name="tiny",
        producer="svdqc tests",
        tensors=tiny.tensors(),
        variants=list(variants) or [gpu_variant()],
        graph=b"",
        quantization={},
        source_digest="0" * 64,
        meta={},
    )
