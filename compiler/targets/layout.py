"""What a weight layout is: a packer, its inverse, and the size of the packed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """pack: canonical → packed tensor. unpack: (its bytes, canonical shape) → canonical. num_bytes: of a shape, packed."""

    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor, Shape], Tensor]
    num_bytes: Callable[[Shape], int]
