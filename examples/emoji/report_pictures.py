"""Pictures for `svdqc report`: a dozen names, drawn with whatever model is given.

    svdqc report examples/emoji/model/transformer --inputs out/one.npz \\
        --pictures examples/emoji/report_pictures.py:pictures
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sampling import Words, draw

MODEL = Path(__file__).resolve().parent / "model"
NUM_PICTURES = 12
ENLARGED = 4


def pictures(model: Callable[..., Mapping[str, Any]]) -> list[tuple[str, NDArray[np.uint8]]]:
    """(name, [128, 128, 3]) of evenly spaced names; the seed of a picture is its number."""
    names = (MODEL / "prompts.txt").read_text().splitlines()
    chosen = names[:: len(names) // NUM_PICTURES][:NUM_PICTURES]
    drawn = draw(model, Words.open(MODEL), chosen, seeds=list(range(len(chosen))))
    enlarged = drawn.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
    return list(zip(chosen, enlarged, strict=True))
