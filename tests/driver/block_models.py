"""A small transformer with numbered blocks, and samples of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.layer_norm(self.to_q(x) * torch.sigmoid(self.to_k(x)), (WIDTH,))
        y: Tensor = x + self.down(F.gelu(self.up(x)))
        return y


class Blocks(nn.Module):
    """x [1, 32, 64] -> [1, 32, 64]: three groups of linears a block."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.final = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.final(x)
        return y


def make(depth: int = 2) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    return Blocks(depth).eval(), {"x": torch.randn(1, 32, WIDTH)}


def samples(count: int = 6) -> list[dict[str, Tensor]]:
    dice = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(1, 32, WIDTH, generator=dice)} for _ in range(count)]


def yielded() -> object:
    """For package.module:function."""
    return iter(samples())
