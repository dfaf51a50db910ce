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
from svdqc.compiler.passes.linear_groups import linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups
from svdqc.compiler.passes.svdquant import svdquant
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.targets.folders import templates_folder

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


class Everything(nn.Module):
    """One use of each template: 4-bit and f32 linears, attention, convolution, batched product, a row program."""

    def __init__(self) -> None:
        super().__init__()
        self.four_bit, self.plain = nn.Linear(64, 64), nn.Linear(64, 48)
        self.conv = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        heads = x.unflatten(-1, (2, 32)).transpose(1, 2)
        return (
            F.gelu(self.four_bit(x)),
            F.silu(self.plain(x)),
            F.scaled_dot_product_attention(heads, heads, heads),
            self.conv(image),
            x @ x.transpose(1, 2),
            F.softmax(x, -1),
        )


def rendered() -> dict[str, str]:
    """Kernels of `Everything`, by template."""
    torch.manual_seed(0)
    recipe = {"precision": "int4", "rank": 16, "quantize": ("four_bit",), "keep": ("plain",)}
    inputs = {"x": torch.randn(1, 8, 64), "image": torch.randn(1, 3, 8, 8)}
    found = canonical(Everything(), inputs, **recipe)
    groups = quantized_groups(found.decisions, linear_groups(found.program))
    svdquant(found.program, groups, {}, {g.name: Recipe(**recipe) for g in groups})
    kernels = lower(found.program, plan_regions(found.program)).kernels
    prefixes = {
        "gemm_s4": "gemm_s4",
        "gemm": "gemm_f32",
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
TEMPLATES = ("attention", "bmm", "conv", "gemm", "gemm_s4", "rows")


def test_every_template_has_a_golden() -> None:
    templates = {path.name.removesuffix(".cpp.j2") for path in templates_folder().glob("cpu/*.j2")}
    assert templates - {"kernel"} == set(TEMPLATES)  # kernel.cpp.j2 is the frame of the others


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
