"""Compile the emoji model to 4 bits, draw the same prompts in 16 and in 4 bits, compare.

    python examples/emoji/demo.py [--prompts 24] [--rank 32] [--samples 48] [--output out/emoji.png]

The prompts are every n-th name of model/prompts.txt. With --samples 0 the model is quantized from its weights alone;
the samples come from other names, one call of the model for each. Both versions draw each prompt in turn, with the
same noise, on the same threads.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from draw import MODEL, EagerModel, QuantizedModel
from numpy.typing import NDArray
from sampling import NUM_STEPS, Words, draw, psnr
from sheet import contact_sheet

import svdqc
from svdqc.compiler.cli.progress_bar import progress_display

SAMPLE_STEPS = 4


def choose_prompts(count: int, num_samples: int) -> tuple[list[str], list[str]]:
    """Evenly spaced names to draw, and evenly spaced other names to calibrate with."""
    names = (MODEL / "prompts.txt").read_text().splitlines()
    drawn = names[:: max(len(names) // count, 1)][:count]
    others = [name for name in names if name not in drawn]
    num_samples = min(num_samples, len(others))
    return drawn, [others[i * len(others) // num_samples] for i in range(num_samples)]


def calibration_samples(
    model: EagerModel, words: Words, prompts: list[str]
) -> list[dict[str, Any]]:
    """Inputs of one call for each prompt, spread over the time steps of a short drawing.

    Many prompts matter more than many steps: the words' layers see four tokens of a prompt and no others.
    """
    samples = []
    for i, prompt in enumerate(prompts):
        seen: list[dict[str, Any]] = []
        watch = partial(_record, model, seen)
        draw(model, words, [prompt], [10_000 + i], num_steps=SAMPLE_STEPS, watch=watch)
        samples.append(seen[i % SAMPLE_STEPS])
    return samples


def _record(model: EagerModel, seen: list[dict[str, Any]], inputs: Mapping[str, Any]) -> None:
    seen.append(model.tensors(inputs))


def compile_model(
    example: dict[str, Any], samples: list[dict[str, Any]], output: Path, recipe: svdqc.Recipe
) -> float:
    """Write the artifact; returns the seconds it took."""
    began = time.perf_counter()
    with progress_display() as progress:
        svdqc.compile(
            MODEL / "transformer",
            example,
            output=output,
            recipe=recipe,
            calibration=samples or None,
            progress=progress,
        )
    return time.perf_counter() - began


def draw_both(
    versions: list[Any], words: Words, prompts: list[str]
) -> tuple[list[NDArray[np.uint8]], list[float]]:
    """Pictures [prompts, H, W, 3] of each version, and its seconds per picture (median)."""
    pictures: list[list[NDArray[np.uint8]]] = [[] for _ in versions]
    seconds: list[list[float]] = [[] for _ in versions]
    for seed, prompt in enumerate(prompts):
        for version, model in enumerate(versions):
            began = time.perf_counter()
            pictures[version].append(draw(model, words, [prompt], [seed])[0])
            seconds[version].append(time.perf_counter() - began)
        print(f"  {seed + 1:2} of {len(prompts)}  {prompt}", flush=True)
    return [np.stack(p) for p in pictures], [float(np.median(s)) for s in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24, help="how many to draw")
    parser.add_argument("--rank", type=int, default=32, help="of the 16-bit low-rank branch")
    parser.add_argument("--samples", type=int, default=48, help="to calibrate with; 0: none")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--output", type=Path, default=Path("out/emoji.png"))
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    artifact = args.output.with_suffix(".svdq")

    words = Words.open(MODEL)
    prompts, calibration_prompts = choose_prompts(args.prompts, args.samples)
    eager = EagerModel()
    if calibration_prompts:
        print(f"drawing {len(calibration_prompts)} samples to calibrate with", flush=True)
    samples = calibration_samples(eager, words, calibration_prompts)
    example = calibration_samples(eager, words, prompts[:1])[0]

    print(f"compiling to {artifact}: {args.precision}, rank {args.rank}", flush=True)
    recipe = svdqc.Recipe(precision=args.precision, rank=args.rank)
    compile_seconds = compile_model(example, samples, artifact, recipe)

    print("drawing every prompt in 16 and in 4 bits, same noise", flush=True)
    quantized = QuantizedModel(artifact)
    (pictures_16, pictures_4), (seconds_16, seconds_4) = draw_both(
        [eager, quantized], words, prompts
    )
    likeness = [psnr(a, b) for a, b in zip(pictures_16, pictures_4, strict=True)]
    notes = [f"PSNR {value:.1f} dB" for value in likeness]
    names = ["16 bit (PyTorch)", f"{args.precision} (svdqc)"]
    contact_sheet(prompts, [pictures_16, pictures_4], names, notes).save(args.output)

    width = max(map(len, prompts))
    print("\nlikeness of the 4-bit picture to the 16-bit picture (PSNR, dB)")
    for prompt, value in zip(prompts, likeness, strict=True):
        print(f"  {prompt:<{width}}  {value:5.1f}")
    bytes_16 = (MODEL / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    bytes_4 = artifact.stat().st_size
    cores = os.cpu_count()
    print(f"""
  mean PSNR         {np.mean(likeness):.1f} dB, worst {min(likeness):.1f} dB
  file              {bytes_4 / 1e6:.2f} MB, bf16 {bytes_16 / 1e6:.2f} MB: {bytes_4 / bytes_16:.0%}
  time per picture  {seconds_4:.2f} s, bf16 in PyTorch {seconds_16:.2f} s: {seconds_16 / seconds_4:.2f} x as fast
                    ({NUM_STEPS} steps of batch 2, {cores} cores, measured in turn)
  compile           {compile_seconds:.1f} s
  pictures          {args.output}""")


if __name__ == "__main__":
    main()
