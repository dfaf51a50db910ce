"""Threads: same bits on any number, sessions side by side, no allocation in a warm run."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.runtime import tiny

from svdqc.runtime import Model, load
from svdqc.runtime.library import library_path

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def long_artifact(code: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two launches 200 times over: enough meetings of threads for a race to show."""
    plan = tiny.make_plan()
    path = tmp_path_factory.mktemp("long") / "long.svdq"
    tiny.write(path, code, replace(plan, launches=plan.launches * 200))
    return path


def given(batch: int, rows: int = 64) -> dict[str, object]:
    x = np.random.default_rng(batch).standard_normal((batch, rows), dtype=np.float32)
    return {"x": x, "gate": [np.zeros(batch, np.int64)]}


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads__same_bits(long_artifact: Path, threads: int) -> None:
    with load(long_artifact, trust=True, threads=threads) as model:
        for repeat in range(30):
            inputs = given(1 + repeat % 8)
            sample, total = tiny.reference(inputs["x"])  # type: ignore[arg-type]
            out = model(**inputs)
            np.testing.assert_array_equal(out.sample, sample)
            np.testing.assert_array_equal(out.total, total)


def hammer(model: Model, repeats: int) -> bool:
    right = True
    for repeat in range(repeats):
        inputs = given(1 + repeat % 8, 4 * (1 + repeat % 16))
        right &= np.array_equal(model(**inputs).sample, tiny.reference(inputs["x"])[0])  # type: ignore[arg-type]
    return right


def test_threads__sessions_side_by_side(long_artifact: Path) -> None:
    first = load(long_artifact, trust=True, threads=2)
    models = [first, first.fork(), first.fork(threads=1), first.fork(threads=3)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(hammer, models, [20] * 4))


def test_threads__one_session_from_many(long_artifact: Path) -> None:
    model = load(long_artifact, trust=True, threads=2)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(hammer, [model] * 4, [20] * 4))


def test_threads__session_outlives_its_model_object(artifact: Path) -> None:
    fork = load(artifact, trust=True).fork()  # the first model is gone
    assert hammer(fork, 3)


def test_threads__floating_point_mode_of_the_caller_does_not_matter(artifact: Path) -> None:
    torch = pytest.importorskip("torch")
    tiny_number = np.float32(1e-39)  # subnormal
    inputs = {"x": np.full((1, 4), tiny_number), "gate": [np.zeros(1, np.int64)]}
    model = load(artifact, trust=True, threads=1)
    expected = model(**inputs).total.copy()
    assert expected[0] != 0
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        flushed = model(**inputs).total
    finally:
        torch.set_flush_denormal(False)
    assert flushed.tobytes() == expected.tobytes()


COUNTER = r"""
// Counts this process's allocations during warm runs, the runtime's included: symbols here come first.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "svdq.h"
extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
static volatile int counting; static volatile long count;
void* malloc(size_t n) { if (counting) ++count; return __libc_malloc(n); }
void* calloc(size_t n, size_t m) { if (counting) ++count; return __libc_calloc(n, m); }
void* realloc(void* p, size_t n) { if (counting) ++count; return __libc_realloc(p, n); }
static float x[8 * 64], y[8 * 64], total[8]; static int64_t gate[8];
static int run(svdq_session* s, int64_t b, int64_t r) {
  svdq_tensor in[2] = {{"gate.0", gate, SVDQ_I64, 1, {b}}, {"x", x, SVDQ_F32, 2, {b, r}}};
  svdq_tensor out[2] = {{NULL, y, SVDQ_F32, 2, {b, r}}, {NULL, total, SVDQ_F32, 1, {b}}};
  return svdq_run(s, in, 2, out, 2);
}
int main(int argc, char** argv) {
  svdq_model* m; svdq_session* s; svdq_session_options o = {sizeof o, 2, 1};
  if (argc < 2 || svdq_open(argv[1], SVDQ_TRUST_CODE, &m) || svdq_session_create(m, &o, &s) || run(s, 8, 64)) {
    fprintf(stderr, "%s\n", svdq_last_error()); return 1;
  }
  free(malloc(1)); counting = 1; free(malloc(1)); counting = 0;
  if (count != 1) { fprintf(stderr, "the counter does not count\n"); return 2; }
  count = 0; counting = 1;
  for (int i = 0; i < 50; ++i) if (run(s, 1 + i % 8, 4 + 4 * (i % 16))) return 3;
  counting = 0;
  printf("%ld\n", count);
  svdq_session_destroy(s); svdq_close(m); return 0;
}
"""


def test_threads__no_allocation_in_a_warm_run(long_artifact: Path, tmp_path: Path) -> None:
    """Neither with the dims of the run before nor with others."""
    compiler = shutil.which("gcc") or shutil.which("cc") or "cc"
    (tmp_path / "count.c").write_text(COUNTER)
    library = library_path()
    subprocess.run(
        [
            compiler,
            "-O1",
            "-fno-builtin",
            f"-I{tiny.INCLUDE}",
            "count.c",
            str(library),
            "-ldl",
            "-o",
            "count",
        ],
        cwd=tmp_path,
        check=True,
    )
    done = subprocess.run(
        [tmp_path / "count", long_artifact],
        env={"LD_LIBRARY_PATH": str(library.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0\n"
