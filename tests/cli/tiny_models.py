"""Models that compile in seconds, as `tiny_models:name` factories for the command line."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """x [batch, 64] -> [batch, 64]."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(64, width)
        self.down = nn.Linear(width, 64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(nn.functional.gelu(self.up(x)))
        return y


class Unsupported(nn.Module):
    """Two operations that no kernel exists for, in named places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Highest()
        self.second = Accumulated()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


class Highest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x, dim=-1).values


class Accumulated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.logcumsumexp(x, dim=-1)


def mlp() -> tuple[nn.Module, dict[str, Tensor]]:
    return Mlp().eval(), {"x": torch.randn(4, 64)}


def large() -> tuple[nn.Module, dict[str, Tensor]]:
    """8 MB of weights in float32."""
    return Mlp(16384).eval(), {"x": torch.randn(4, 64)}


def unsupported() -> tuple[nn.Module, dict[str, Tensor]]:
    return Unsupported().eval(), {"x": torch.randn(8, 8)}


def not_a_module() -> int:
    return 7


class Rows(nn.Module):
    """Three kernels without a matrix: rows of three widths."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.softmax(-1), x[:, :32].softmax(-1), x[:, :16].softmax(-1)


def rows() -> tuple[nn.Module, dict[str, Tensor]]:
    return Rows().eval(), {"x": torch.randn(64, 64)}
