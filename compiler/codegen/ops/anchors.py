"""Ops with kernels of their own, around which fused regions grow."""

from svdqc.compiler.codegen.ops.registry import declare

LINEAR = "aten.linear.default"
ATTENTION = "aten.scaled_dot_product_attention.default"
CONVOLUTION = "aten.convolution.default"
BMM = "aten.bmm.default"
QUANTIZE_S4 = "svdq.quantize_s4.default"
LINEAR_S4 = "svdq.linear_s4.default"

declare("anchor", LINEAR, ATTENTION, CONVOLUTION, BMM, LINEAR_S4)
# A quantization is the end of a row program: it fuses into the region that computes its rows.
declare("rows", QUANTIZE_S4)
