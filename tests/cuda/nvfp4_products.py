"""A product of NVFP4 codes with its low-rank branch and bias: operands as kernels read them, and the result."""

from __future__ import annotations

import numpy as np
import torch
from tests.cuda import host_kernels
from tests.cuda.host_kernels import HostKernels, guarded, margins_untouched
from torch import Tensor

from svdqc.compiler.quantize.formats import dequantize_groups, e4m3_from_bits
from svdqc.compiler.targets.cuda_layouts_nvfp4 import e2m1_numbers
from svdqc.compiler.targets.layouts import pack

SEED = 31
EPS = 2.0**-24
VALUES = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, -1, -2, -3, -4, -6, -8, -12])
"""E2M1, doubled."""


def e2m1_rounding(k: int) -> float:
    """How far a sum of k products may be off, as a part of the sum of their magnitudes.

    The host rounds once for 16 of them. Of tensor cores mma.h assumes no more than 2^-22 for each.
    """
    return EPS * k / 16 if host_kernels.gpu is None else 2.0**-22 * k


def padded(rows: Tensor, multiple: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % multiple))


class Product:
    """y = x @ w.T + low @ up.T + bias, with random operands."""

    def __init__(self, m: int, n: int, k: int, rank: int = 16, extreme: bool = False) -> None:
        made = torch.Generator().manual_seed(hash((SEED, m, n, k, rank)) % (1 << 31))
        self.m, self.n, self.k, self.rank = m, n, k, rank
        self.x_codes, self.w_codes = (self._codes(made, rows, extreme) for rows in (m, n))
        self.x_scale, self.w_scale = (self._scales(made, rows, extreme) for rows in (m, n))
        self.exponent = 0 if extreme else -11
        self.low = torch.randn(m, rank, generator=made)
        self.up = torch.randn(n, rank, generator=made).bfloat16()
        self.bias = torch.zeros(n) if extreme else torch.randn(n, generator=made)

    def _codes(self, made: torch.Generator, rows: int, extreme: bool) -> Tensor:
        """Doubled, int8."""
        picked = torch.randint(0, len(VALUES), (rows, self.k), generator=made)
        return torch.where(torch.tensor(extreme), 12, VALUES[picked]).to(torch.int8)

    def _scales(self, made: torch.Generator, rows: int, extreme: bool) -> Tensor:
        """E4M3, uint8; subnormal ones among them."""
        scales = 8.0 * torch.rand(rows, self.k // 16, generator=made) ** 4
        scales = torch.ones_like(scales) if extreme else scales
        return scales.to(torch.float8_e4m3fn).view(torch.uint8)

    def expected(self) -> tuple[Tensor, Tensor]:
        """The result [m, n] in f64, and the bound of its error: a rounding for each term that is added."""
        half = 0.5 * 2.0**self.exponent
        x = dequantize_groups(self.x_codes, e4m3_from_bits(self.x_scale) * half).double()
        w = dequantize_groups(self.w_codes, e4m3_from_bits(self.w_scale) * 0.5).double()
        low, up, bias = self.low.double(), self.up.double(), self.bias.double()
        branch = low.abs() @ up.abs().T
        size = x.abs() @ w.abs().T + branch + bias.abs()
        bound = (e2m1_rounding(self.k) + EPS * (2 * self.rank + 3)) * size + 2.0**-17 * branch
        return x @ w.T + low @ up.T + bias, bound

    def operands(self, w_layout: str, scale_layout: str) -> list[np.ndarray]:  # type: ignore[type-arg]
        numbers = padded(e2m1_numbers(self.x_codes), 64)
        tensors = [
            numbers[:, 0::2] | numbers[:, 1::2] << 4,
            padded(self.x_scale, 16),
            pack(w_layout, self.w_codes),
            pack(scale_layout, self.w_scale),
            self.bias,
            self.low,
            pack("bf16_mma", self.up).view(torch.int16) if self.rank else torch.zeros(16),
        ]
        return [_aligned(tensor.contiguous().numpy()) for tensor in tensors]

    def run(
        self,
        kernels: HostKernels,
        name: str,
        tile: tuple[int, int],
        layouts: tuple[str, str],
        schedule: int = 0,
    ) -> Tensor:
        out, margins = guarded(self.m * (self.n + 3), np.float32)
        scalars = [self.m, self.n, self.k, self.rank, self.n + 3, self.exponent]
        tasks = -(-self.m // tile[0]) * -(-self.n // tile[1])
        buffers = [*self.operands(*layouts), out]
        kernels.launch(name, buffers, scalars, grid_x=tasks, schedule=schedule)
        assert margins_untouched(out, margins)
        rows = torch.from_numpy(out).reshape(self.m, self.n + 3)
        assert rows[:, self.n :].isnan().all()
        return rows[:, : self.n]

    def check(self, got: Tensor) -> None:
        want, bound = self.expected()
        miss = (got.double() - want).abs()
        assert (miss <= bound).all(), (SEED, float(miss.max()), float((miss / bound).max()))
        assert bound.max() < (1e-3 if host_kernels.gpu is None else 2e-2) * want.abs().max()


def _aligned(array: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """A copy that begins at a multiple of 64 bytes, as buffers of a plan do."""
    whole = np.zeros(array.nbytes + 64, np.uint8)
    begin = -whole.ctypes.data % 64
    copy = whole[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
