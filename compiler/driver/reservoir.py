"""A uniform sample of the tokens that pass through a layer, taken as they pass."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

FIT_TOKENS = 2048
HELD_OUT_TOKENS = 512


class Reservoir:
    """A uniform sample of rows of a stream whose length is not known (reservoir sampling, algorithm R, by blocks)."""

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        self.capacity = capacity
        self._generator = generator
        self._seen = 0
        self.rows: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """rows [..., features], of any floating type, on any device."""
        rows = rows.reshape(-1, rows.shape[-1])
        if self.rows is None:
            self.rows = torch.empty(0, rows.shape[1])
        count, held = rows.shape[0], self.rows.shape[0]
        room = min(self.capacity - held, count)
        if room:
            self.rows = torch.cat([self.rows, rows[:room].to("cpu", torch.float32)])
        if count > room:
            numbers = torch.arange(self._seen + room, self._seen + count) + 1
            dice = torch.rand(count - room, generator=self._generator, dtype=torch.float64)
            slots = (dice * numbers).long()
            kept = (slots < self.capacity).nonzero().squeeze(1)
            chosen = rows[(kept + room).to(rows.device)].to("cpu", torch.float32)
            for slot, row in zip(slots[kept].tolist(), chosen, strict=True):  # the last one stays
                self.rows[slot] = row
        self._seen += count

    def distinct(self) -> Tensor:
        """[tokens, features] f32 without repetitions."""
        assert self.rows is not None, "a calibrated layer was never reached"
        rows: Tensor = torch.unique(self.rows, dim=0)
        return rows


class TokenSample:
    """Tokens of one layer's input: of fitting and of held-out samples.

    The dice are the layer's own, so its tokens do not depend on which other layers are sampled, or when.
    """

    def __init__(self, seed: int, name: str) -> None:
        own = hashlib.sha256(f"{seed} {name}".encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(own[:7], "little"))
        self.fit = Reservoir(FIT_TOKENS, self._generator)
        self.held_out = Reservoir(HELD_OUT_TOKENS, self._generator)

    def result(self) -> tuple[Tensor, Tensor]:
        """(fit, held out) [tokens, features] f32.

        Distinct tokens only: a word that every prompt repeats would count as many. A single sample is cut by
        tokens.
        """
        rows = self.fit.distinct()
        if self.held_out.rows is not None:
            return rows, self.held_out.distinct()
        shuffled = rows[torch.randperm(rows.shape[0], generator=self._generator)]
        cut = max(rows.shape[0] - HELD_OUT_TOKENS, rows.shape[0] * 4 // 5)
        return shuffled[:cut], shuffled[cut:]
