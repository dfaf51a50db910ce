"""Our 4-bit linear against the CPU libraries' own, all in one process, taking turns.

    PYTHONPATH=build/dev:. python tests/bench/cpu_linear.py [--threads 2] [--clock wall|cpu] [--rounds 15] [KxN ...]

Ours is the whole op: quantize, rank-32 branch, 4-bit product, bias. A peer whose package is missing is left out.
Outputs are checked before anything is timed; caches are flushed before every call; the table gives the median GFLOP/s
of each shape and the geometric mean of the ratios to torch f32. On a busy machine use --clock cpu --threads 1:
processor time, no spinning.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.kernels.cpu_build import ISA_FLAGS, ISAS, build_harness
from torch import Tensor

from svdqc.compiler.quantize.ranges import ActivationFormat
from svdqc.compiler.quantize.reference import dequantize_weight, linear_s4, quantize_activation
from svdqc.compiler.targets.cpu_layouts import pack_bf16_scale_n16, pack_s4_n16k4
from svdqc.compiler.targets.cpu_layouts_f32 import pack_gemm_bf16dot, pack_gemm_w16

SHAPES = ("1152x1152", "1152x4608", "4608x1152", "3072x3072", "3072x12288")
SOURCE = Path(__file__).resolve().parent / "cpp" / "linear_s4.cpp"
GROUP, RANK, SEED = 64, 32, 0
ACTIVATION = ActivationFormat(group_size=GROUP, range="signed8")
Op = Callable[[], object]


class Layer:
    """One linear, quantized the plain way: signed-8 weight codes, a random rank-32 branch."""

    def __init__(self, rows: int, k: int, n: int) -> None:
        generator = torch.Generator().manual_seed(SEED)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.rows, self.k, self.n = rows, k, n
        self.x, self.bias = normal(rows, k), normal(n)
        self.inv_smooth = torch.rand(k, generator=generator) + 0.5
        self.lora_down = (normal(RANK, k) / math.sqrt(k)).to(torch.bfloat16)
        self.lora_up = (normal(n, RANK) / math.sqrt(RANK)).to(torch.bfloat16)
        grouped = normal(n, k // GROUP, GROUP) / math.sqrt(k)
        self.w_scale = (grouped.abs().amax(-1) / 7).to(torch.bfloat16)
        codes = (grouped / self.w_scale.float()[..., None]).round_().clamp_(-8, 7)
        self.w_codes = codes.to(torch.int8).reshape(n, k)

    def weight(self) -> Tensor:
        """What all of it stands for, [n, k] f32."""
        w_hat = dequantize_weight(self.w_codes, self.w_scale)
        return (w_hat + self.lora_up.float() @ self.lora_down.float()) * self.inv_smooth

    def expected(self) -> Tensor:
        codes, scale, low = quantize_activation(self.x, self.inv_smooth, self.lora_down, ACTIVATION)
        parts = (self.w_codes, self.w_scale, self.lora_up, self.bias)
        return linear_s4(codes, scale, low, *parts)


class LinearArgs(ctypes.Structure):
    """`Linear` of cpp/linear_s4.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "k", "n", "rank")),
        *((name, ctypes.c_void_p) for name in ("x", "inv_smooth", "w", "w_scale")),
        *((name, ctypes.c_void_p) for name in ("lora_down", "lora_up", "bias", "out")),
        *((name, ctypes.c_int64) for name in ("block_rows", "threads", "bf16_dot", "rotate")),
    )


def ours(
    layer: Layer, library: ctypes.CDLL, threads: int, block_rows: int, bf16_dot: bool
) -> tuple[Op, Tensor]:
    pack_lora = pack_gemm_bf16dot if bf16_dot else pack_gemm_w16
    tensors = {
        "x": layer.x,
        "inv_smooth": layer.inv_smooth,
        "w": pack_s4_n16k4(layer.w_codes),
        "w_scale": pack_bf16_scale_n16(layer.w_scale),
        "lora_down": pack_lora(layer.lora_down),
        "lora_up": pack_lora(layer.lora_up),
        "bias": layer.bias,
        "out": torch.empty(layer.rows, layer.n),
    }
    args = LinearArgs(layer.rows, layer.k, layer.n, RANK)
    args.block_rows, args.threads, args.bf16_dot = block_rows, threads, bf16_dot
    for name, tensor in tensors.items():
        setattr(args, name, tensor.data_ptr())

    def run() -> object:
        library.linear_s4(ctypes.byref(args))
        return tensors  # and so kept alive

    run()
    return run, tensors["out"]


def check_ours(layer: Layer, out: Tensor, bf16_dot: bool) -> None:
    """Only float error: one rounding a term, and with bf16_dot inputs of the branch rounded to 8 bits twice."""
    codes, scale, _ = quantize_activation(layer.x, layer.inv_smooth, layer.lora_down, ACTIVATION)
    want = layer.expected()
    product = (
        dequantize_weight(codes, scale).abs()
        @ dequantize_weight(layer.w_codes, layer.w_scale).abs().T
    )
    x_hat = (layer.x * layer.inv_smooth).abs()
    branch = x_hat @ layer.lora_down.float().abs().T @ layer.lora_up.float().abs().T
    bound = 2.0**-24 * ((layer.k // GROUP + RANK + 4) * product + (layer.k + 2 * RANK) * branch)
    if bf16_dot:
        bound = bound + 2.0**-8 * 1.01 * 2 * branch
    assert bool(((out - want).abs() <= bound).all()), float((out - want).abs().max())


def torch_dynamic_int8(layer: Layer, weight: Tensor) -> Op:
    linear = torch.nn.Linear(layer.k, layer.n)
    linear.weight, linear.bias = torch.nn.Parameter(weight), torch.nn.Parameter(layer.bias)
    torch.backends.quantized.engine = "onednn"
    quantize: Any = torch.ao.quantization.quantize_dynamic
    quantized = quantize(torch.nn.Sequential(linear), {torch.nn.Linear})
    return lambda: quantized(layer.x)


def torch_int_mm(layer: Layer) -> Op:
    """The bare int8 product, nothing quantized: a ceiling rather than a peer."""
    a = torch.randint(-8, 8, (layer.rows, layer.k), dtype=torch.int8)
    b = layer.w_codes.T.contiguous()
    return lambda: torch._int_mm(a, b)


def openvino_int4(layer: Layer, threads: int) -> Op:
    """Weights int4 in groups of 64, activations 8 bits, quantized on the fly."""
    import openvino as ov
    from openvino import opset13 as ops

    groups = layer.k // GROUP
    grouped = layer.weight().reshape(layer.n, groups, GROUP)
    scale = (grouped.abs().amax(-1, keepdim=True) / 7).half()
    codes = (grouped / scale.float()).round_().clamp_(-8, 7).to(torch.int8).reshape(-1).tolist()
    x = ops.parameter([layer.rows, layer.k], ov.Type.f32)
    w = ov.op.Constant(ov.Type.i4, ov.Shape([layer.n, groups, GROUP]), codes)
    scaled = ops.multiply(ops.convert(w, ov.Type.f16), ops.constant(scale.numpy()))
    matrix = ops.reshape(scaled, ops.constant(np.array([layer.n, layer.k])), False)
    product = ops.matmul(x, ops.convert(matrix, ov.Type.f32), False, True)
    model = ov.Model([ops.add(product, ops.constant(layer.bias.numpy()))], [x])
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
    }
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(layer.x.numpy(), shared_memory=True))

    def run() -> object:
        request.infer()
        return torch.from_numpy(request.get_output_tensor().data)

    return run


def contenders(
    layer: Layer, library: ctypes.CDLL, isa: str, threads: int, block_rows: int
) -> dict[str, Op]:
    """All that can run here, each checked."""
    weight = layer.weight()
    exact = torch.nn.functional.linear(layer.x, weight, layer.bias)
    ops: dict[str, Op] = {
        "torch f32": lambda: torch.nn.functional.linear(layer.x, weight, layer.bias)
    }
    for name, bf16_dot in (("svdqc", False), ("svdqc bf16 branch", True)):
        if bf16_dot and "bf16" not in isa:
            continue
        ops[name], out = ours(layer, library, threads, block_rows, bf16_dot)
        check_ours(layer, out, bf16_dot)
    ops["torch dynamic int8"] = torch_dynamic_int8(layer, weight)
    if importlib.util.find_spec("openvino"):
        ops["openvino int4 a8"] = openvino_int4(layer, threads)
    for name, op in ops.items():
        if name.startswith(("torch dynamic", "openvino")):
            theirs = op()
            assert isinstance(theirs, Tensor)
            error = float((theirs - exact).norm() / exact.norm())
            assert error < 0.2, f"{name}: relative error {error}"
    ops["torch _int_mm"] = torch_int_mm(layer)
    return ops


def measure(ops: dict[str, Op], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each call; the contenders take turns, and every call starts with cold caches."""
    flush = torch.ones(1 << 24)  # 64 MB
    seconds: dict[str, list[float]] = {name: [] for name in ops}
    for turn in range(rounds + 1):
        for name, op in ops.items():
            flush.add_(1)
            start = clock()
            op()
            if turn:  # the first is a warm-up
                seconds[name].append(clock() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=SHAPES, metavar="KxN")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block-rows", type=int, default=48)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--isa", choices=tuple(ISA_FLAGS), default=ISAS[0])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        library = build_harness(str(SOURCE), options.isa, Path(folder))
        for shape in options.shapes:
            k, n = map(int, shape.split("x"))
            layer = Layer(options.rows, k, n)
            ops = contenders(layer, library, options.isa, options.threads, options.block_rows)
            for name, seconds in measure(ops, options.rounds, clock).items():
                operations = 2e-9 * options.rows * k * n
                share = 1 if options.clock == "wall" else options.threads
                rates.setdefault(name, []).append(operations * share / statistics.median(seconds))
    print(
        f"M={options.rows}, {options.threads} threads, {options.isa}, GFLOP/s, median of {options.rounds}"
    )
    print("| K x N | " + " | ".join(options.shapes) + " | x torch f32 |")
    print("|---" * (len(options.shapes) + 2) + "|")
    for name, row in rates.items():
        ratio = statistics.geometric_mean(
            ours / base for ours, base in zip(row, rates["torch f32"], strict=True)
        )
        print(f"| {name} | " + " | ".join(f"{rate:.0f}" for rate in row) + f" | {ratio:.2f} |")


if __name__ == "__main__":
    main()
