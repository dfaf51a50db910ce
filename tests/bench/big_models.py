"""Time and memory of compiling models of FLUX.1-dev's width (3072), by depth, without samples.

    python tests/bench/big_models.py [--depths 1,1 2,4] [--folder FOLDER] [--precision int4]

For each depth (double blocks, single blocks) a diffusers folder with random weights is made, and a fresh process
compiles it. Printed are the seconds of each stage, the process's peak of resident memory beyond what it is after
importing torch, and from the first to the last depth what a block adds to what stays in memory once all layers are
quantized. The peak comes of the largest groups of linears that are worked on at once: a second block of each kind may
double it, no further one raises it. Two cores unless --jobs says otherwise.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GB = 1e9


def make_folder(folder: Path, double: int, single: int) -> float:
    """A FluxTransformer2DModel in bf16; returns its parameters in billions. Written once, a shard at a time."""
    import torch
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file

    with torch.device("meta"):
        model: Any = FluxTransformer2DModel(
            num_layers=double, num_single_layers=single, guidance_embeds=True
        )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder)
    dice = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    shards: dict[str, list[str]] = {}
    for name in model.state_dict():
        block = ".".join(name.split(".")[:2]) if "blocks" in name else "rest"
        shards.setdefault(f"{block}.safetensors", []).append(name)
    state, total = model.state_dict(), 0
    for shard, names in shards.items():
        tensors = {
            name: torch.randn(state[name].shape, generator=dice).mul_(0.02).to(torch.bfloat16)
            for name in names
        }
        if not (folder / shard).exists():
            save_file(tensors, folder / shard)
        weight_map.update(dict.fromkeys(names, shard))
        total += sum(t.numel() for t in tensors.values())
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return total / 1e9


def compile_here(folder: Path, output: Path, precision: str, jobs: int) -> dict[str, Any]:
    """In this process; the stages' seconds, and the peak of memory."""
    import svdqc
    from svdqc.compiler.driver import compile_model

    assert compile_model is not None  # imports torch, so that `base` has it
    base, stages, began = _memory("VmHWM"), dict[str, float](), time.perf_counter()
    opened: list[tuple[str, float]] = []
    settled: list[int] = []

    def progress(event: svdqc.ProgressEvent) -> None:
        now = time.perf_counter()
        if opened and opened[-1][0] != event.stage:
            stages[opened[-1][0]] = now - opened[-1][1]
        if not opened or opened[-1][0] != event.stage:
            opened.append((event.stage, now))
            if event.stage == "plan":
                settled.append(_memory("VmRSS") - base)

    recipe = svdqc.Recipe(precision=precision)
    made = svdqc.compile(str(folder), output=output, recipe=recipe, jobs=jobs, progress=progress)
    stages[opened[-1][0]] = time.perf_counter() - opened[-1][1]
    cpu = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": sum(u.ru_utime + u.ru_stime for u in cpu),
        "stages": stages,
        "base_bytes": base,
        "peak_bytes": _memory("VmHWM") - base,
        "settled_bytes": settled[0],
        "num_bytes": made.num_bytes,
        "groups": len(made.report["layers"]),
    }


def _memory(field: str) -> int:
    """VmRSS, or its peak VmHWM, of this process image; getrusage would count the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if field in line) * 1024


def measure(folder: Path, double: int, single: int, precision: str, jobs: int) -> dict[str, Any]:
    model = folder / f"flux-{double}-{single}"
    parameters = make_folder(model, double, single)
    arguments = ["--one", str(model), str(folder / "model.svdq"), precision, str(jobs)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    )
    (folder / "model.svdq").unlink()
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "double": double, "single": single, "parameters": parameters}


def show(results: Sequence[dict[str, Any]]) -> None:
    for r in results:
        stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in r["stages"].items())
        print(
            f"{r['double']} + {r['single']} blocks, {r['parameters']:.2f} B parameters: "
            f"{r['seconds']:.0f} s ({stages}; {r['cpu_seconds']:.0f} s of CPU), "
            f"peak {r['peak_bytes'] / GB:.2f} GB beyond torch's {r['base_bytes'] / GB:.2f}, "
            f"artifact {r['num_bytes'] / GB:.2f} GB"
        )
    first, last = results[0], results[-1]
    blocks = last["double"] + last["single"] - first["double"] - first["single"]
    if blocks:
        growth = (last["settled_bytes"] - first["settled_bytes"]) / blocks
        seconds = (last["seconds"] - first["seconds"]) / blocks
        more = 57 - last["double"] - last["single"]
        whole = last["base_bytes"] + last["peak_bytes"] + more * max(growth, 0.0)
        print(
            f"a block adds {growth / 1e6:+.0f} MB of what stays and {seconds:.0f} s; "
            f"19 + 38 blocks would peak at {whole / GB:.1f} GB in all"
        )


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        _, _, model, output, precision, jobs = sys.argv
        print(json.dumps(compile_here(Path(model), Path(output), precision, int(jobs))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", nargs="+", default=["1,1", "2,4"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        results = []
        for depth in args.depths:
            double, single = map(int, depth.split(","))
            folder = args.folder or Path(made)
            results.append(measure(folder, double, single, args.precision, args.jobs))
            show(results[-1:])
    if len(results) > 1:
        show(results)


if __name__ == "__main__":
    main()
