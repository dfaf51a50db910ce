"""The emoji model, one call of batch 2: each precision against eager PyTorch in bfloat16 and float32, in turn.

Checks first that the artifact computes what its reference does. Compiles into build/bench.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "emoji"))

import torch  # noqa: E402
from draw import MODEL, EagerModel  # noqa: E402
from sampling import Words, model_inputs  # noqa: E402

import svdqc  # noqa: E402
from svdqc.compiler.cli.output import megabytes, print_table  # noqa: E402

FOLDER = ROOT / "build" / "bench"
RUNS = 25
# int4 has the project's bound of a whole model against its reference; unquantized bfloat16 that of its rounding.
MAX_ERROR = {"none": 1e-2, "int4": 1e-2}


def inputs() -> dict[str, Any]:
    hidden, pooled = Words.open(MODEL).encode(["", "milky way"])
    latents = np.random.default_rng(0).standard_normal((2, 64, 48)).astype(np.float32)
    return model_inputs(latents, hidden, pooled, 0.7, 8)


def relative_error(value: torch.Tensor, wanted: torch.Tensor) -> float:
    difference = torch.linalg.vector_norm(value.double() - wanted.double())
    return float(difference / torch.linalg.vector_norm(wanted.double()))


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    eager = {dtype: EagerModel(dtype=dtype) for dtype in ("bfloat16", "float32")}
    feed = eager["bfloat16"].tensors(inputs())
    contestants: dict[str, Callable[[], Any]] = {}
    for dtype, model in eager.items():
        arguments = model.tensors(inputs())
        contestants[f"PyTorch {dtype}"] = lambda m=model, a=arguments: m.module(**a)

    sizes, errors = {}, {}
    for precision, bound in MAX_ERROR.items():
        name, path = f"svdqc {precision}", FOLDER / f"emoji-{precision}.svdq"
        recipe = svdqc.Recipe(precision=precision)
        artifact = svdqc.compile(MODEL / "transformer", feed, output=path, recipe=recipe)
        loaded = svdqc.load(path, threads=torch.get_num_threads())
        wanted = svdqc.reference(path)(**feed)
        errors[name] = relative_error(loaded(**feed)["sample"], wanted["sample"])
        if errors[name] > bound:
            print(
                f"{name}: relative error {errors[name]:.2e} against its reference is above {bound}"
            )
            return 1
        sizes[name] = artifact.num_bytes
        contestants[name] = lambda m=loaded: m(**feed)

    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with torch.inference_mode():
        for turn in range(RUNS + 3):
            for name, call in contestants.items():
                began = time.perf_counter()
                call()
                if turn >= 3:
                    seconds[name].append(time.perf_counter() - began)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    base = medians["PyTorch bfloat16"]
    rows = [
        [
            name,
            f"{base / median:.2f}",
            f"{medians['PyTorch float32'] / median:.2f}",
            f"{1e3 * median:.1f}",
            megabytes(sizes[name]) if name in sizes else "",
            f"{errors[name]:.1e}" if name in errors else "",
        ]
        for name, median in medians.items()
    ]
    columns = ("", "x bf16", "x f32", "median ms", "file", "error against reference")
    print_table(f"{torch.get_num_threads()} threads, {RUNS} runs in turn", columns, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
