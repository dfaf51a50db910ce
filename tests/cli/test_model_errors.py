"""Models and options that cannot be compiled: exit code 2, and a sentence with place, value and remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.cli.conftest import CommandLine


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "model.svdq"


@pytest.fixture(autouse=True)
def nothing_is_written(output: Path):  # type: ignore[no-untyped-def]
    yield
    assert list(output.parent.iterdir()) == []


def test_missing_file(svdqc: CommandLine, output: Path) -> None:
    svdqc.fails(
        "compile", "/nowhere/model.onnx", "-o", output, saying=("/nowhere/model.onnx", "no such")
    )


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.txt"])
def test_not_a_model(svdqc: CommandLine, output: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("these are not the weights you are looking for")
    svdqc.fails("compile", path, "-o", output, saying=(name,))


def test_not_a_model__folder_without_config(
    svdqc: CommandLine, output: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    svdqc.fails("compile", folder, "-o", output, saying=("empty", "config.json"))


def test_not_a_model__factory(svdqc: CommandLine, output: Path) -> None:
    svdqc.fails("compile", "tiny_models:not_a_module", "-o", output, saying=("int", "nn.Module"))
    svdqc.fails("compile", "tiny_models:absent", "-o", output, saying=("tiny_models:absent",))


@pytest.mark.parametrize("command", ["compile", "inspect"])
def test_unsupported_ops__all_at_once_with_their_places(
    svdqc: CommandLine, output: Path, command: str
) -> None:
    if command == "inspect":
        ran = svdqc("inspect", "tiny_models:unsupported")
        assert ran.code in (0, 2)
        told = ran.out + ran.err
    else:
        ran = svdqc("compile", "tiny_models:unsupported", "-o", output)
        assert ran.code == 2, ran.err
        told = ran.err
    assert "Traceback" not in told, told
    for part in ("cummax", "logcumsumexp", "first", "second"):
        assert part in told, f"{part!r} is not in: {told}"


def test_wrong_inputs__name(svdqc: CommandLine, output: Path, tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    np.savez(path, z=np.zeros((4, 64), np.float32))
    svdqc.fails(
        "compile", "tiny_models:mlp", "--inputs", path, "-o", output, saying=("z", "it takes x")
    )


def test_inputs_file__missing_damaged_and_of_another_kind(
    svdqc: CommandLine, output: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\xff" * 64)
    text = tmp_path / "inputs.txt"
    text.write_text("x = 1")
    for path, part in ((tmp_path / "absent.npz", "no such"), (damaged, "readable"), (text, ".txt")):
        for option in ("--inputs", "--calibration"):
            svdqc.fails("compile", "tiny_models:mlp", option, path, "-o", output, saying=(part,))


def test_calibration__empty_folder(svdqc: CommandLine, output: Path, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    svdqc.fails(
        *("compile", "tiny_models:mlp", "--calibration", folder, "-o", output),
        saying=("samples", "no .npz"),
    )


@pytest.mark.parametrize("dims", ["batch", "batch=9:1", "batch=a:b", "width_of_nothing=1:2:0"])
def test_dynamic__that_means_nothing(svdqc: CommandLine, output: Path, dims: str) -> None:
    svdqc.fails("compile", "tiny_models:mlp", "--dynamic", dims, "-o", output, saying=("[",))


def test_target__unknown(svdqc: CommandLine, output: Path) -> None:
    svdqc.fails(
        "compile", "tiny_models:mlp", "--target", "abacus", "-o", output, saying=("abacus",)
    )


@pytest.mark.parametrize(
    ("option", "value"), [("--rank", "-1"), ("--rank", "many"), ("--precision", "int3")]
)
def test_recipe__that_means_nothing(
    svdqc: CommandLine, output: Path, option: str, value: str
) -> None:
    svdqc.fails("compile", "tiny_models:mlp", option, value, "-o", output, saying=(value,))


def test_onnx__external_data_outside_its_folder(
    svdqc: CommandLine, output: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 64 * 4))
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 64])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", "16384")):
        weight.external_data.add(key=key, value=value)
    port = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 64]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", port[:1], port[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert onnx.load(path, load_external_data=False).graph.initializer[0].name == "w"
    svdqc.fails("compile", path, "-o", output, saying=("../secret.bin",))
