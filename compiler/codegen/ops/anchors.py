"""Ops with kernels of their own, around which fused regions grow."""

from torch.fx import Node

from svdqc.compiler.codegen.ops.registry import declare
from svdqc.compiler.ir.rewrite import operands

LINEAR = "aten.linear.default"
ATTENTION = "aten.scaled_dot_product_attention.default"
CONVOLUTION = "aten.convolution.default"
BMM = "aten.bmm.default"
QUANTIZE_S4 = "svdq.quantize_s4.default"
QUANTIZE_S4_PARTS = "svdq.quantize_s4_parts.default"
LINEAR_S4 = "svdq.linear_s4.default"
QUANTIZE = "svdq.quantize.default"
LINEAR_CODED = "svdq.linear_coded.default"
LINEAR_W = "svdq.linear_w.default"

QUANTIZERS = (QUANTIZE_S4, QUANTIZE_S4_PARTS, QUANTIZE)
S4_QUANTIZERS = (QUANTIZE_S4, QUANTIZE_S4_PARTS)
FLOAT_LINEARS = (LINEAR, LINEAR_W)
"""They read rows of floats, which their own kernel may compute."""
CODED_LINEARS = (LINEAR_S4, LINEAR_CODED)
"""They read what a quantizer left in memory."""
LINEARS = (*FLOAT_LINEARS, *CODED_LINEARS)
WEIGHT_OPERAND = {LINEAR: 1, LINEAR_W: 1, LINEAR_S4: 3, LINEAR_CODED: 3}


def num_groups(anchor: Node) -> int:
    """Ranges that an anchor's columns consist of, each computed by itself: a convolution's groups."""
    return int(operands(anchor)[8]) if str(anchor.target) == CONVOLUTION else 1


declare("anchor", *LINEARS, ATTENTION, CONVOLUTION, BMM)
# A quantization is the end of a row program: it fuses into the region that computes its rows.
declare("rows", *QUANTIZERS)
