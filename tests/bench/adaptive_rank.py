"""`--rank auto` against rank 32 everywhere, in the same bytes: the emoji model, and one of PixArt-Sigma's size.

    python -m tests.bench.adaptive_rank emoji [--prompts 24] [--samples 48]
    python -m tests.bench.adaptive_rank pixart [--blocks 4]       # 28 is the whole model: 600 M parameters

Errors are relative, of the model's output on samples that nobody has seen; pictures are compared by PSNR with the
unquantized model's of the same seeds. Both are executed by PyTorch from the quantized graph, as `svdqc.reference` is.
PixArt has random weights with decaying spectra, streamed from a safetensors file and read a layer at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdqc.compiler.driver.calibrate import as_inputs, calibrate
from svdqc.compiler.driver.compile import capture_canonical
from svdqc.compiler.driver.probes import probe_inputs, watch
from svdqc.compiler.driver.report_pictures import program_model
from svdqc.compiler.driver.work_folder import work_folder
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.allocate import allocate_recipes, wants_allocation
from svdqc.compiler.passes.linear_groups import linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups, recipes_of
from svdqc.compiler.passes.svdquant import svdquant
from svdqc.compiler.quantize.recipe import Recipe

EMOJI = Path(__file__).resolve().parents[2] / "examples" / "emoji"
WIDTH, HEADS, CAPTION, LATENT, WORDS = 1152, 16, 4096, 32, 24
Sample = Mapping[str, Any]
Judge = Callable[[Program], str]


def measure(
    model: Any, samples: list[Sample], unseen: list[Sample], judge: Judge | None = None
) -> None:
    """A line per recipe: bytes, error on unseen samples, and what `judge` says of the quantized program."""
    plain = capture_canonical(model, dict(unseen[0]), None, Recipe()).program
    wanted = [plain.run(as_inputs(plain, s, 0))[0].float() for s in unseen]
    first = 0.0
    for rank in (32, "auto"):
        began = time.monotonic()
        program, num_bytes, note = quantized(model, samples, unseen[0], Recipe(rank=rank))
        seconds = time.monotonic() - began
        shares = [
            float((program.run(as_inputs(program, s, 0))[0].float() - w).square().sum())
            / float(w.square().sum())
            for s, w in zip(unseen, wanted, strict=True)
        ]
        error = math.sqrt(sum(shares) / len(shares))
        first = first or error
        line = f"rank {rank!s:>4}: {num_bytes / 1e6:.2f} MB, error {100 * error:.3f} %, ratio {error / first:.3f}"
        line += f", {seconds:.0f} s" + ("" if judge is None else f", {judge(program)}")
        print(line + note, flush=True)


def quantized(
    model: Any, samples: list[Sample], example: Sample, recipe: Recipe
) -> tuple[Program, int, str]:
    found = capture_canonical(model, dict(example), None, recipe)
    program, groups = found.program, quantized_groups(found.decisions, linear_groups(found.program))
    recipes, note = recipes_of(groups, found.decisions, recipe), ""
    with tempfile.TemporaryDirectory() as folder, work_folder(Path(folder) / "w", False) as work:
        watched = watch(samples, program)
        tokens = calibrate(program, groups, watched, work)
        if wants_allocation(recipe):
            chosen = allocate_recipes(
                program, groups, tokens, recipes, probe_inputs(program, None, watched)
            )
            recipes = chosen.recipes
            note = f"\n  ranks: {' '.join(str(r.rank) for r in recipes.values())}"
        records = svdquant(program, groups, tokens, recipes)
    return program, sum(r["num_bytes"] for r in records), note


def emoji(num_prompts: int, num_samples: int) -> None:
    import numpy as np

    sys.path.insert(0, str(EMOJI))
    from demo import calibration_samples, choose_prompts  # type: ignore[import-not-found]
    from draw import EagerModel  # type: ignore[import-not-found]
    from sampling import Words, draw, psnr  # type: ignore[import-not-found]

    words = Words.open(EMOJI / "model")
    drawn, others = choose_prompts(max(num_prompts, 12), num_samples)
    eager = EagerModel()
    samples = calibration_samples(eager, words, others)
    unseen = calibration_samples(eager, words, drawn[:12])
    seeds = list(range(num_prompts))
    model = EMOJI / "model" / "transformer"
    plain = capture_canonical(model, unseen[0], None, Recipe()).program
    prompts = drawn[:num_prompts]
    before = draw(program_model(plain), words, prompts, seeds) if prompts else None

    def judge(program: Program) -> str:
        if before is None:
            return "no pictures"
        after = draw(program_model(program), words, prompts, seeds)
        values = [psnr(a, b) for a, b in zip(before, after, strict=True)]
        return f"pictures {np.mean(values):.2f} dB, worst {min(values):.2f} dB"

    measure(model, samples, unseen, judge)


def pixart(blocks: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_pixart(Path(folder), blocks)
        dice = torch.Generator().manual_seed(5)
        calls = [pixart_inputs(dice, step / 8) for step in range(8)]
        measure(folder, calls[::2] + calls[1::4], calls[3::4])


def pixart_inputs(dice: torch.Generator, time_step: float) -> dict[str, Tensor]:
    drawn = {
        "hidden_states": torch.randn(1, 4, LATENT, LATENT, generator=dice),
        "encoder_hidden_states": torch.randn(1, WORDS, CAPTION, generator=dice),
        "timestep": torch.tensor([1000.0 * time_step]),
    }
    return {name: value.to(torch.bfloat16) for name, value in drawn.items()}


def write_pixart(folder: Path, blocks: int) -> None:
    """A diffusers folder with the shapes of PixArt-Sigma XL/2, random weights, a layer written at a time."""
    from diffusers import PixArtTransformer2DModel
    from safetensors.torch import save_file

    config = {
        "num_attention_heads": HEADS,
        "attention_head_dim": WIDTH // HEADS,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": blocks,
        "cross_attention_dim": WIDTH,
        "caption_channels": CAPTION,
        "sample_size": LATENT,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "use_additional_conditions": False,
    }
    with torch.device("meta"):
        shapes = PixArtTransformer2DModel(**config).state_dict()
    dice = torch.Generator().manual_seed(0)
    state = {name: drawn_weight(name, tensor, dice) for name, tensor in shapes.items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    config |= {"_class_name": "PixArtTransformer2DModel", "_diffusers_version": "0.30.0"}
    (folder / "config.json").write_text(json.dumps(config))


def drawn_weight(name: str, like: Tensor, dice: torch.Generator) -> Tensor:
    """bf16. Matrices are heavy-tailed plus a part of low rank whose strength differs from layer to layer."""
    if like.ndim == 1:
        return (0.02 * torch.randn(like.shape, generator=dice)).to(torch.bfloat16)
    flat = torch.randn(like.shape[0], math.prod(like.shape[1:]), generator=dice)
    flat *= 1 / math.sqrt(flat.shape[1])
    if "transformer_blocks" in name and like.ndim == 2:
        strength = float(torch.rand((), generator=dice)) * 1.5
        left = torch.randn(flat.shape[0], 96, generator=dice) * torch.logspace(0, -1.5, 96)
        right = torch.randn(96, flat.shape[1], generator=dice) / math.sqrt(flat.shape[1])
        flat += strength * (left @ right) / 4
    return flat.reshape(like.shape).to(torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=("emoji", "pixart"))
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--blocks", type=int, default=4)
    args = parser.parse_args()
    if args.model == "emoji":
        emoji(args.prompts, args.samples)
    else:
        pixart(args.blocks)


if __name__ == "__main__":
    main()
