"""A tiny model without the compiler: two kernels by hand, a plan by hand, written as a real artifact.

hidden[b, r] = x[b, r] * weight[r % 4]          (arena, in f32)
sample[b, r] = hidden[b, r] + bias              total[b] = sum over r of hidden[b, r]
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from svdqc.compiler.artifact.format import Variant
from svdqc.compiler.artifact.write import ArtifactTensor, WrittenArtifact, write_artifact
from svdqc.compiler.ir.intexpr import IntExpr, symbol
from svdqc.compiler.ir.program import Dim
from svdqc.compiler.plan.records import Buffer, BufferArg, KernelEntry, Launch, Plan, TensorPort

INCLUDE = Path(__file__).resolve().parents[2] / "runtime" / "include"
WEIGHT = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
BIAS = np.array([0.5], np.float32)

SOURCE = r"""
#include "svdq_kernel.h"
extern "C" {
extern SVDQ_KERNEL_EXPORT const uint32_t svdq_code_abi;
const uint32_t svdq_code_abi = SVDQ_KERNEL_ABI;
SVDQ_KERNEL_EXPORT void scale(const svdq_kernel_args* a, int64_t begin, int64_t end) {
  const float* x = (const float*)a->buffers[0]; const float* w = (const float*)a->buffers[1];
  float* y = (float*)a->buffers[2]; const int64_t rows = a->scalars[0];
  for (int64_t b = begin; b < end; ++b)
    for (int64_t r = 0; r < rows; ++r) y[b * rows + r] = x[b * rows + r] * w[r % 4];
}
SVDQ_KERNEL_EXPORT void shift_sum(const svdq_kernel_args* a, int64_t begin, int64_t end) {
  const float* x = (const float*)a->buffers[0]; const float* bias = (const float*)a->buffers[1];
  float* y = (float*)a->buffers[2]; float* total = (float*)a->buffers[3]; const int64_t rows = a->scalars[0];
  float* row = (float*)a->scratch;
  for (int64_t b = begin; b < end; ++b) {
    for (int64_t r = 0; r < rows; ++r) row[r] = x[b * rows + r];
    float sum = 0;
    for (int64_t r = 0; r < rows; ++r) { y[b * rows + r] = row[r] + bias[0]; sum += row[r]; }
    total[b] = sum;
  }
}
}
"""


def compile_code(folder: Path, source: str = SOURCE, flags: tuple[str, ...] = ()) -> bytes:
    """One shared object, as bytes."""
    compiler = shutil.which("g++") or shutil.which("c++") or "c++"
    (folder / "kernels.cpp").write_text(source)
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        "-nostdlib",
        f"-I{INCLUDE}",
        *flags,
    ]
    subprocess.run([*command, "kernels.cpp", "-o", "kernels.so"], cwd=folder, check=True)
    return (folder / "kernels.so").read_bytes()


def make_plan() -> Plan:
    batch, rows = symbol("batch", 1, 8), symbol("rows", 4, 64)
    const = IntExpr.of
    full, zero = batch * rows * 4, const(0)
    return Plan(
        dims=(Dim("batch", 1, 8), Dim("rows", 4, 64, 4)),
        inputs=(TensorPort("x", "f32", (batch, rows)), TensorPort("gate.0", "i64", (batch,))),
        outputs=(TensorPort("sample", "f32", (batch, rows)), TensorPort("total", "f32", (batch,))),
        buffers=(
            Buffer("input", full, 0),
            Buffer("weight", const(16), 0),
            Buffer("arena", full, 0, 64),
            Buffer("weight", const(4), 1),
            Buffer("output", full, 0),
            Buffer("output", batch * 4, 1),
        ),
        kernels=(KernelEntry("scale"), KernelEntry("shift_sum")),
        launches=(
            Launch(
                0,
                (
                    BufferArg(0, zero, full, "read"),
                    BufferArg(1, zero, const(16), "read"),
                    BufferArg(2, zero, full, "write"),
                ),
                (rows,),
                batch,
                zero,
                "block.scale",
            ),
            Launch(
                1,
                (
                    BufferArg(2, zero, full, "read"),
                    BufferArg(3, zero, const(4), "read"),
                    BufferArg(4, zero, full, "write"),
                    BufferArg(5, zero, batch * 4, "write"),
                ),
                (rows,),
                batch,
                rows * 4,
                "block.shift",
            ),
        ),
        arena_bytes=64 + 8 * 64 * 4,
    )


def tensors() -> list[ArtifactTensor]:
    return [
        ArtifactTensor("weight", "f32", (4,), "row_major", 16, lambda: WEIGHT, "block0"),
        ArtifactTensor("bias", "f32", (1,), "row_major", 4, lambda: BIAS, "block1"),
    ]


def write(
    path: Path,
    code: bytes,
    plan: Plan | None = None,
    change: Callable[[Variant], list[Variant]] | None = None,
    meta: dict[str, object] | None = None,
) -> WrittenArtifact:
    variant = Variant("cpu:portable", (), code, plan or make_plan(), {"compiler": "g++"})
    return write_artifact(
        path,
        name="tiny",
        producer="svdqc tests",
        tensors=tensors(),
        variants=change(variant) if change else [variant],
        graph=b'{"nodes":[]}',
        quantization={"precision": "none"},
        source_digest="0" * 64,
        meta=meta if meta is not None else {"text": "ü\n\x01", "scale": 0.5},
    )


def reference(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = x * np.tile(WEIGHT, x.shape[1] // 4)
    total = np.zeros(len(x), np.float32)
    for r in range(x.shape[1]):
        total += hidden[:, r]
    return hidden + BIAS, total


def with_launch(plan: Plan, index: int, **changes: object) -> Plan:
    launches = list(plan.launches)
    launches[index] = replace(launches[index], **changes)  # type: ignore[arg-type]
    return replace(plan, launches=tuple(launches))
