"""The emoji example: sampling without PyTorch, the training set, training that stops and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sampling
from pictures import FONT_PATHS, find_font, load_pictures, vocabulary
from sampling import Words, draw, patchify, psnr, unpatchify
from sheet import contact_sheet

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "emoji"
MODEL = EXAMPLE / "model"
TRAIN = (sys.executable, str(EXAMPLE / "train.py"))
needs_font = pytest.mark.skipif(
    not any(path.is_file() for path in FONT_PATHS), reason="fonts-noto-color-emoji is not installed"
)


def drift(**inputs: np.ndarray) -> dict[str, np.ndarray]:
    """A velocity that depends on every input."""
    context = inputs["encoder_hidden_states"].mean() + inputs["pooled_projections"].mean()
    places = inputs["img_ids"].sum(axis=1)[None, :, None] / 16 + inputs["txt_ids"].sum()
    time_left = inputs["timestep"][:, None, None]
    return {"sample": inputs["hidden_states"] * time_left + places * context}


def test_sampling__needs_no_torch() -> None:
    statement = "import sys, sampling; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", statement], cwd=EXAMPLE, check=False)
    assert done.returncode == 0


def test_draw__same_seed_same_picture() -> None:
    words = Words.open(MODEL)
    first = draw(drift, words, ["hot dog", "taco"], [1, 2])
    second = draw(drift, words, ["taco"], [2])
    assert first.shape == (2, 32, 32, 3)
    assert np.array_equal(first[1], second[0])
    assert not np.array_equal(first[0], first[1])


def test_draw__watch_sees_every_call() -> None:
    seen: list[dict[str, np.ndarray]] = []
    draw(drift, Words.open(MODEL), ["taco"], [0], watch=lambda inputs: seen.append(dict(inputs)))
    assert [round(float(inputs["timestep"][0]), 3) for inputs in seen[:3]] == [1.0, 0.95, 0.9]
    assert len(seen) == sampling.NUM_STEPS
    assert {inputs["hidden_states"].shape for inputs in seen} == {(2, 64, 48)}


def test_words__unknown_word_is_named() -> None:
    with pytest.raises(ValueError, match="'spaceship'"):
        Words.open(MODEL).encode(["hot spaceship"])


def test_words__padding_is_row_zero() -> None:
    words = Words.open(MODEL)
    hidden, pooled = words.encode(["", "taco"])
    assert np.array_equal(hidden[0], np.repeat(words.table[:1], 4, axis=0))
    assert np.array_equal(hidden[1, 0], words.table[words.rows["taco"]])
    assert np.allclose(pooled[1], hidden[1].mean(axis=0))


def test_patchify__is_undone_by_unpatchify() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    latents = patchify(pixels.astype(np.float32) / 127.5 - 1.0)
    assert latents.shape == (1, 64, 48)
    assert np.array_equal(unpatchify(latents[0], 8), pixels[0])
    # Feature (channel, y, x) = (1, 2, 3) of the patch in row 0, column 1.
    value = latents[0, 1, 1 * 16 + 2 * 4 + 3]
    assert value == np.float32(pixels[0, 2, 4 + 3, 1]) / np.float32(127.5) - 1


def test_psnr__of_a_known_error() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    assert psnr(black, black) == float("inf")
    assert psnr(black, black + np.uint8(255)) == pytest.approx(0.0)


def test_contact_sheet__holds_every_picture() -> None:
    pictures = np.full((5, 32, 32, 3), 7, np.uint8)
    sheet = contact_sheet(["a"] * 5, [pictures, pictures], ["one", "two"], ["note"] * 5, columns=4)
    dark = (np.asarray(sheet) == 7).all(axis=2).sum()
    assert dark == 5 * 2 * 96 * 96


def test_vocabulary__is_the_committed_one() -> None:
    names = (MODEL / "prompts.txt").read_text().splitlines()
    assert vocabulary(names) == json.loads((MODEL / "vocab.json").read_text())


@needs_font
def test_pictures__every_training_name_can_be_drawn() -> None:
    names = (MODEL / "prompts.txt").read_text().splitlines()
    kept, pictures = load_pictures(names, 32)
    assert kept == names
    assert pictures.shape == (360, 32, 32, 3)
    corners = pictures[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.median(corners) == 1.0, "the background is not white"


def test_train__without_the_font_says_what_to_install(tmp_path: Path) -> None:
    done = subprocess.run(
        [*TRAIN, "--output", str(tmp_path / "out"), "--font", str(tmp_path / "absent.ttf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "fonts-noto-color-emoji" in done.stderr
    assert "Traceback" not in done.stderr


@needs_font
def test_train__stopped_and_resumed_is_the_same_to_the_bit(tmp_path: Path) -> None:
    assert find_font().is_file()
    recipe = ("--steps", "12", "--batch", "2", "--width", "64", "--double", "1", "--single", "1")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    quick = [*TRAIN, *recipe, "--save-every", "1", "--log-every", "1"]
    subprocess.run([*quick, "--output", str(straight)], env=env, check=True, capture_output=True)

    process = subprocess.Popen(
        [*quick, "--output", str(stopped)], env=env, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (stopped / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    subprocess.run([*quick, "--output", str(stopped)], env=env, check=True, capture_output=True)

    for name in ("text_embedding.safetensors", "transformer/diffusion_pytorch_model.safetensors"):
        assert (straight / name).read_bytes() == (stopped / name).read_bytes(), name
