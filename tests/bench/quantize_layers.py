"""Error of svdqc against DeepCompressor with GPTQ over sizes, severities, shapes and formats, in one run.

    python -m tests.bench.quantize_layers            # the sweep; about ten minutes on two cores
    python -m tests.bench.quantize_layers --time     # one 3072 x 3072 layer with 2,048 tokens: seconds, and peak memory

Errors are relative output errors, in percent, on 1,024 test tokens that no quantizer has seen.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

from tests.quantize import baseline_deepcompressor as baseline
from tests.quantize.layers import LAYER_A, LAYER_B, MILD, SEVERE, Severity, make_layer

from svdqc.compiler.quantize.linear import LinearSamples, quantize_linear
from svdqc.compiler.quantize.recipe import Recipe

FORMATS = {"int4": baseline.INT4, "nvfp4": baseline.NVFP4}


@dataclass(frozen=True)
class Case:
    name: str
    out_features: int
    in_features: int
    severity: Severity
    seed: int = 0


CASES = (
    Case("A", 768, 768, LAYER_A),
    Case("B", 512, 512, LAYER_B),
    Case("A small", 256, 256, LAYER_A, 1),
    Case("B small", 256, 256, LAYER_B, 2),
    Case("A tall", 768, 256, LAYER_A, 3),
    Case("B tall", 768, 256, LAYER_B, 4),
    Case("A wide", 256, 768, LAYER_A, 5),
    Case("B wide", 256, 768, LAYER_B, 6),
    Case("mild", 512, 512, MILD, 7),
    Case("severe", 512, 512, SEVERE, 8),
)


def sweep() -> None:
    print(
        f"{'layer':<10}{'shape':>10} {'format':<7}{'default':>9}{'+ GPTQ':>9}{'ours':>9}{'ratio':>8}{'no data':>9}"
    )
    for case in CASES:
        layer = make_layer(case.out_features, case.in_features, case.severity, seed=case.seed)
        w, x, test = layer.weight, layer.calibration, layer.test
        for precision, fmt in FORMATS.items():
            plain = baseline.default(w, x, 32, fmt)
            recipe = Recipe(precision=precision)
            models = (
                plain,
                baseline.with_gptq(plain, w, x),
                quantize_linear(w, LinearSamples(x), recipe),
                quantize_linear(w, None, recipe),
            )
            default, gptq, ours, data_free = (
                100 * baseline.relative_error(m, w, test) for m in models
            )
            shape = f"{case.out_features}x{case.in_features}"
            print(
                f"{case.name:<10}{shape:>10} {precision:<7}{default:9.3f}{gptq:9.3f}{ours:9.3f}"
                f"{ours / gptq:8.3f}{data_free:9.3f}",
                flush=True,
            )


def measure_time() -> None:
    layer = make_layer(3072, 3072, LAYER_B, test_tokens=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for precision in FORMATS:
        start, cpu = time.monotonic(), time.process_time()
        quantized = quantize_linear(
            layer.weight, LinearSamples(layer.calibration), Recipe(precision=precision)
        )
        seconds, cpu = time.monotonic() - start, time.process_time() - cpu
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        print(
            f"3072x3072 {precision}: {seconds:.1f} s, {cpu:.1f} s of processor, "
            f"{peak:.2f} GiB more, error {100 * quantized.metrics['error']:.2f} %"
        )


if __name__ == "__main__":
    measure_time() if "--time" in sys.argv[1:] else sweep()
