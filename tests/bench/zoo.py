"""Every architecture of diffusers, tiny and with random weights: captured, compiled, run, compared with PyTorch.

    git clone --depth 1 --branch v0.42.1 https://github.com/huggingface/diffusers
    python tests/bench/zoo.py diffusers [--only NAME]... [--depth canonical|plan|run|int4] [--json FILE]

A row per class: how far it came, the relative error of its outputs, and for a refusal its reason.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.bench.zoo_cases import KINDS, Case, diffusers_cases, text_cases
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import svdqc
from svdqc.compiler.driver.compile import capture_canonical
from svdqc.compiler.driver.dump import Dump
from svdqc.compiler.driver.progress import Stages
from svdqc.compiler.driver.variants import lower_families
from svdqc.compiler.targets.select import parse_targets
from svdqc.errors import SvdqcError
from svdqc.frontends import flatten_inputs
from svdqc.frontends.spec import walk
from svdqc.runtime.library import cpu_features

DEPTHS = ("canonical", "plan", "run", "int4")
FLOAT32 = 1e-5
"""Sums in another order, through a dozen of layers."""
AMPLIFIED = 4.0
"""Deeper models amplify rounding: theirs may be this many times what PyTorch's float32 is away from its float64."""
GPU_TARGETS = ("cuda:sm_89", "cuda:sm_90a")
SECONDS = 900


@dataclass
class Row:
    """What became of one case; errors are relative (L2), the worst of all outputs."""

    kind: str
    name: str
    verdict: str = "crashed"
    reason: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    quantized: int = 0
    seconds: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="a checkout of diffusers")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--kind", action="append", default=[], choices=(*KINDS, "text"))
    parser.add_argument("--depth", choices=DEPTHS, default="run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append each row to a file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # children are forked: no thread of a pool survives that
    cases = [*diffusers_cases(options.checkout), *text_cases()]
    cases = [c for c in cases if not options.kind or c.kind in options.kind]
    wanted = [c for c in cases if not options.only or any(o in c.name for o in options.only)]
    if not wanted:
        parser.error(f"none of {len(cases)} classes is named like {', '.join(options.only)}")
    rows = []
    for case in wanted:
        rows.append(examine_apart(case, options.depth))
        print(line_of(rows[-1]), flush=True)
        if options.json is not None:
            with options.json.open("a") as file:
                file.write(json.dumps(asdict(rows[-1])) + "\n")
    passed = sum(row.verdict == "pass" for row in rows)
    print(f"{passed} of {len(rows)} pass")
    return 0 if passed == len(rows) else 1


def line_of(row: Row) -> str:
    errors = " ".join(f"{name} {error:.1e}" for name, error in row.errors.items())
    return f"{row.verdict:9} {row.name:70} {row.seconds:5.0f} s  {errors}  {row.reason}".rstrip()


def examine_apart(case: Case, depth: str) -> Row:
    """`examine` in a process of its own: a case that hangs or crashes is one row."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(examine(case, depth)))
    child.start()
    sender.close()
    row = Row(case.kind, case.name)
    try:
        row = receiver.recv() if receiver.poll(SECONDS) else row
    except EOFError:
        child.join()
        row.reason = f"the process ended with {child.exitcode}"
    child.kill()
    child.join()
    return row


def examine(case: Case, depth: str) -> Row:
    row, start = Row(case.kind, case.name), time.monotonic()
    try:
        model, inputs = case.build()
        model = shaken(model)
        wanted = outputs_of(model, inputs)
    except Exception as error:  # a case that PyTorch itself cannot run here
        row.verdict, row.reason = "no case", f"{type(error).__name__}: {error}"[:200]
        return row
    try:
        examine_model(row, model, inputs, wanted, depth)
        worst_error = max(e for name, e in row.errors.items() if name != "int4")
        if worst_error > FLOAT32:
            row.errors["eager"] = rounding(model, inputs, wanted)
        allowed = max(FLOAT32, AMPLIFIED * row.errors.get("eager", 0.0))
        row.verdict = "pass" if worst_error <= allowed else "wrong"
    except SvdqcError as error:
        row.verdict, row.reason = "refused", " ".join(str(error).split())
    except Exception as error:
        row.verdict, row.reason = (
            "failed",
            f"{type(error).__name__}: {' '.join(str(error).split())}",
        )
    row.seconds = time.monotonic() - start
    return row


def examine_model(
    row: Row, model: nn.Module, inputs: dict[str, Any], wanted: list[Tensor], depth: str
) -> None:
    none = svdqc.Recipe(precision="none")
    program = capture_canonical(model, inputs, None, none).program
    row.errors["graph"] = worst(program.run(flatten_inputs(inputs)), wanted)
    if depth == "canonical":
        return
    targets = parse_targets(",".join(("native", *GPU_TARGETS)), cpu_features(), list)
    lower_families(program, targets, Dump(None), Stages(None))
    if depth == "plan":
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.svdq"
        svdqc.compile(model, inputs, output=path, target="native", recipe=none, jobs=1)
        row.errors["none"] = worst(run(path, inputs), wanted)
        if depth == "int4":
            recipe = svdqc.Recipe(precision="int4", rank=16, group_size=32)
            made = svdqc.compile(model, inputs, output=path, target="native", recipe=recipe, jobs=1)
            row.quantized = len(made.report["quantized"])
            reference = list(svdqc.reference(path)(**inputs).values())
            row.errors["int4"] = worst(run(path, inputs), [torch.as_tensor(r) for r in reference])


def shaken(model: nn.Module) -> nn.Module:
    """No weight is zero: some classes begin with gates that let nothing through."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model.float().eval()


def outputs_of(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for _, leaf in walk(model(**inputs)) if isinstance(leaf, Tensor)]


def rounding(model: nn.Module, inputs: dict[str, Any], wanted: Sequence[Tensor]) -> float:
    """How far PyTorch's float32 outputs are from its float64 ones."""

    def widened(value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.dtype == torch.float32
        return value.double() if floats else value

    wide_inputs = tree_map(widened, inputs)
    return worst(outputs_of(copy.deepcopy(model).double(), wide_inputs), wanted)


def run(path: Path, inputs: dict[str, Any]) -> list[Tensor]:
    with svdqc.load(path, threads=1) as session:
        return [torch.as_tensor(value).clone() for value in session(**inputs).values()]


def worst(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    assert len(found) == len(wanted), f"{len(found)} outputs instead of {len(wanted)}"
    return max(relative(f, w) for f, w in zip(found, wanted, strict=True))


def relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape, f"{list(found.shape)} instead of {list(wanted.shape)}"
    difference = (found.double() - wanted.double()).norm()
    return float(difference / wanted.double().norm().clamp_min(1e-30))


if __name__ == "__main__":
    sys.exit(main())
