"""Every precision from weights to a running artifact: each against `svdqc.reference`, all of them in one model, on
every CPU target; and a whole small transformer in each.

Layers that read the model's input get equal codes, so only float sums differ. Through several layers a value on the
edge between two codes may round either way (test_zoo.CODE_FLIPS).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.compiler.programs import write
from tests.compiler.test_zoo import CODE_FLIPS, inputs, relative, result, wide
from torch import Tensor, nn

import svdqc
from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.driver.compile import capture_canonical
from svdqc.compiler.driver.precisions import UnsupportedPrecision, resolved
from svdqc.compiler.driver.variants import plan_regions
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.linear_groups import LinearGroup, linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups, recipes_of
from svdqc.compiler.passes.svdquant import svdquant
from svdqc.compiler.quantize.errors import UnknownFormat
from svdqc.compiler.quantize.linear import LinearSamples
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.quantize.schemes import SCHEMES, num_bytes
from svdqc.compiler.targets.cpu import CPU_TARGETS, CpuTarget
from svdqc.runtime.library import cpu_features

TARGETS = [t for t in CPU_TARGETS if set(t.isa_features) <= set(cpu_features())]
WIDTH = 128
VARIANTS: dict[str, Recipe] = {
    "int4": Recipe(rank=16),
    "int4_g32": Recipe(rank=8, group_size=32),
    "int4_g128": Recipe(rank=8, group_size=128),
    "nvfp4": Recipe(precision="nvfp4", rank=16),
    "nvfp4_six": Recipe(precision="nvfp4", rank=8, activation_range="six", rotate=False),
    "int8": Recipe(precision="int8", rank=16),
    "fp8": Recipe(precision="fp8", rank=16),
    "w4a8": Recipe(precision="w4a8", rank=16),
    "w4a8_g32": Recipe(precision="w4a8", rank=8, group_size=32, rotate=True),
    "w4a16": Recipe(precision="w4a16"),
    "nf4": Recipe(precision="nf4"),
}


class Layers(nn.Module):
    """A linear per variant; each reads the input by itself, and one reads its square (a prologue of the kernel)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Linear(WIDTH, 40, bias=i % 3 != 0) for i, _ in enumerate(VARIANTS)
        )
        self.squared = nn.Linear(WIDTH, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*(layer(x) for layer in self.layers), self.squared(x * x))


@pytest.fixture(scope="module")
def mixed() -> Program:
    """The program with every variant in it, from the weights alone."""
    program = capture_canonical(
        Layers().eval(),
        {"x": torch.randn(3, 5, WIDTH)},
        "batch=1:4,tokens@x.1=1:40",
        Recipe(precision="none"),
    ).program
    names = [f"layers.{i}" for i in range(len(VARIANTS))]
    by_name = {**dict(zip(names, VARIANTS.values(), strict=True)), "squared": Recipe("w4a16")}
    groups = [
        LinearGroup((linear,), (name,))
        for group in linear_groups(program)
        for linear, name in zip(group.linears, group.names, strict=True)
    ]
    assert [g.name for g in groups] == list(by_name)
    records = svdquant(program, groups, {}, by_name, jobs=1)
    assert [r["precision"] for r in records] == [r.precision for r in by_name.values()]
    return program


@pytest.fixture(scope="module")
def lowered_mixed(mixed: Program) -> Any:
    return lower(mixed, plan_regions(mixed))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.isa)
def test_every_precision_in_one_model(
    mixed: Program, lowered_mixed: Any, target: CpuTarget, tmp_path: Path
) -> None:
    path = write(mixed, lowered_mixed, tmp_path / "model.svdq", target)
    session, reference = svdqc.load(path), svdqc.reference(path)
    for batch, tokens in ((1, 1), (1, 13), (4, 40)):
        generator = torch.Generator().manual_seed(tokens)
        x = torch.randn(batch, tokens, WIDTH, generator=generator)
        found, wanted = session(x=x), reference(x=x)
        for variant, key in zip([*VARIANTS, "squared"], wanted, strict=True):
            assert relative(found[key], wanted[key]) <= 2e-6, variant


def test_mixed_artifact__stores_true_sizes(mixed: Program, lowered_mixed: Any) -> None:
    """Codes take their bits, E4M3 scales a byte: what `num_bytes` says, where nothing is padded."""
    stored: dict[str, int] = {}
    for tensor in lowered_mixed.tensors:
        layer = tensor.name.rsplit(".", 1)[0]
        if not tensor.name.endswith(("bias", "bias_merged")):
            stored[layer] = stored.get(layer, 0) + tensor.num_bytes
    for i, (variant, recipe) in enumerate(VARIANTS.items()):
        rank = recipe.rank_for(40, WIDTH)
        says = num_bytes(recipe.precision, 40, WIDTH, rank, recipe.group_size)
        # 40 output channels fill 3 panels of 16, and a branch of 8 half a panel.
        padded = num_bytes(recipe.precision, 48, WIDTH, rank, recipe.group_size)
        padded += 2 * (-rank % 16) * WIDTH
        assert says <= padded, variant
        assert stored[f"layers.{i}"] == padded, variant


@pytest.mark.parametrize("precision", [p for p in SCHEMES if p != "int4"])
def test_transformer(precision: str, tmp_path: Path) -> None:
    """A DiT of one block, its modulation layers in w4a16."""
    model, given = wide("dit"), inputs("dit")
    recipe = Recipe(precision=precision, rank=8)
    found = capture_canonical(model, given, None, recipe)
    groups = quantized_groups(found.decisions, linear_groups(found.program))
    recipes = recipes_of(groups, found.decisions, recipe)
    assert {r.precision for r in recipes.values()} == {precision, "w4a16"}
    svdquant(found.program, groups, {}, recipes, jobs=1)
    path = write(
        found.program, lower(found.program, plan_regions(found.program)), tmp_path / "model.svdq"
    )
    session = svdqc.load(path)
    first = result(session, given)
    assert relative(first, result(svdqc.reference(path), given)) <= CODE_FLIPS
    assert torch.equal(first, result(session, given))
    with torch.no_grad():
        assert relative(first, model(**given)[0]) <= 0.1  # 4 bits, quantized without samples


@pytest.mark.parametrize(("precision", "version"), [("int8", 1), ("w4a8", 2)])
def test_compile__says_which_quantization_it_needs(
    precision: str, version: int, tmp_path: Path
) -> None:
    """Files without multiplied codes stay readable by what knows none."""
    torch.manual_seed(1)
    given, path = {"input": torch.randn(70, WIDTH)}, tmp_path / "model.svdq"
    recipe = Recipe(precision=precision, rank=8, quantize=("*",))
    svdqc.compile(nn.Linear(WIDTH, 256), given, output=path, target="cpu:portable", recipe=recipe)
    model = svdqc.load(path)
    assert model.describe()["versions"]["quantization"] == version
    assert relative(result(model, given), result(svdqc.reference(path), given)) <= 2e-6


def test_samples__lower_the_error_of_weight_only_layers() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, WIDTH) / WIDTH**0.5
    x = torch.randn(1024, WIDTH) @ torch.randn(WIDTH, WIDTH) * torch.randn(WIDTH).exp()
    samples = LinearSamples(x[:768], x[768:])
    from svdqc.compiler.quantize.linear import quantize_linear

    errors = {}
    for name, given in (("without", None), ("with", samples)):
        coded = quantize_linear(weight, given, Recipe(precision="w4a16"))
        wanted = x[768:] @ weight.T
        errors[name] = float((coded(x[768:]) - wanted).norm() / wanted.norm())
    assert errors["with"] < 0.7 * errors["without"], errors


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("quantize", (16, "unsigned", False, 0.0, "e2m1", 1.0)),
        ("quantize", (16, "symmetric", False, 0.0, "e5m2", 1.0)),
        ("linear_coded", ("int3", 1.0)),
        ("linear_w", ("fp4",)),
    ],
)
def test_ops__refuse_formats_they_do_not_know(op: str, attributes: tuple[Any, ...]) -> None:
    """A graph section may name anything; the reference says so instead of guessing."""
    x, w = torch.zeros(2, 16), torch.zeros(16, 16, dtype=torch.int8)
    scale, low = torch.zeros(2, 1), torch.zeros(2, 0)
    operands: Mapping[str, tuple[Any, ...]] = {
        "quantize": (x, torch.ones(16), torch.zeros(0, 16)),
        "linear_coded": (w[:2], scale, low, w, torch.zeros(16, 1), torch.zeros(16, 0), None),
        "linear_w": (x, w, torch.zeros(16, 1), None),
    }
    with pytest.raises(UnknownFormat, match="found"):
        getattr(torch.ops.svdq, op)(*operands[op], *attributes)


def test_resolved__refuses_what_a_target_lacks() -> None:
    assert resolved(Recipe(precision="auto"), "cpu").precision == "int4"
    assert resolved(Recipe(precision="nvfp4"), "cpu:avx2").precision == "nvfp4"
    with pytest.raises(UnsupportedPrecision, match="nvfp4"):
        resolved(Recipe(precision="nvfp4"), "cpu,cuda:sm_80")
    assert resolved(Recipe(), "cuda:sm_80").modulation == "w4a16"
    for gpu in ("cuda", "cuda:sm_75", "cuda:sm_90", "cuda:sm_120a,cpu"):
        assert resolved(Recipe(precision="fp8"), gpu).precision == "fp8"


def test_resolved__nvfp4_where_tensor_cores_multiply_it() -> None:
    assert resolved(Recipe(precision="nvfp4"), "cuda:sm_120,cpu").precision == "nvfp4"
    assert resolved(Recipe(precision="auto"), "cuda:sm_120a,cuda:sm_100").precision == "nvfp4"
    assert resolved(Recipe(precision="auto"), "cuda:sm_120a,cuda:sm_89").precision == "int4"
    assert resolved(Recipe(precision="auto"), "cuda:sm_120a,cpu:avx2").precision == "int4"
    with pytest.raises(UnsupportedPrecision, match="nvfp4"):
        resolved(Recipe(precision="nvfp4"), "cuda")


def test_resolved__8_bit_activations_on_hopper_alone() -> None:
    assert resolved(Recipe(precision="auto"), "cuda:sm_90").precision == "w4a8"
    assert resolved(Recipe(precision="auto"), "cuda:sm_90a, cuda:sm_120a").precision == "int4"
    assert resolved(Recipe(precision="auto"), "cuda:sm_90a,cpu").precision == "int4"
