"""Whole models against eager PyTorch: every size of one artifact, 16-bit weights, 4-bit linears, every CPU target.

The models are the frontends' tiny ones, 64 wide so that their linears divide into groups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tests.frontends.zoo import SMALL, inputs_of
from torch import Tensor, nn

import svdqc
from svdqc.compiler.ir.rewrite import DimFixed, Rewriter, aten
from svdqc.frontends import capture

FLOAT32 = 1e-5  # sums in another order, through a dozen of layers
BFLOAT16 = 2**-8  # one rounding of the output; interior values are float32
CODE_FLIPS = 1e-2  # a value on the edge between two codes may round either way, once in a while

WIDE: dict[str, dict[str, Any]] = {
    "flux": {"num_attention_heads": 4},
    "pixart": {"num_attention_heads": 4, "cross_attention_dim": 64},
    "dit": {"num_attention_heads": 4},
    "unet": {"block_out_channels": (64, 64), "attention_head_dim": 4, "mid_block_type": None},
}
# The sizes to trace with, the dims, and sizes to run: both extremes and one in between.
DYNAMIC: dict[str, tuple[dict[str, int], str, list[dict[str, int]]]] = {
    "flux": (
        {},
        "batch=1:4,height=4:16:2,width=4:16:2,text=2:16",
        [
            {"batch": 1, "height": 4, "width": 4, "text": 2},
            {"batch": 4, "height": 16, "width": 16, "text": 16},
            {"batch": 2, "height": 6, "width": 10, "text": 5},
        ],
    ),
    "pixart": (
        {"height": 12, "width": 16},
        "batch=1:3,height=4:16:2,text@encoder_hidden_states.1=1:20",
        [
            {"batch": 1, "height": 4, "width": 16, "text": 1},
            {"batch": 3, "height": 16, "width": 16, "text": 20},
            {"batch": 2, "height": 10, "width": 16, "text": 7},
        ],
    ),
    "dit": (
        {"height": 8, "width": 8},
        "batch=1:4",
        [{"batch": batch, "height": 8, "width": 8} for batch in (1, 3, 4)],
    ),
    "unet": (
        {"height": 16, "width": 16},
        "batch=1:3,height=4:24:4,width=4:24:4",
        [
            {"batch": 1, "height": 4, "width": 4},
            {"batch": 3, "height": 24, "width": 24},
            {"batch": 2, "height": 12, "width": 20},
        ],
    ),
}


def wide(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    class_name, config = SMALL[name]
    torch.manual_seed(0)
    model: nn.Module = getattr(diffusers, class_name)(**{**config, **WIDE[name]}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    return model.to(dtype)


def inputs(name: str, dtype: torch.dtype = torch.float32, **sizes: int) -> dict[str, Any]:
    def cast(value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floats else value

    return {key: cast(value) for key, value in inputs_of(name, **sizes).items()}


def eager(model: nn.Module, given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**given)[0]


def result(session: Any, given: dict[str, Any]) -> Tensor:
    """The first output of a session or of a reference."""
    return torch.as_tensor(next(iter(dict(session(**given)).values())))


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    assert found.shape == expected.shape
    assert found.isfinite().all()
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", DYNAMIC)
def test_zoo__f32_at_every_size(name: str, tmp_path: Path) -> None:
    trace, dims, sizes = DYNAMIC[name]
    model, path = wide(name), tmp_path / "model.svdq"
    none = svdqc.Recipe(precision="none")
    svdqc.compile(model, inputs(name, **trace), output=path, recipe=none, dynamic=dims)
    session = svdqc.load(path)
    for size in sizes:
        given = inputs(name, **size)
        assert relative(result(session, given), eager(model, given)) <= FLOAT32, size


@pytest.mark.parametrize("name", ["pixart", "unet"])
def test_zoo__bf16(name: str, tmp_path: Path) -> None:
    """Nearer to the exact result than eager bfloat16, which rounds after every op."""
    model, path = wide(name, torch.bfloat16), tmp_path / "model.svdq"
    given = inputs(name, torch.bfloat16)
    svdqc.compile(model, given, output=path, recipe=svdqc.Recipe(precision="none"))
    found, rounded = result(svdqc.load(path), given), eager(model, given)
    exact = eager(model.float(), inputs_as_float(given))
    assert found.dtype == torch.bfloat16
    assert relative(found, exact) <= BFLOAT16
    assert relative(found, rounded) <= relative(rounded, exact) + BFLOAT16


def inputs_as_float(given: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in given.items()
    }


@pytest.mark.parametrize("name", DYNAMIC)
def test_zoo__int4(name: str, tmp_path: Path) -> None:
    """As the reference computes it, the same in every run and with every number of threads."""
    model, given, path = wide(name), inputs(name), tmp_path / "model.svdq"
    samples = [given, inputs(name)] if name == "pixart" else None
    recipe = svdqc.Recipe(precision="int4", rank=16)
    made = svdqc.compile(model, given, output=path, recipe=recipe, calibration=samples)
    assert len(made.report["quantized"]) >= 4
    found = result(svdqc.load(path, threads=1), given)
    reference = result(svdqc.reference(path), given)
    coding = relative(reference, eager(model, given))
    difference = relative(found, reference)
    assert difference <= CODE_FLIPS
    assert difference < coding / 2 < 0.1
    session = svdqc.load(path, threads=2)
    assert torch.equal(found, result(session, given))
    assert torch.equal(found, result(session, given))


@pytest.mark.parametrize("target", ["cpu:avx2", "cpu:portable"])
def test_zoo__targets_agree(target: str, tmp_path: Path) -> None:
    model, given, path = wide("dit"), inputs("dit"), tmp_path / "model.svdq"
    recipe = svdqc.Recipe(precision="int4", rank=16)
    svdqc.compile(model, given, output=path, recipe=recipe, target=target)
    assert relative(result(svdqc.load(path), given), result(svdqc.reference(path), given)) <= (
        CODE_FLIPS
    )


def test_shape_inference__never_fixes_a_dim() -> None:
    """A pass whose new op pins a dynamic size to the example's is refused, not compiled wrongly."""
    program = capture(wide("dit"), inputs("dit", height=8, width=8), dynamic="batch=1:4")
    rewriter = Rewriter(program)
    source = next(n for n in rewriter.graph.nodes if n.op == "placeholder")
    rewriter.call(aten.silu.default, source)
    with pytest.raises(DimFixed, match="fixes a dynamic size"):
        rewriter.call(aten.expand.default, source, [2, -1, -1, -1])
