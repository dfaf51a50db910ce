"""Activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from svdqc.frontends.onnx.call import Call
from svdqc.frontends.onnx.registry import onnx_op


@onnx_op("Relu")
def relu(call: Call, x: Tensor) -> Tensor:
    return torch.relu(x)


@onnx_op("Sigmoid")
def sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@onnx_op("Gelu", since=20)
def gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.attribute("approximate", "none"))


@onnx_op("Mish", since=18)
def mish(call: Call, x: Tensor) -> Tensor:
    return F.mish(x)


@onnx_op("Swish", since=24)
def swish(call: Call, x: Tensor) -> Tensor:
    alpha = call.attribute("alpha", 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@onnx_op("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    scaled: Tensor = x * call.attribute("alpha", 0.2) + call.attribute("beta", 0.5)
    return scaled.clamp(0.0, 1.0)


@onnx_op("HardSwish", since=14)
def hard_swish(call: Call, x: Tensor) -> Tensor:
    return F.hardswish(x)


@onnx_op("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    return F.leaky_relu(x, call.attribute("alpha", 0.01))


@onnx_op("PRelu")
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, slope * x)


@onnx_op("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    return F.elu(x, call.attribute("alpha", 1.0))


@onnx_op("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    return F.celu(x, call.attribute("alpha", 1.0))


@onnx_op("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    alpha = call.attribute("alpha", 1.67326319217681884765625)
    gamma = call.attribute("gamma", 1.05070102214813232421875)
    return torch.where(x > 0, x, alpha * torch.expm1(x)).mul(gamma)


@onnx_op("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call.attribute("alpha", 1.0), x, torch.zeros_like(x))


@onnx_op("Softplus")
def softplus(call: Call, x: Tensor) -> Tensor:
    return F.softplus(x)


@onnx_op("Softsign")
def softsign(call: Call, x: Tensor) -> Tensor:
    return x / (1 + x.abs())


@onnx_op("Shrink")
def shrink(call: Call, x: Tensor) -> Tensor:
    lambd, bias = call.attribute("lambd", 0.5), call.attribute("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))


@onnx_op("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    return torch.softmax(x, call.attribute("axis", -1))


@onnx_op("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    return torch.log_softmax(x, call.attribute("axis", -1))


@onnx_op("Hardmax")
def hardmax(call: Call, x: Tensor) -> Tensor:
    axis = call.attribute("axis", -1)
    first = torch.argmax(x, dim=axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1.0)
