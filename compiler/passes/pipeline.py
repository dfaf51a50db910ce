"""The passes, in order. Each line says what the graph is after it."""

from __future__ import annotations

from collections.abc import Callable

from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.base import Pass, PassReport
from svdqc.compiler.passes.decompose import decompose
from svdqc.compiler.passes.interleave_halves import interleave_halves
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.passes.merge_linears import merge_linears
from svdqc.compiler.passes.raise_patterns import raise_patterns
from svdqc.compiler.passes.simplify import simplify
from svdqc.compiler.passes.sink_concat import sink_concat
from svdqc.compiler.passes.widen import widen

# canonical: what quantization works on
CANONICALIZE: tuple[Pass, ...] = (
    simplify,  # no identities, no equal ops, constants folded
    raise_patterns,  # attention, gelu, silu and biased linears are ops again
    decompose,  # norms, softmax and splits are reductions, pointwise ops and slices
    widen,  # activations are float32
    simplify,
)

# lowered: what regions are made of
LOWER: tuple[Pass, ...] = (
    merge_linears,  # one product per input and block
    sink_concat,  # work between a concatenation and an attention belongs to the parts
    simplify,
    materialize,  # what must lie in memory says so
)

# lowered for GPUs, which cut products along their columns: once linears are merged, gate and value lie in one tile
LOWER_GPU: tuple[Pass, ...] = (merge_linears, interleave_halves, *LOWER[1:])

Observer = Callable[[str, Program, PassReport], None]


def run_passes(program: Program, passes: tuple[Pass, ...], observe: Observer | None = None) -> None:
    """Apply passes in order; `observe` sees the program after each (for dumps and checks)."""
    for compiler_pass in passes:
        report = compiler_pass(program)
        if observe is not None:
            observe(compiler_pass.__name__, program, report)
