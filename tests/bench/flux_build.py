"""Kernels and plan of FLUX.1-dev at its full size, for a GPU, without its weights.

    python tests/bench/flux_build.py [--target cuda:sm_90a] [--precision auto] [--depths 19,38]

The graph is diffusers' own, 19 double and 38 single blocks of width 3072 at 1024 x 1024. In the place of 24 GB of
weights is a sparse file of zeros, and layers are not quantized but given codes of the right shapes: what is generated
depends on shapes only. Printed are the seconds of each stage, launches, distinct kernels (at most 40 wanted), code.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from svdqc.compiler.driver.compile import capture_canonical
from svdqc.compiler.driver.dump import Dump
from svdqc.compiler.driver.precisions import resolved
from svdqc.compiler.driver.progress import Stages
from svdqc.compiler.driver.variants import build_variants, lower_families
from svdqc.compiler.passes.blank import blank_quantized
from svdqc.compiler.passes.linear_groups import linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups, recipes_of
from svdqc.compiler.plan.records import Plan
from svdqc.compiler.plan.verify import verify_plan
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.targets.select import parse_targets

MOST_KERNELS = 40


def sparse_folder(folder: Path, double: int, single: int) -> int:
    """A diffusers folder whose weights are a hole in a file; returns the number of parameters."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model: Any = FluxTransformer2DModel(
            num_layers=double, num_single_layers=single, guidance_embeds=True
        )
    model.save_config(folder)
    header: dict[str, Any] = {}
    offset = 0
    for name, value in model.state_dict().items():
        end = offset + 2 * value.numel()
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "diffusion_pytorch_model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return offset // 2


def launches_by_kernel(plan: Plan) -> dict[str, int]:
    """How often each kernel is launched, most often first."""
    counts = Counter(plan.kernels[launch.kernel].name for launch in plan.launches)
    return dict(counts.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cuda:sm_90a")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--depths", default="19,38", help="double and single blocks")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--kernels", action="store_true", help="list the kernels and their launches"
    )
    args = parser.parse_args()
    double, single = map(int, args.depths.split(","))
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[stage], began = now - began, now
        print(f"  {stage:<9} {seconds[stage]:7.1f} s", flush=True)

    targets = parse_targets(args.target, (), list)
    recipe = resolved(Recipe(precision=args.precision), args.target)
    with tempfile.TemporaryDirectory() as folder:
        parameters = sparse_folder(Path(folder), double, single)
        print(f"FLUX.1-dev, {double} + {single} blocks, {parameters / 1e9:.2f} B parameters")
        canonical = capture_canonical(folder, None, None, recipe)
        program = canonical.program
        lap("capture")
        groups = quantized_groups(canonical.decisions, linear_groups(program))
        recipes = recipes_of(groups, canonical.decisions, recipe)
        blank_quantized(program, groups, recipes)
        lap("rewrite")
        families = lower_families(program, targets, Dump(None), Stages(None))
        lap("plan")
        variants, tensors = build_variants(families, targets, args.jobs, Stages(None))
        lap("kernels")
        for family, variant in zip(families, variants, strict=True):
            verify_plan(variant.plan, [t.num_bytes for t in tensors])
            kernels = len(family.lowered.kernels)
            print(
                f"{variant.target}: {len(variant.plan.launches)} launches, {kernels} distinct kernels "
                f"(at most {MOST_KERNELS} wanted), {len(variant.code) / 1e6:.2f} MB of code, "
                f"arena {variant.plan.arena_bytes / 1e9:.2f} GB, "
                f"weights {sum(t.num_bytes for t in tensors) / 1e9:.2f} GB"
            )
            if args.kernels:
                for name, count in launches_by_kernel(variant.plan).items():
                    print(f"  {count:4} x {name}")
    print(f"{sum(seconds.values()):.0f} s in all")
    if any(len(f.lowered.kernels) > MOST_KERNELS for f in families):
        sys.exit(1)


if __name__ == "__main__":
    main()
