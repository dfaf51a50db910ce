"""Tiny diffusion models: torch.onnx → svdqc.compile → svdqc.load, against PyTorch."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import svdqc
from svdqc.compiler.driver.compile import capture_canonical
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.frontends.onnx import load_onnx

sys.path.insert(0, str(Path(__file__).parents[1] / "frontends" / "onnx"))

from test_models import Case, dit, flux, pixart, saved, unet

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
"""Relative L2: float32 sums in another order; angles of large positions round by 1e-6 of a turn."""


def exported(make: Callable[[], Case], opset: int, folder: Path) -> tuple[Case, Path]:
    torch.manual_seed(0)
    case = make()
    case.module.eval()
    saved(case, opset, folder / "model.onnx")
    return case, folder / "model.onnx"


def tensors(inputs: dict[str, Any], names: Any) -> dict[str, torch.Tensor]:
    return {name: inputs[name] for name in names}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def checked(case: Case, inputs: dict[str, Any], model: svdqc.Model) -> None:
    with torch.no_grad():
        expected = case.module(**inputs, return_dict=False)[0]
    (found,) = model(**tensors(inputs, [port.name for port in model.inputs])).values()
    assert relative_error(torch.as_tensor(found), expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("make", "opset"),
    [
        pytest.param(pixart, 23, id="pixart-23"),
        pytest.param(unet, 18, id="unet-18"),
    ],
)
def test_compiled_model__fixed_sizes(make: Callable[[], Case], opset: int, tmp_path: Path) -> None:
    case, path = exported(make, opset, tmp_path)
    given = tensors(case.inputs, load_onnx(path).input_names)
    svdqc.compile(path, given, output=tmp_path / "m.svdq", recipe=Recipe(precision="none"))
    with svdqc.load(tmp_path / "m.svdq") as model:
        checked(case, case.inputs, model)


def test_compiled_model__dynamic_batch(tmp_path: Path) -> None:
    case, path = exported(dit, 18, tmp_path)
    artifact = tmp_path / "m.svdq"
    given = tensors(case.inputs, load_onnx(path).input_names)
    recipe = Recipe(precision="none")
    svdqc.compile(path, given, output=artifact, recipe=recipe, dynamic="batch=1:4")
    with svdqc.load(artifact) as model:
        for batch in (1, 2, 4):
            checked(
                case,
                {
                    name: x[:1].repeat(batch, *[1] * (x.dim() - 1)) if batch != 2 else x
                    for name, x in case.inputs.items()
                },
                model,
            )


def test_compiled_model__dims_named_by_the_file(tmp_path: Path) -> None:
    case, path = exported(flux, 18, tmp_path)
    module = load_onnx(path)
    axes, artifact = module.dynamic_axes, tmp_path / "m.svdq"
    batch, img = axes["hidden_states"][0], axes["hidden_states"][1]
    text = axes["txt_ids"][0]
    dims = f"{batch}=1:4,{img}=4:64,{text}=2:32"
    given = tensors(case.inputs, module.input_names)
    svdqc.compile(path, given, output=artifact, recipe=Recipe(precision="none"), dynamic=dims)
    longer = copy.deepcopy(case.inputs)
    for name, (rows, axis) in {
        "hidden_states": (31, 1),
        "img_ids": (31, 0),
        "encoder_hidden_states": (9, 1),
        "txt_ids": (9, 0),
    }.items():
        shape = list(longer[name].shape)
        shape[axis] = rows
        longer[name] = torch.randn(shape)
    with svdqc.load(artifact) as model:
        checked(case, case.inputs, model)
        checked(case, longer, model)


def wide_dit() -> Case:
    from diffusers import DiTTransformer2DModel

    module = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=16,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_type="ada_norm_zero",
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 16, 16),
        "timestep": torch.tensor([1, 2]),
        "class_labels": torch.tensor([1, 3]),
    }
    return Case(module, inputs, {name: {0: "batch"} for name in inputs})


def test_quantized_layers__same_from_onnx_as_from_pytorch(tmp_path: Path) -> None:
    """The rules find the layers though torch.onnx folds and renames their weights."""
    case, path = exported(wide_dit, 18, tmp_path)
    recipe = Recipe(precision="int4")
    given = tensors(case.inputs, load_onnx(path).input_names)
    chosen = [
        {
            d.layer: d.precision
            for d in capture_canonical(model, given, None, recipe).decisions
            if d.quantized
        }
        for model in (path, case.module)
    ]
    assert Counter(chosen[0].values()) == {"int4": 12, "w4a16": 2}  # two modulation layers
    assert chosen[0] == chosen[1]
