"""Write a prompt's text embedding as the raw file that draw.c reads: f32 [2, 4, 128], no words and the prompt's words.

python write_prompt.py "sunset over buildings" prompt.bin
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

EMOJI = Path(__file__).resolve().parents[1] / "emoji"
sys.path.insert(0, str(EMOJI))

from sampling import Words  # noqa: E402


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit('usage: python write_prompt.py "PROMPT" FILE')
    prompt, path = sys.argv[1:]
    hidden, _ = Words.open(EMOJI / "model").encode(["", prompt])  # [2, 4, 128]
    Path(path).write_bytes(np.ascontiguousarray(hidden, "<f4").tobytes())


if __name__ == "__main__":
    main()
