"""Rendered kernels: golden text, one per template; equal on every rendering; no dates, paths or leftovers.

After an intended change: pytest tests/compiler/test_templates.py --update-golden, and read the difference.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.compiler.programs import canonical
from torch import Tensor, nn
from torch.nn import functional as F

from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.driver.variants import plan_regions
from svdqc.compiler.passes.linear_groups import LinearGroup, linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups
from svdqc.compiler.passes.svdquant import svdquant
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.targets.folders import templates_folder

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


class Everything(nn.Module):
    """One use of each template: linears of each kind, attention, convolution, batched product, a row program."""

    def __init__(self) -> None:
        super().__init__()
        self.four_bit, self.plain = nn.Linear(64, 64), nn.Linear(64, 48)
        self.coded, self.weights = nn.Linear(64, 40), nn.Linear(64, 24)
        self.conv = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        heads = x.unflatten(-1, (2, 32)).transpose(1, 2)
        return (
            F.gelu(self.four_bit(x)),
            F.silu(self.plain(x)),
            self.coded(x),
            self.weights(x),
            F.scaled_dot_product_attention(heads, heads, heads),
            self.conv(image),
            x @ x.transpose(1, 2),
            F.softmax(x, -1),
        )


def rendered() -> dict[str, str]:
    """Kernels of `Everything`, by template."""
    torch.manual_seed(0)
    recipes = {
        "four_bit": Recipe("int4", 16),
        "coded": Recipe("nvfp4", 16),
        "weights": Recipe("w4a16"),
    }
    recipe = {"precision": "int4", "quantize": tuple(recipes), "keep": ("plain",)}
    inputs = {"x": torch.randn(1, 8, 64), "image": torch.randn(1, 3, 8, 8)}
    found = canonical(Everything(), inputs, **recipe)
    (together,) = quantized_groups(found.decisions, linear_groups(found.program))
    pairs = zip(together.linears, together.names, strict=True)
    groups = [LinearGroup((linear,), (name,)) for linear, name in pairs]
    svdquant(found.program, groups, {}, recipes)
    kernels = lower(found.program, plan_regions(found.program)).kernels
    prefixes = {
        "gemm_s4": "gemm_s4",
        "gemm_coded": "gemm_nvfp4",
        "gemm_w4": "gemm_f32_s4",
        "gemm": "gemm_f32_48",
        "attention": "attention",
        "conv": "conv",
        "bmm": "bmm",
        "rows": "rows",
    }
    return {
        template: next(source for name, source in kernels.items() if name.startswith(prefix))
        for template, prefix in prefixes.items()
    }


first = cache(rendered)
TEMPLATES = ("attention", "bmm", "conv", "gemm", "gemm_coded", "gemm_s4", "gemm_w4", "rows")


def test_every_template_has_a_golden() -> None:
    templates = {path.name.removesuffix(".cpp.j2") for path in templates_folder().glob("cpu/*.j2")}
    # The frame of all of them, what a linear's task is, and what surrounds a kernel that is measured (tests/tune).
    shared = {"kernel", "linear_task", "bench"}
    assert templates - shared == set(TEMPLATES)


@pytest.mark.parametrize("template", TEMPLATES)
def test_golden(template: str, update_golden: bool) -> None:
    golden, text = GOLDEN / f"{template}.cpp", first()[template]
    if update_golden:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), "see the head of this file"


def test_two_renderings_are_equal() -> None:
    assert rendered() == first()


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_dates_paths_or_leftovers(template: str) -> None:
    text = first()[template]
    for pattern in (
        r"\b20\d\d-\d\d",
        r"(?<![\w/])/(home|work|root|tmp|usr)/",
        r"\$\{",
        r"//%",
        "@NAME@",
    ):
        assert not re.search(pattern, text), pattern
    assert text.startswith("// "), "the first line says what the kernel computes"
