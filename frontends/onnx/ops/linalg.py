"""Matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.registry import onnx_op


@onnx_op("MatMul")
def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    if not a.dtype.is_floating_point and not a.dtype.is_complex:
        return torch.matmul(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)
    if 1 in call.node.constant_inputs and b.dim() == 2 and a.dim() >= 2:
        # A weight: what PyTorch calls a linear layer.
        return F.linear(a, b.t())
    return torch.matmul(a, b)


@onnx_op("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    a = a.t() if call.flag("transA") else a
    weight = b if call.flag("transB") else b.t()  # [N, K]
    if not a.dtype.is_floating_point:
        product = torch.matmul(a.to(torch.int64), weight.t().to(torch.int64)) * int(alpha)
        return (product if c is None else product + int(beta) * c).to(a.dtype)
    if alpha == 1.0 and beta == 1.0 and c is not None and c.dim() == 1 and _fills(c, weight):
        return F.linear(a, weight, c)
    product = F.linear(a, weight)
    product = product if alpha == 1.0 else product * alpha
    if c is None or beta == 0.0:
        return product
    return product + (c if beta == 1.0 else c * beta)


def _fills(bias: Tensor, weight: Tensor) -> bool:
    """Whether a bias has one element per output feature, rather than one to broadcast."""
    return bool(bias.shape[0] == weight.shape[0])


@onnx_op("Einsum")
def einsum(call: Call, *inputs: Tensor) -> Tensor:
    equation = call.required("equation").replace(" ", "")
    if inputs[0].dtype.is_floating_point or (len(inputs) > 1 and inputs[0].dtype == torch.int64):
        return torch.einsum(equation, *inputs)
    wide = [item.to(torch.int64) for item in inputs]
    return torch.einsum(equation, *wide).to(inputs[0].dtype)


@onnx_op("Det")
def det(call: Call, x: Tensor) -> Tensor:
    return torch.det(x)


@onnx_op("MatMulInteger")
def matmul_integer(
    call: Call,
    a: Tensor,
    b: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
) -> Tensor:
    """int8 products summed in int32; zero points per tensor, per row of a, or per column of b."""
    x, w = a.to(torch.int32), b.to(torch.int32)
    if a_zero is not None:
        x = x - (a_zero.unsqueeze(-1) if a_zero.dim() >= 1 and a_zero.numel() > 1 else a_zero).to(
            torch.int32
        )
    if b_zero is not None:
        w = w - (b_zero.unsqueeze(-2) if b_zero.dim() > 1 else b_zero).to(torch.int32)
    return torch.matmul(x, w)
