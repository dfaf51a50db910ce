"""What a weight layout is: a packer, its inverse, and the size of the packed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, ...]
MULTIPLIERS = (-15, 15)
"""Integers that multiply 4-bit codes, -8 to 7, to an int8 in the kernels of w4a8."""


@dataclass(frozen=True)
class Layout:
    """pack        canonical tensor → packed
    unpack      (bytes of the packed form, canonical shape) → canonical tensor
    num_bytes   canonical shape → size of the packed form
    """

    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor, Shape], Tensor]
    num_bytes: Callable[[Shape], int]
