"""Pictures of the emoji model in 4 bits against 16-bit weights: naive, SVDQuant's reference recipe, and svdqc.

    python tests/bench/emoji_quality.py [--prompts 24] [--samples 48] [--ranks 16,32] [--artifact] [--json FILE]

PSNR over the same prompts and seeds, all linears of the blocks in W4A4 g64, drawn in PyTorch with the quantized
linears' exact codes (tests/quantize/emoji.py). The baseline is an own implementation of DeepCompressor's default with
GPTQ (tests/quantize/baseline_deepcompressor.py), calibrated with the same tokens. `--artifact` also compiles svdqc's
data-free form at the last rank and draws with its kernels. About three minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tests.quantize import baseline_deepcompressor as baseline  # noqa: E402
from tests.quantize import emoji  # noqa: E402

from svdqc.compiler.quantize.linear import LinearSamples  # noqa: E402
from svdqc.compiler.quantize.recipe import Recipe  # noqa: E402

FOLDER = ROOT / "build" / "bench"
MARGIN_DB = 2.0
"""What svdqc promises to be above the baseline."""

Layers = dict[str, emoji.Layer]
Samples = Mapping[str, LinearSamples]


def naive(model: emoji.EmojiModel) -> Layers:
    return {n: emoji.flat(baseline.naive(w, baseline.INT4)) for n, w in model.weights.items()}


def svdquant(model: emoji.EmojiModel, samples: Samples, rank: int) -> Layers:
    """DeepCompressor's default + GPTQ; its tokens are all of the samples', since it holds none out."""
    layers: Layers = {}
    for name, weight in model.weights.items():
        held_out = samples[name].held_out
        assert held_out is not None
        x = torch.cat([samples[name].fit, held_out])
        plain = baseline.default(weight, x, rank, baseline.INT4)
        layers[name] = emoji.flat(baseline.with_gptq(plain, weight, x))
    return layers


def artifact_pictures(drawn: list[str], rank: int) -> np.ndarray:
    """Drawn by the compiled kernels, one prompt after another."""
    from draw import QuantizedModel
    from sampling import Words, draw, model_inputs

    import svdqc

    FOLDER.mkdir(parents=True, exist_ok=True)
    path, words = FOLDER / f"emoji-r{rank}.svdq", Words.open(emoji.MODEL)
    latents = np.zeros((2, 64, 48), np.float32)
    arrays = model_inputs(latents, *words.encode(["", drawn[0]]), 0.5, emoji.GRID)
    inputs = emoji.EagerModel().tensors(arrays)
    recipe = svdqc.Recipe(precision="int4", rank=rank)
    svdqc.compile(emoji.MODEL / "transformer", inputs, output=path, recipe=recipe)
    return draw(QuantizedModel(path), words, drawn, list(range(len(drawn))))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--samples", type=int, default=48, help="prompts to calibrate with")
    parser.add_argument("--ranks", default="16,32")
    parser.add_argument("--artifact", action="store_true", help="draw with compiled kernels too")
    parser.add_argument("--json", type=Path, default=FOLDER / "emoji_quality.json")
    args = parser.parse_args()
    ranks = [int(rank) for rank in args.ranks.split(",")]

    drawn, others = emoji.prompts(args.prompts)
    seeds = list(range(len(drawn)))
    model = emoji.EmojiModel(2 * len(drawn))
    wanted = emoji.draw(model, drawn, seeds, {})
    chosen = [others[i * len(others) // args.samples] for i in range(args.samples)]
    samples = emoji.sample_tokens(model, chosen)

    recipes: dict[str, Callable[[], Layers]] = {"naive W4A4": partial(naive, model)}
    for rank in ranks:
        recipe = Recipe(rank=rank)
        recipes[f"SVDQuant + GPTQ, rank {rank}"] = partial(svdquant, model, samples, rank)
        recipes[f"svdqc data-free, rank {rank}"] = partial(model.quantized, {}, recipe)
        recipes[f"svdqc calibrated, rank {rank}"] = partial(model.quantized, samples, recipe)

    print(f"{len(drawn)} prompts, {args.samples} samples; PSNR in dB, against 16-bit weights")
    print(f"{'':<32}{'mean':>7}{'worst':>7}{'quantized in':>14}")
    results: dict[str, dict[str, float]] = {}

    def measured(name: str, pictures: np.ndarray, seconds: float) -> None:
        values = emoji.likeness(wanted, pictures)
        results[name] = {"mean": float(np.mean(values)), "worst": min(values), "seconds": seconds}
        print(f"{name:<32}{np.mean(values):7.2f}{min(values):7.2f}{seconds:12.0f} s", flush=True)

    for name, quantize in recipes.items():
        began = time.perf_counter()
        layers = quantize()
        seconds = time.perf_counter() - began
        measured(name, emoji.draw(model, drawn, seeds, layers), seconds)
    if args.artifact:
        began = time.perf_counter()
        pictures = artifact_pictures(drawn, ranks[-1])
        measured(f"compiled data-free, rank {ranks[-1]}", pictures, time.perf_counter() - began)

    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"prompts": drawn, "psnr_db": results}, indent=1) + "\n")
    failed = False
    for rank in ranks:
        ours = results[f"svdqc calibrated, rank {rank}"]["mean"]
        above = ours - results[f"SVDQuant + GPTQ, rank {rank}"]["mean"]
        gained = ours - results[f"svdqc data-free, rank {rank}"]["mean"]
        print(f"rank {rank}: {above:+.2f} dB over SVDQuant + GPTQ, {gained:+.2f} dB over data-free")
        failed |= above < MARGIN_DB or gained < 0.0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
