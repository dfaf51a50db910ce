"""Prompt to picture with numpy: text embedding, Euler's method on the rectified flow, classifier-free guidance.

    words     = Words.open("model")
    pictures  = draw(model, words, ["sunset over buildings"], seeds=[7])     # [1, 32, 32, 3] uint8

`model` is any callable `model(**inputs) -> {"sample": [2, 64, 48]}`: an artifact from `svdqc.load`, PyTorch's model
behind `EagerModel` of draw.py, or your own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pictures = NDArray[np.uint8]
Model = Callable[..., Mapping[str, Any]]

PATCH = 4
MAX_WORDS = 4
NUM_STEPS = 20
GUIDANCE = 2.0


@dataclass(frozen=True)
class Words:
    """The text side of the model: a row per word; row 0 stands for "no word".

    rows   word -> row
    table  [words + 1, 128] f32
    """

    rows: Mapping[str, int]
    table: Floats

    @staticmethod
    def open(folder: Path | str) -> Words:
        """Read vocab.json and text_embedding.safetensors of a model folder."""
        rows = json.loads((Path(folder) / "vocab.json").read_text())
        return Words(rows, _read_table(Path(folder) / "text_embedding.safetensors"))

    def encode(self, prompts: Sequence[str]) -> tuple[Floats, Floats]:
        """Prompts -> (encoder_hidden_states [B, 4, 128], pooled_projections [B, 128])."""
        indices = np.zeros((len(prompts), MAX_WORDS), np.int64)
        for i, prompt in enumerate(prompts):
            for j, word in enumerate(split_words(prompt)):
                if word not in self.rows:
                    known = ", ".join(w for w in self.rows if w[:2] == word[:2]) or "see vocab.json"
                    raise ValueError(f"{prompt!r}: the model never saw {word!r}; near it: {known}")
                indices[i, j] = self.rows[word]
        hidden = self.table[indices]  # [B, 4, 128]
        return hidden, hidden.mean(axis=1)


def split_words(prompt: str) -> list[str]:
    """Lower case, hyphens read as spaces, at most four words."""
    return prompt.lower().replace("-", " ").split()[:MAX_WORDS]


def model_inputs(
    latents: Floats, hidden: Floats, pooled: Floats, time: float, grid: int
) -> dict[str, NDArray[Any]]:
    """The keyword arguments of one call: latents [B, grid * grid, 48], every sample at the same time."""
    img_ids, txt_ids = position_ids(grid)
    return {
        "hidden_states": latents,
        "encoder_hidden_states": hidden,
        "pooled_projections": pooled,
        "timestep": np.full(len(latents), time, np.float32),
        "img_ids": img_ids,
        "txt_ids": txt_ids,
    }


def position_ids(grid: int) -> tuple[Floats, Floats]:
    """(img_ids [grid * grid, 3]: 0, row, column; txt_ids [4, 3]: zeros)."""
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    img_ids = np.stack([0 * rows, rows, columns], axis=1).astype(np.float32)
    return img_ids, np.zeros((MAX_WORDS, 3), np.float32)


def draw(
    model: Model,
    words: Words,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_steps: int = NUM_STEPS,
    guidance: float = GUIDANCE,
    size: int = 32,
    watch: Callable[[Mapping[str, Any]], None] | None = None,
) -> Pictures:
    """One picture per prompt, [B, size, size, 3]; the same seed gives the same noise to every model.

    `watch` is shown the inputs of every call: saved, they are the samples to calibrate a quantization with.
    """
    grid = size // PATCH
    features = 3 * PATCH * PATCH
    empty_hidden, empty_pooled = words.encode([""])
    pictures = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        hidden, pooled = words.encode([prompt])
        hidden = np.concatenate([empty_hidden, hidden])  # [2, 4, 128]: without and with the words
        pooled = np.concatenate([empty_pooled, pooled])
        noise = np.random.default_rng(seed).standard_normal((1, grid * grid, features))
        latents = noise.astype(np.float32)
        for step in range(num_steps):
            time = 1.0 - step / num_steps
            inputs = model_inputs(np.repeat(latents, 2, axis=0), hidden, pooled, time, grid)
            if watch is not None:
                watch(inputs)
            v_empty, v_text = np.asarray(model(**inputs)["sample"], np.float32)
            velocity = v_empty + guidance * (v_text - v_empty)
            latents = latents - velocity[None] / np.float32(num_steps)
        pictures.append(unpatchify(latents[0], grid))
    return np.stack(pictures)


def patchify(pictures: Floats) -> Floats:
    """[B, H, W, 3] in [-1, 1] -> [B, H/4 * W/4, 48], features ordered (channel, y, x)."""
    batch, height, width, _ = pictures.shape
    cut = pictures.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    return cut.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, 3 * PATCH * PATCH)


def unpatchify(latents: Floats, grid: int) -> Pictures:
    """[grid * grid, 48] -> [4 * grid, 4 * grid, 3] uint8."""
    cut = latents.reshape(grid, grid, 3, PATCH, PATCH).transpose(0, 3, 1, 4, 2)
    picture = cut.reshape(grid * PATCH, grid * PATCH, 3)
    return np.clip(np.rint(127.5 * (picture + 1.0)), 0, 255).astype(np.uint8)


def psnr(first: Pictures, second: Pictures) -> float:
    """Peak signal-to-noise ratio in dB; identical pictures give infinity."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def _read_table(path: Path) -> Floats:
    """The only tensor of text_embedding.safetensors, bfloat16, widened to f32."""
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(header_bytes))["weight"]
        bits = np.frombuffer(file.read(), np.uint16)
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
