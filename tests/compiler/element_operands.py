"""Operands of element rules: values of every type, edges of the number line, fixed seeds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
I64, I32, I16, I8, U8, BOOL = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
EDGES = (0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.5, 1e-30, 90.0, -105.0, math.inf, -math.inf, math.nan)


def floats(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=F32).to(dtype)


def positive(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return (floats(*shape).abs() + 0.1).to(dtype)


def unit(*shape: int) -> Tensor:
    return floats(*shape).tanh() * 0.99


def ints(
    *shape: int, low: int = -9, high: int = 10, dtype: torch.dtype = I64, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def bools(*shape: int, seed: int = 0) -> Tensor:
    return ints(*shape, low=0, high=2, seed=seed).to(BOOL)


def edges(dtype: torch.dtype = F32) -> Tensor:
    return torch.tensor(EDGES, dtype=dtype)


def nonzero(*shape: int, dtype: torch.dtype = I64) -> Tensor:
    value = ints(*shape, low=-5, high=5, seed=1)
    return torch.where(value >= 0, value + 1, value).to(dtype)
