"""Families of diffusers: the captured graph computes what the module computes, for every legal size."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.frontends.zoo import SMALL, build, inputs_of
from torch import nn

from svdqc.compiler.ir.program import Dim, Program
from svdqc.frontends import capture, default_inputs, flatten_inputs
from svdqc.frontends.diffusers.families import FAMILIES, family_of
from svdqc.frontends.errors import CheckpointError, DimConstraintError, DynamicSpecError
from svdqc.frontends.stores import SafetensorsWeights

# In float64, where the order of a sum (which strides decide in eager) is far below any mistake.
RELATIVE = 1e-12
# Qwen-Image rotates in float32, by a product of complex numbers whose rounding is not specified;
# PixArt's positional table comes from numpy for the size of its config, from torch for others.
RELATIVE_FLOAT32 = 1e-6
# What a real config.json has and the class has no default for.
REQUIRED_CONFIG: dict[str, dict[str, Any]] = {"UNet2DModel": {"sample_size": 32}}


def assert_same(program: Program, model: nn.Module, inputs: dict[str, Any]) -> None:
    with torch.no_grad():
        expected = model(**inputs)[0]
    (found,) = program.run(flatten_inputs(inputs))
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    error = (found - expected).abs().max() / expected.abs().max()
    assert expected.abs().max() > 1e-2
    allowed = RELATIVE_FLOAT32 if type(model).__name__.startswith(("Qwen", "PixArt")) else RELATIVE
    assert error <= allowed, f"relative error {error}"


@pytest.mark.parametrize("name", SMALL)
def test_capture__static(name: str) -> None:
    model, inputs = build(name), inputs_of(name)
    program = capture(model, inputs)
    assert_same(program, model, inputs)
    assert program.input_names() == list(flatten_inputs(inputs))
    assert [spec.name for spec in program.outputs] == ["sample"]
    assert program.dims == {}
    for node in program.graph_module.graph.nodes:
        assert "val" in node.meta, node
        assert isinstance(node.meta["source"], str), node
        assert node.op != "get_attr" or node.meta["weight"] in program.weights


@pytest.mark.parametrize("name", ["pixart", "dit", "unet", "sana"])
def test_capture__dynamic_batch_and_height(name: str) -> None:
    model = build(name)
    # DiT takes its token count for a square's; PixArt has a branch for the size 8 x 8 of its config.
    sides = "" if name == "dit" else ",height=4:16"
    example_height, example_width = (8, 8) if name == "dit" else (12, 16)
    example = inputs_of(name, height=example_height, width=example_width)
    program = capture(model, example, dynamic="batch=1:3" + sides)
    found = {dim.name: dim for dim in program.dims.values()}
    assert found["batch"] == Dim("batch", 1, 3)
    if sides:
        step = 1 if name == "sana" else 2
        assert found["height"] == Dim("height", 4, 16, step)
    cases = [(1, 8), (3, 8)] + ([(2, 16), (1, 4)] if sides else [])
    for batch, height in cases:
        inputs = inputs_of(name, batch=batch, height=height, width=example_width)
        assert_same(program, model, inputs)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_capture__dynamic_batch_and_text(name: str) -> None:
    model = build(name)
    places = "encoder_hidden_states.1" + ("+txt_ids.0" if name == "flux" else "")
    program = capture(model, inputs_of(name), dynamic=f"batch=1:4,text@{places}=2:16")
    for size, text in [(1, 2), (4, 16), (2, 7)]:
        assert_same(program, model, inputs_of(name, batch=size, text=text))


def test_capture__native_size_is_no_dim() -> None:
    """PixArt takes the branch of its own size: the error says to trace with another one."""
    with pytest.raises(DimConstraintError, match="example inputs of another size"):
        capture(build("pixart"), inputs_of("pixart", height=8, width=8), dynamic="height=4:16")


def test_capture__flux_height_and_width_give_tokens() -> None:
    model = build("flux")
    program = capture(model, dynamic="batch=1:2,height=8:16:4,width=4:16:4,text=4:8")
    found = {dim.name: dim for dim in program.dims.values()}
    assert found["tokens"] == Dim("tokens", 8, 64, 4)
    for height, width in [(8, 4), (16, 16), (12, 8)]:
        assert_same(program, model, inputs_of("flux", batch=1, height=height, width=width, text=5))


def test_capture__flux_one_side_only() -> None:
    with pytest.raises(DynamicSpecError, match="give height and width"):
        capture(build("flux"), dynamic="height=8:16")


def test_capture__made_up_inputs_run() -> None:
    model = build("sana")
    dynamic = "width=4:16:4,height=4:16:4,text=3:9"
    inputs = default_inputs(model, dynamic=dynamic)
    # 8 is the size of the config, which a model may treat apart; so may it a square.
    assert inputs["hidden_states"].shape == (2, 4, 16, 12)
    assert inputs["encoder_hidden_states"].shape == (2, 9, 24)
    again = default_inputs(model, dynamic=dynamic)
    assert torch.equal(inputs["hidden_states"], again["hidden_states"])
    program = capture(model, dynamic=dynamic)
    assert_same(program, model, inputs)
    assert_same(program, model, inputs_of("sana", height=8, width=4, text=3))


@pytest.mark.parametrize("name", FAMILIES)
def test_families__describe_arguments_of_forward(name: str) -> None:
    """For the class's default config: every required argument has an example, none is unknown."""
    model_class = getattr(diffusers, name)
    defaults = inspect.signature(model_class.__init__).parameters
    config = {key: p.default for key, p in defaults.items() if p.default is not p.empty}
    config.update(REQUIRED_CONFIG.get(name, {}))
    family = family_of(name, config)
    assert family is not None
    parameters = inspect.signature(inspect.unwrap(model_class.forward)).parameters
    required = {key for key, p in parameters.items() if p.default is p.empty} - {"self"}
    assert required <= family.inputs.keys() <= parameters.keys()
    assert family.sizes.get("batch", 2) == 2
    assert family.axes().keys() == family.sizes.keys()


def test_capture__complex_rope_is_real() -> None:
    program = capture(build("qwen"), inputs_of("qwen"))
    for node in program.graph_module.graph.nodes:
        val = node.meta["val"]
        assert not (isinstance(val, torch.Tensor) and val.is_complex()), node


# --- folders -----------------------------------------------------------------------------------------


@pytest.fixture
def flux_folder(tmp_path: Path) -> Path:
    """A pipeline's folder: transformer/ with config and two shards, in bfloat16."""
    model = build("flux").to(torch.bfloat16)
    folder = tmp_path / "tiny-flux" / "transformer"
    model.save_pretrained(folder, max_shard_size="40KB")  # type: ignore[operator]
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder.parent


def test_folder__no_weight_is_read_by_capture(
    flux_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = SafetensorsWeights.load

    def counting(self: SafetensorsWeights, name: str) -> torch.Tensor:
        loads.append(name)
        return load(self, name)

    monkeypatch.setattr(SafetensorsWeights, "load", counting)
    program = capture(flux_folder, inputs_of_bf16(), dynamic="batch=1:3")
    assert loads == []
    assert program.name == "tiny-flux"
    assert program.origin == "diffusers"
    model = diffusers.FluxTransformer2DModel.from_pretrained(
        flux_folder / "transformer", torch_dtype=torch.bfloat16
    ).eval()
    with torch.no_grad():
        expected = model(**inputs_of_bf16()).sample
    (found,) = program.run(flatten_inputs(inputs_of_bf16()))
    # bfloat16 has 8 bits: two units in the last place of the largest value.
    assert (found - expected).abs().max() <= expected.abs().max() * 2**-6
    assert set(loads) == set(program.weights.names())


def inputs_of_bf16() -> dict[str, Any]:
    inputs = inputs_of("flux")
    keep = ("timestep", "img_ids", "txt_ids", "guidance")
    return {name: x.float() if name in keep else x.bfloat16() for name, x in inputs.items()}


def test_folder__computed_tables_are_real(tmp_path: Path) -> None:
    """PixArt's and DiT's positional table is no tensor of the checkpoint: it is computed, not guessed."""
    model = build("dit")
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    state = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert not any("pos_embed.pos_embed" in name for name in state)
    program = capture(tmp_path, inputs_of("dit", height=8, width=8))
    assert_same(program, model, inputs_of("dit", height=8, width=8))


def test_folder__missing_and_misshapen_tensors_are_all_listed(tmp_path: Path) -> None:
    build("dit").save_pretrained(tmp_path)  # type: ignore[operator]
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["proj_out_1.bias"], state["pos_embed.proj.weight"]
    state["proj_out_2.bias"] = torch.zeros(3)
    save_file(state, path)
    with pytest.raises(CheckpointError) as caught:
        capture(tmp_path)
    for part in ("proj_out_1.bias", "pos_embed.proj.weight", "proj_out_2.bias is [3] instead of"):
        assert part in str(caught.value)


def test_folder__missing_shard(flux_folder: Path) -> None:
    shard = min((flux_folder / "transformer").glob("*-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        capture(flux_folder)


def test_folder__damaged_weights(tmp_path: Path) -> None:
    build("dit").save_pretrained(tmp_path)  # type: ignore[operator]
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="download it again"):
        capture(tmp_path)


def test_folder__flux_dev_size_without_its_weights(tmp_path: Path) -> None:
    """The graph of a 2.4 GB checkpoint is captured from its header: the file has no data (it is sparse)."""
    import diffusers

    from svdqc.frontends.diffusers.folder import _parameters_on_meta

    config = {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
    with _parameters_on_meta():
        model = diffusers.FluxTransformer2DModel(**config)
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "FluxTransformer2DModel", **config})
    )
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        start, end = end, end + tensor.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (tmp_path / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    program = capture(tmp_path)
    total = sum(program.weights.spec(name).num_bytes for name in program.weights.names())
    assert total == end > 900e6
    assert program.inputs[0].shape[1:] == (4096, 64)
    # Without inputs and dims, the batch stays open.
    assert list(program.dims.values()) == [Dim("batch", 1, 4)]
