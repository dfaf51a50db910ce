"""The training set: Noto Color Emoji rendered on white, and the characters' Unicode names."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sampling import MAX_WORDS, split_words

FONT_PATHS = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),  # Debian, Ubuntu
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),  # Arch
    Path("/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf"),  # Fedora
)
STRIKE = 109  # the only size of the bitmaps in the font
EMOJI_RANGES = ((0x2600, 0x27C0), (0x1F300, 0x1FB00))


class FontMissing(Exception):
    """The emoji font is not where it is looked for."""


def find_font(path: Path | None = None) -> Path:
    for candidate in (path,) if path is not None else FONT_PATHS:
        if candidate.is_file():
            return candidate
    looked = path or ", ".join(map(str, FONT_PATHS))
    raise FontMissing(
        f"NotoColorEmoji.ttf not found (looked at {looked}). On Debian or Ubuntu: "
        "apt install fonts-noto-color-emoji; elsewhere name the file with --font."
    )


def render(character: str, font: ImageFont.FreeTypeFont, size: int) -> NDArray[np.uint8] | None:
    """[size, size, 3] on white, or None where the font has no colour bitmap for the character."""
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character))
    if right <= left or bottom <= top:
        return None
    canvas = Image.new("RGB", (right - left, bottom - top), "white")  # 136 x 128: the glyph's box
    pen = ImageDraw.Draw(canvas)
    pen.text((-left, -top), character, font=font, embedded_color=True)
    picture = np.asarray(canvas.resize((size, size), Image.Resampling.LANCZOS))
    return None if picture.min() == 255 else picture


def load_pictures(
    names: Iterable[str], size: int, font_path: Path | None = None
) -> tuple[list[str], NDArray[np.float32]]:
    """The names that the font can draw, and their pictures [N, size, size, 3] in [-1, 1]."""
    font = ImageFont.truetype(str(find_font(font_path)), STRIKE)
    kept, pictures = [], []
    for name in names:
        try:
            picture = render(unicodedata.lookup(name.upper()), font, size)
        except KeyError:
            picture = None
        if picture is not None:
            kept.append(name)
            pictures.append(picture)
    return kept, np.stack(pictures).astype(np.float32) / 127.5 - 1.0


def every_emoji_name() -> list[str]:
    """Lower-case names of up to four words in the blocks that hold emoji."""
    points = (chr(p) for first, last in EMOJI_RANGES for p in range(first, last))
    names = (unicodedata.name(character, "").lower() for character in points)
    return [n for n in names if n and len(n.replace("-", " ").split()) <= MAX_WORDS]


def vocabulary(names: Iterable[str]) -> dict[str, int]:
    """word -> row, in alphabetical order from 1; row 0 is "no word"."""
    words = sorted({word for name in names for word in split_words(name)})
    return {word: row for row, word in enumerate(words, start=1)}
