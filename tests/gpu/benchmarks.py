"""Quantized linears at the shapes of FLUX.1-dev beside cuBLAS through PyTorch, in turn, in the same process.

int4 at every shape; fp8 where the GPU has tensor cores for it, beside cuBLASLt's (torch._scaled_mm); int8 and w4a8 at
one. Rank 32 and bias are in the products. Times are of launches, between events; the median of runs. Correctness
first: a sample of rows against the reference ops.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 4608  # tokens of 1024 x 1024 pixels and of the text
SHAPES = ((9216, 3072), (3072, 3072), (12288, 3072), (3072, 12288))  # N, K
SMALL_ROWS = (1, 16)
RANK, GROUP = 32, 64
MULTIPLIED = ("w_multiplier",)
"""What w4a8's weight has beside the others'."""
LARGEST_ERROR = {"int4": 1e-3, "int8": 1e-3, "w4a8": 1e-3, "fp8": 4e-3}
"""Of a result as a whole. Tensor cores keep some 14 bits of sums of E4M3, 128 k at a time: 8 * 2^-13 of the sum of
their magnitudes, a few times what random signs leave of it; but errors have random signs, too."""
RUNS, WARMUP = 15, 3
SECONDS_PER_SHAPE = 45.0


def measure(step: Any, deadline: float) -> None:
    """Fill in a Step of check.py: a row per shape. x_bf16 = time of that baseline over ours: above 1 ours is faster."""
    import torch

    if not torch.cuda.is_available():
        step.note = "torch has no CUDA here"
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    wrong = 0
    for precision, m, n, k in _cases():
        if time.monotonic() + SECONDS_PER_SHAPE > deadline:
            step.note = "stopped: no time left"
            break
        row: dict[str, Any] = {"precision": precision, "M": m, "N": n, "K": k}
        try:
            _measure_one(row, precision, m, n, k)
        except Exception as error:  # the other shapes are measured all the same
            row["why"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
            wrong += 1
        step.rows.append(row)
        print("  " + ", ".join(f"{k}={v}" for k, v in row.items()), flush=True)
    wrong += sum(row.get("error", 0.0) > LARGEST_ERROR[row["precision"]] for row in step.rows)
    step.state = "failed" if wrong else "passed" if step.rows else "skipped"


def _cases() -> list[tuple[str, int, int, int]]:
    """Precision, rows, columns, depth; what matters most first."""
    from tests.gpu.device_kernels import OnGpu

    has_fp8 = {"e4m3", "wgmma_e4m3"} & OnGpu.get().target.tensor_ops
    cases = [("int4", ROWS, n, k) for n, k in SHAPES]
    cases += [("fp8", ROWS, n, k) for n, k in SHAPES if has_fp8]
    cases += [("int4", m, *SHAPES[0]) for m in SMALL_ROWS]
    return cases + [(precision, ROWS, *SHAPES[0]) for precision in ("int8", "w4a8")]


def _measure_one(row: dict[str, Any], precision: str, m: int, n: int, k: int) -> None:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        model, weights = linear_artifact(Path(folder) / "linear.svdq", precision, m, n, k)
        x = torch.randn(m, k, device="cuda")
        row["error"] = _error(model(x=x)[0], x, precision, weights)
        launches = _launch_times(model, x)
        model.close()
    row["ours_us"] = sum(launches.values())
    row["product_us"] = sum(us for name, us in launches.items() if "quantize" not in name)
    baselines = {"bf16": _bf16(x, weights), "int8": _int8(m, n, k), "fp8": _fp8(m, n, k)}
    for name, call in baselines.items():
        if call is None:
            continue
        try:
            row[f"{name}_us"] = _time_us(call)
            row[f"x_{name}"] = row[f"{name}_us"] / row["ours_us"]
            row[f"product_x_{name}"] = row[f"{name}_us"] / row["product_us"]
        except RuntimeError as error:  # a baseline this build of PyTorch does not have
            row[f"{name}_us"] = str(error).split("\n")[0][:60]
    row["TOPs"] = 2e-6 * m * n * k / row["product_us"]


def _weights(precision: str, n: int, k: int) -> dict[str, Any]:
    """Random operands of one linear beside its input."""
    import torch

    made = torch.Generator().manual_seed(n + k)
    low, high = (-8, 8) if precision in ("int4", "w4a8") else (-127, 128)
    codes = torch.randint(low, high, (n, k), generator=made, dtype=torch.int8)
    if precision == "fp8":
        codes = codes.to(torch.float8_e4m3fn).view(torch.uint8)
    groups = k // GROUP if precision == "int4" else 1
    more = {}
    if precision == "w4a8":
        integers = torch.randint(-15, 16, (n, k // GROUP), generator=made, dtype=torch.int8)
        more["w_multiplier"] = integers
    return {
        "inv_smooth": torch.rand(k, generator=made) + 0.5,
        "down": (torch.randn(RANK, k, generator=made) / k**0.5).bfloat16(),
        "up": (torch.randn(n, RANK, generator=made) / RANK**0.5).bfloat16(),
        "w_codes": codes,
        "w_scale": (0.02 * torch.rand(n, groups, generator=made)).bfloat16(),
        "bias": torch.randn(n, generator=made),
        **more,
    }


def _ops(precision: str, k: int) -> tuple[Any, tuple[Any, ...], Any, tuple[Any, ...]]:
    """The quantization and the product of a linear, each with its attributes."""
    from svdqc.compiler.quantize import ops, ops_formats

    if precision == "int4":
        return ops.quantize_s4, (GROUP, "signed8", False, 0.0), ops.linear_s4, ()
    kind = (
        ("absmax", False, 0.0, "e4m3") if precision == "fp8" else ("symmetric", False, 0.0, "int")
    )
    return ops_formats.quantize, (k, *kind, 1.0), ops_formats.linear_coded, (precision, 1.0)


def linear_artifact(
    path: Path, precision: str, m: int, n: int, k: int
) -> tuple[Any, dict[str, Any]]:
    """(loaded model x [m, k] f32 → y [m, n] f32, its weights): quantize, product, branch of rank 32, bias."""
    import operator

    import torch
    from tests.compiler.programs import ProgramBuilder
    from tests.gpu.device_kernels import OnGpu

    import svdqc
    from svdqc.compiler.artifact.format import Variant
    from svdqc.compiler.artifact.write import ArtifactTensor, write_artifact
    from svdqc.compiler.codegen.cuda.backend import CudaBackend
    from svdqc.compiler.codegen.lower import lower
    from svdqc.compiler.codegen.scalar import DTYPE_NAMES
    from svdqc.compiler.passes.fuse import GPU_TRAITS, fuse
    from svdqc.compiler.passes.materialize import materialize
    from svdqc.compiler.targets.cuda_build import build_cuda
    from svdqc.compiler.targets.layouts import pack

    target, weights = OnGpu.get().target, _weights(precision, n, k)
    quantize, of_input, linear, of_product = _ops(precision, k)
    b = ProgramBuilder()
    x_node = b.input(torch.zeros(m, k))
    nodes = {name: b.weight(name, value) for name, value in weights.items()}
    coded = b.call(quantize, x_node, nodes["inv_smooth"], nodes["down"], *of_input)
    parts = [b.call(operator.getitem, coded, i) for i in range(3)]
    of_layer = [nodes[name] for name in ("w_codes", "w_scale", "up", "bias")]
    of_layer += [*of_product, *(nodes[name] for name in MULTIPLIED if name in nodes)]
    y = b.call(linear, *parts, *of_layer)
    program = b.finish(y)
    materialize(program)
    lowered = lower(program, fuse(program, GPU_TRAITS), backend=CudaBackend(target))

    def load(planned: Any) -> np.ndarray[Any, Any]:
        packed = pack(planned.layout, program.weights.load(planned.name))
        flat: np.ndarray[Any, Any] = packed.reshape(-1).view(torch.uint8).numpy()
        return flat

    tensors = [
        ArtifactTensor(f"{p.name}#{p.layout}", DTYPE_NAMES[p.dtype], p.shape, p.layout, p.num_bytes,
                       lambda p=p: load(p))  # type: ignore[misc]
        for p in lowered.tensors
    ]  # fmt: skip
    variant = Variant(target.name, (), build_cuda(lowered.kernels, target), lowered.plan)
    write_artifact(
        path,
        name="linear",
        producer="svdqc gpu-check",
        tensors=tensors,
        variants=[variant],
        graph=b"",
        quantization={},
        source_digest="0" * 64,
        meta={},
    )
    model = svdqc.load(path, device="cuda:0", trust=True, profile=True)
    port = model.inputs[0].name
    return _Renamed(model, port), weights


class _Renamed:
    """The model with its one input called x."""

    def __init__(self, model: Any, port: str) -> None:
        self.model, self.port = model, port

    def __call__(self, x: Any) -> Any:
        return self.model(**{self.port: x})

    def close(self) -> None:
        self.model.close()


def _error(y: Any, x: Any, precision: str, weights: dict[str, Any]) -> float:
    """Relative error of some rows against the reference ops, on the CPU."""
    import torch

    rows = torch.linspace(0, len(x) - 1, min(8, len(x))).long()
    part = x[rows.to(x.device)].cpu()
    quantize, of_input, linear, of_product = _ops(precision, part.shape[1])
    coded = quantize(part, weights["inv_smooth"], weights["down"], *of_input)
    of_layer = [weights[name] for name in ("w_codes", "w_scale", "up", "bias")]
    of_layer += [*of_product, *(weights[name] for name in MULTIPLIED if name in weights)]
    wanted = linear(*coded, *of_layer).double()
    found = y[rows.to(y.device)].cpu().double()
    return float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))


def _launch_times(model: Any, x: Any) -> dict[str, float]:
    """Median microseconds of each launch, by "index kernel"."""
    import torch

    times: dict[str, list[float]] = {}
    for turn in range(RUNS + WARMUP):
        model(x=x)
        torch.cuda.synchronize()
        for i, launch in enumerate(model.model.profile()):
            if turn >= WARMUP:
                times.setdefault(f"{i} {launch.kernel}", []).append(launch.microseconds)
    return {name: float(np.median(values)) for name, values in times.items()}


def _bf16(x: Any, weights: dict[str, Any]) -> Callable[[], Any]:
    import torch

    half = x.bfloat16()
    w = torch.randn(weights["w_codes"].shape, device="cuda", dtype=torch.bfloat16)
    bias = weights["bias"].cuda().bfloat16()
    return lambda: torch.nn.functional.linear(half, w, bias)


def _int8(m: int, n: int, k: int) -> Callable[[], Any] | None:
    import torch

    if m <= 16:  # torch._int_mm takes more rows only
        return None
    a = torch.randint(-128, 128, (m, k), device="cuda", dtype=torch.int8)
    b = torch.randint(-128, 128, (n, k), device="cuda", dtype=torch.int8).t()
    return lambda: torch._int_mm(a, b)


def _fp8(m: int, n: int, k: int) -> Callable[[], Any] | None:
    import torch

    if torch.cuda.get_device_capability() < (8, 9) or m % 16:
        return None
    a = torch.randn(m, k, device="cuda").to(torch.float8_e4m3fn)
    b = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn).t()
    one = torch.ones((), device="cuda")
    return lambda: torch._scaled_mm(a, b, one, one, out_dtype=torch.bfloat16)


def _time_us(call: Callable[[], Any]) -> float:
    """Median time between events around one call, the device kept busy while the host prepares it."""
    import torch

    times = []
    for turn in range(RUNS + WARMUP):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(200_000)  # cycles: longer than launching takes
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if turn >= WARMUP:
            times.append(1e3 * begin.elapsed_time(end))
    return float(np.median(times))
