"""A contact sheet: for each prompt its pictures side by side, with labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SCALE = 3
GAP = 8
TEXT = 14
INK, FAINT, PAPER = "#222222", "#888888", "#ffffff"


def contact_sheet(
    prompts: Sequence[str],
    versions: Sequence[NDArray[np.uint8]],
    names: Sequence[str],
    notes: Sequence[str] | None = None,
    columns: int = 4,
) -> Image.Image:
    """versions[v] [B, H, W, 3]: picture b of version v; `names` labels versions, `notes` prompts."""
    height, width = (SCALE * n for n in versions[0].shape[1:3])
    cell_width = max(len(versions) * (width + GAP), 150) + 2 * GAP
    cell_height = height + 2 * TEXT + 3 * GAP
    rows = -(-len(prompts) // columns)
    head = TEXT + 2 * GAP
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height + head), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=TEXT - 2)
    pen.text((GAP, GAP), "left to right: " + ", ".join(names), INK, font)
    for i, prompt in enumerate(prompts):
        row, column = divmod(i, columns)
        left, top = column * cell_width + GAP, row * cell_height + head
        for v, pictures in enumerate(versions):
            picture = Image.fromarray(pictures[i])
            enlarged = picture.resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (left + v * (width + GAP), top))
        pen.text((left, top + height + 2), _fit(prompt, cell_width, font), INK, font)
        if notes is not None:
            pen.text((left, top + height + 2 + TEXT), notes[i], FAINT, font)
    return sheet


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while text and font.getlength(text) > width - 2 * GAP:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
