"""matmul → softmax → matmul, x · (1 + erf(x / √2)) / 2, x @ w + b …  →  attention, gelu, linear with a bias.

Exchange formats and hand-written models spell these out. Raised, they get the kernels and the
quantization of the ops they are. `REWRITES` lists them; each is stated in its function's first line.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import Node

from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.rewrite import Rewriter
from svdqc.compiler.passes.base import PassReport
from svdqc.compiler.passes.raise_activation import gelu_erf, gelu_tanh, silu
from svdqc.compiler.passes.raise_attention import attention
from svdqc.compiler.passes.raise_linear import (
    addmm_of_weight,
    bias_into_linear,
    drop_unit_scale,
    matmul_of_weight,
    name_after_module,
)

Rewrite = Callable[[Rewriter, Node], Node | str | None]
"""The value that replaces a node; None where the pattern is not found; a reason where only its end does not fit."""

REWRITES: tuple[Rewrite, ...] = (
    matmul_of_weight,
    addmm_of_weight,
    bias_into_linear,
    name_after_module,
    attention,
    gelu_erf,
    gelu_tanh,
    silu,
    drop_unit_scale,
)


def raise_patterns(program: Program) -> PassReport:
    """Apply each of `REWRITES` to every node, in order."""
    report, rw = PassReport(), Rewriter(program)
    for rewrite in REWRITES:
        for node in list(rw.graph.nodes):
            if node.op != "call_function" or not node.users:
                continue
            with rw.before(node):
                raised = rewrite(rw, node)
            if isinstance(raised, str):
                report.skipped.append(
                    (node.meta.get("source", ""), f"{rewrite.__name__}: {raised}")
                )
            elif raised is not None:
                rw.replace(node, raised)
                report.changed[rewrite.__name__] += 1
        rw.finish()  # later rewrites count readers: dead ones must be gone
    return report
