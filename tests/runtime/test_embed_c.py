"""examples/embed_c: the C program against an artifact whose pictures are known beforehand."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.runtime import tiny

from svdqc.compiler.artifact.format import Variant
from svdqc.compiler.artifact.write import write_artifact
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.plan.records import Buffer, BufferArg, KernelEntry, Launch, Plan, TensorPort
from svdqc.compiler.plan.verify import port_bytes
from svdqc.runtime import trust
from svdqc.runtime.library import library_path

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "embed_c" / "draw.c"
INPUTS = {
    "hidden_states": (2, 64, 48),
    "encoder_hidden_states": (2, 4, 128),
    "pooled_projections": (2, 128),
    "timestep": (2,),
    "img_ids": (64, 3),
    "txt_ids": (4, 3),
}

# v = (x - goal) / t takes Euler's method to `goal` exactly. The goal of a token is pooled[0] where its row is
# even and pooled[1] where it is odd, so the ids are used as well.
KERNEL = r"""
#include "svdq_kernel.h"
#include <string.h>
#if BF16
typedef uint16_t T;
static float get(const void* p, int64_t i) {
  uint32_t w = (uint32_t)((const T*)p)[i] << 16; float v; memcpy(&v, &w, 4); return v;
}
static void put(void* p, int64_t i, float v) {
  uint32_t w; memcpy(&w, &v, 4); ((T*)p)[i] = (T)((w + 0x8000) >> 16);
}
#else
static float get(const void* p, int64_t i) { return ((const float*)p)[i]; }
static void put(void* p, int64_t i, float v) { ((float*)p)[i] = v; }
#endif
extern "C" {
extern SVDQ_KERNEL_EXPORT const uint32_t svdq_code_abi;
const uint32_t svdq_code_abi = SVDQ_KERNEL_ABI;
SVDQ_KERNEL_EXPORT void flow(const svdq_kernel_args* a, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / 64, token = task % 64;
    const float goal = get(a->buffers[2], b * 128 + (int64_t)get(a->buffers[4], token * 3 + 1) % 2);
    for (int64_t i = 0; i < 48; ++i)
      put(a->buffers[6], task * 48 + i, (get(a->buffers[0], task * 48 + i) - goal) / get(a->buffers[3], b));
  }
}
}
"""


def write_flow(path: Path, folder: Path, dtype: str) -> None:
    ports = tuple(TensorPort(n, dtype, tuple(map(IntExpr.of, s))) for n, s in INPUTS.items())
    sample = TensorPort("sample", dtype, ports[0].shape)
    zero = IntExpr.of(0)
    buffers = [Buffer("input", port_bytes(p), i) for i, p in enumerate(ports)]
    buffers.append(Buffer("output", port_bytes(sample), 0))
    args = tuple(
        BufferArg(i, zero, b.num_bytes, "write" if b.kind == "output" else "read")
        for i, b in enumerate(buffers)
    )
    plan = Plan(
        dims=(),
        inputs=ports,
        outputs=(sample,),
        buffers=tuple(buffers),
        kernels=(KernelEntry("flow"),),
        launches=(Launch(0, args, (), IntExpr.of(128), zero, "flow"),),
        arena_bytes=0,
    )
    code = tiny.compile_code(folder, KERNEL, (f"-DBF16={int(dtype == 'bf16')}",))
    written = write_artifact(
        path,
        name="flow",
        producer="svdqc tests",
        tensors=[],
        variants=[Variant("cpu:portable", (), code, plan)],
        graph=b"",
        quantization={},
        source_digest="",
        meta={},
    )
    trust.register(*written.trust_digests)


@pytest.fixture(scope="module")
def draw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draw")
    compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{tiny.INCLUDE}"]
    command = [compiler, *flags, str(SOURCE), str(library_path()), "-lm", "-o", "draw"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "draw"


def run(draw: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library_path().parent)}
    return subprocess.run(
        [str(draw), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_embed_c__is_short() -> None:
    assert len(SOURCE.read_text().splitlines()) < 150


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1), ("bf16", 4)])
def test_embed_c__draws(draw: Path, tmp_path: Path, dtype: str, tolerance: int) -> None:
    write_flow(tmp_path / "flow.svdq", tmp_path, dtype)
    words = np.zeros((2, 4, 128), np.float32)
    words[0, :, 0], words[0, :, 1] = 0.25, -0.5  # without the prompt
    words[1, :, 0], words[1, :, 1] = -0.125, 0.125  # with it
    words.tofile(tmp_path / "prompt.bin")
    done = run(draw, tmp_path / "flow.svdq", tmp_path / "prompt.bin", tmp_path / "a.ppm", 7)
    assert done.returncode == 0, done.stderr
    data = (tmp_path / "a.ppm").read_bytes()
    assert data.startswith(b"P6 256 256 255\n")
    picture = np.frombuffer(data[len(b"P6 256 256 255\n") :], np.uint8).reshape(256, 256, 3)
    goals = words[0, 0, :2] + 2 * (words[1, 0, :2] - words[0, 0, :2])  # guidance 2: [-0.5, 0.75]
    rows = np.repeat(goals[np.arange(8) % 2], 32)  # a token is 4 pixels, a pixel is 8 wide
    expected = np.broadcast_to((rows[:, None, None] + 1) * 127.5, picture.shape)
    assert np.abs(picture - expected).max() <= tolerance


def test_embed_c__says_what_is_wrong(draw: Path, artifact: Path, tmp_path: Path) -> None:
    assert "usage" in run(draw).stderr
    missing = run(draw, tmp_path / "no.svdq", "p", "a.ppm")
    assert missing.returncode == 2
    assert "cannot open" in missing.stderr
    untrusted = run(draw, artifact, "p", "a.ppm")
    assert untrusted.returncode == 2
    assert "SVDQ_TRUST_CODE" in untrusted.stderr
    write_flow(tmp_path / "flow.svdq", tmp_path, "f32")
    assert (
        "not f32 [2, 4, 128]"
        in run(draw, tmp_path / "flow.svdq", artifact.parent / "x", "a").stderr
    )
