"""Tiny diffusion models exported by torch.onnx, against PyTorch itself, and through torch.export again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from svdqc.frontends.onnx import load_onnx

pytestmark = pytest.mark.slow

# f32 sums in another order: eps times the longest sum (a few hundred terms) times values of up to 4.
TOLERANCE = 1e-5


@dataclass
class Case:
    """A model with inputs, and the dims that are dynamic: input → {axis: name}."""

    module: nn.Module
    inputs: dict[str, Any]
    dynamic: dict[str, Any]


def dit() -> Case:
    from diffusers import DiTTransformer2DModel

    module = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_type="ada_norm_zero",
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([1, 2]),
        "class_labels": torch.tensor([1, 3]),
    }
    return Case(module, inputs, {name: {0: "batch"} for name in inputs})


def pixart() -> Case:
    from diffusers import PixArtTransformer2DModel

    module = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=12,
        use_additional_conditions=False,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 6, 12),
        "timestep": torch.tensor([1, 2]),
        "encoder_attention_mask": torch.tensor([[1.0, 1, 1, 0, 0, 0], [1.0] * 6]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    dynamic = {
        "hidden_states": None,
        "encoder_hidden_states": {1: "text"},
        "timestep": None,
        "encoder_attention_mask": {1: "text"},
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return Case(module, inputs, dynamic)


def unet() -> Case:
    from diffusers import UNet2DConditionModel

    module = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    inputs = {
        "sample": torch.randn(2, 4, 16, 16),
        "timestep": torch.tensor([1, 2]),
        "encoder_hidden_states": torch.randn(2, 7, 16),
    }
    dynamic = {
        "sample": {0: "batch", 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},
        "timestep": {0: "batch"},
        "encoder_hidden_states": {0: "batch", 1: "text"},
    }
    return Case(module, inputs, dynamic)


def flux() -> Case:
    from diffusers import FluxTransformer2DModel

    module = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    inputs = {
        "hidden_states": torch.randn(2, 16, 16),
        "encoder_hidden_states": torch.randn(2, 6, 32),
        "pooled_projections": torch.randn(2, 32),
        "timestep": torch.tensor([0.5, 0.7]),
        "img_ids": torch.randn(16, 3),
        "txt_ids": torch.randn(6, 3),
        "guidance": torch.tensor([3.5, 3.5]),
    }
    dynamic = {
        "hidden_states": {0: "batch", 1: "img"},
        "encoder_hidden_states": {0: "batch", 1: "text"},
        "pooled_projections": {0: "batch"},
        "timestep": {0: "batch"},
        "img_ids": {0: "img"},
        "txt_ids": {0: "text"},
        "guidance": {0: "batch"},
    }
    return Case(module, inputs, dynamic)


def saved(case: Case, opset: int, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            case.module,
            (),
            kwargs={**case.inputs, "return_dict": False},
            dynamo=True,
            opset_version=opset,
            dynamic_shapes={**case.dynamic, "return_dict": None},
            external_data=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=True)


@pytest.mark.parametrize(
    ("make", "opset", "num_symbols"),
    [
        pytest.param(dit, 18, 1, id="dit-18"),
        pytest.param(dit, 23, 1, id="dit-23"),
        pytest.param(pixart, 23, 1, id="pixart-23"),
        pytest.param(unet, 18, 4, id="unet-18"),
        pytest.param(flux, 23, 5, id="flux-23"),
    ],
)
def test_model__as_pytorch(
    make: Callable[[], Case], opset: int, num_symbols: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    case = make()
    case.module.eval()
    saved(case, opset, tmp_path / "model.onnx")
    module = load_onnx(tmp_path / "model.onnx")
    inputs = {name: case.inputs[name] for name in module.input_names}
    with torch.no_grad():
        expected = case.module(**case.inputs, return_dict=False)[0]
        (found,) = module(**inputs).values()
    assert expected.abs().max() > 100 * TOLERANCE
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)

    axes, auto = module.dynamic_axes, torch.export.Dim.AUTO
    dynamic = {name: dict.fromkeys(axes.get(name, {}), auto) for name in module.input_names}
    program = torch.export.export(
        module, (), module.example_inputs, dynamic_shapes=dynamic, strict=False
    )
    assert len(program.range_constraints) == num_symbols
    with torch.no_grad():
        (replayed,) = program.module()(**inputs).values()
    torch.testing.assert_close(replayed, expected, rtol=0, atol=TOLERANCE)
    targets = {str(node.target) for node in program.graph.nodes}
    assert not targets & {"aten.item.default", "aten._local_scalar_dense.default"}
    assert {"aten.linear.default", "aten.layer_norm.default"} <= targets
    if opset >= 23:
        assert {"aten.scaled_dot_product_attention.default", "aten.gelu.default"} <= targets
