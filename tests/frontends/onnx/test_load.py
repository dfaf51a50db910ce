"""What load_onnx makes of a file, and every error it has."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tests.frontends.onnx.build import external, model_of, module_of, node, saved

from svdqc.errors import SvdqcError
from svdqc.frontends.onnx import load_onnx
from svdqc.frontends.onnx.errors import (
    DataDependentError,
    ExternalDataMissingError,
    ExternalDataPathError,
    ExternalDataRangeError,
    MalformedOnnxError,
    NotAnOnnxFileError,
    OnnxDomainError,
    OnnxNodeError,
    OnnxOpsetError,
    UnsupportedOnnxOpsError,
    UnsupportedOnnxTypeError,
)

RELU = node("Relu", ["x"], ["y"])


def model_with_external(**entries: str) -> onnx.ModelProto:
    """y = x + w, with w [4] f32 in a file."""
    model = model_of([node("Add", ["x", "w"], ["y"])], {"x": [4]}, ["y"])
    model.graph.initializer.append(external("w", [4], **entries))
    return model


def test_module__names_inputs_and_outputs(tmp_path: Path) -> None:
    nodes = [node("Add", ["in.put/0", "class"], ["out:0"]), node("Relu", ["out:0"], ["z"])]
    inputs = {"in.put/0": ["batch", 3], "class": ["batch", 3]}
    module = module_of(model_of(nodes, inputs, ["z", "out:0"]), tmp_path)
    assert module.input_names == {"in_put_0": "in.put/0", "input_class": "class"}
    assert module.output_names == ("z", "out:0")
    assert module.dynamic_axes == {"in_put_0": {0: "batch"}, "input_class": {0: "batch"}}
    outputs = module(**module.example_inputs)
    assert list(outputs) == ["z", "out:0"]


def test_module__input_that_is_an_initializer_is_a_weight(tmp_path: Path) -> None:
    model = model_of(
        [node("Add", ["x", "w"], ["y"])], {"x": [2], "w": [2]}, ["y"], {"w": np.ones(2, np.float32)}
    )
    module = module_of(model, tmp_path)
    assert list(module.input_names) == ["x"]
    assert list(module.weight_names.values()) == ["w"]


def test_example_inputs__distinct_sizes_and_types(tmp_path: Path) -> None:
    inputs = {"x": (TensorProto.FLOAT16, ["b", "n"]), "i": (TensorProto.INT64, ["b", "m"])}
    nodes = [node("Relu", ["x"], ["y"]), node("Neg", ["i"], ["j"])]
    examples = module_of(model_of(nodes, inputs, ["y", "j"]), tmp_path).example_inputs
    assert examples["x"].dtype == torch.float16
    assert examples["i"].dtype == torch.int64
    sizes = {*examples["x"].shape, *examples["i"].shape}
    assert len(sizes) == 3
    assert min(sizes) >= 2


def test_example_inputs__dims_that_must_be_equal_get_one_name(tmp_path: Path) -> None:
    # a + b tokens are added to c + d tokens: neither pair alone makes it run.
    nodes = [
        node("Concat", ["p", "q"], ["pq"], axis=0),
        node("Concat", ["r", "s"], ["rs"], axis=0),
        node("Add", ["pq", "rs"], ["y"]),
    ]
    inputs = {"p": ["a", 4], "q": ["b", 4], "r": ["c", 4], "s": ["d", 4]}
    module = module_of(model_of(nodes, inputs, ["y"]), tmp_path)
    assert len({name for axes in module.dynamic_axes.values() for name in axes.values()}) == 2
    module(**module.example_inputs)


def test_external__mapped_without_copy_and_aligned_or_not(tmp_path: Path) -> None:
    values = np.arange(5, dtype=np.float32)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"\0" * 3 + values.tobytes() + values[:4].tobytes())
    model = model_of([node("Add", ["x", "w"], ["y"])], {"x": [4]}, ["y"])
    model.graph.initializer.append(
        external("w", [4], location="sub/w.bin", offset="3", length="16")
    )
    module = module_of(model, tmp_path)
    assert torch.equal(module(x=torch.zeros(4))["y"], torch.arange(4.0))


def test_external__larger_than_memory_is_only_mapped(tmp_path: Path) -> None:
    rows = 1 << 23
    with (tmp_path / "w.bin").open("wb") as file:
        try:
            file.truncate(rows * 1024 * 4)  # 32 GiB of holes
        except OSError:
            pytest.skip("this file system has no sparse files")
    model = model_of([node("Gather", ["w", "i"], ["y"])], {"i": (TensorProto.INT64, [2])}, ["y"])
    model.graph.initializer.append(external("w", [rows, 1024], location="w.bin"))
    module = module_of(model, tmp_path)
    assert torch.equal(module(i=torch.tensor([0, -1]))["y"], torch.zeros(2, 1024))


@pytest.mark.parametrize(
    "location",
    ["/etc/hostname", "../w.bin", "sub/../../w.bin", "C:\\w.bin", "..\\w.bin", "", "a\0b"],
)
def test_external__rejects_location_outside(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(b"\0" * 16)
    with pytest.raises(ExternalDataPathError, match="'w'"):
        load_onnx(saved(model_with_external(location=location), folder))


def test_external__rejects_links_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 16)
    (folder / "w.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "sub").symlink_to(tmp_path, target_is_directory=True)
    for location in ("w.bin", "sub/secret.bin"):
        with pytest.raises(ExternalDataPathError, match="link out"):
            load_onnx(saved(model_with_external(location=location), folder))


def test_external__rejects_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(ExternalDataPathError, match="no file"):
        load_onnx(saved(model_with_external(location="w.bin"), tmp_path))


def test_external__missing(tmp_path: Path) -> None:
    with pytest.raises(ExternalDataMissingError):
        load_onnx(saved(model_with_external(location="w.bin"), tmp_path))


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "1"},
        {"offset": "-4"},
        {"offset": "99999999999999999999999"},
        {"offset": "0x0"},
        {"length": "12"},
        {"length": "-16"},
        {"offset": "18446744073709551600", "length": "16"},
    ],
)
def test_external__rejects_ranges_outside_of_the_file(
    tmp_path: Path, entries: dict[str, str]
) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 16)
    with pytest.raises(ExternalDataRangeError, match="'w'"):
        load_onnx(saved(model_with_external(location="w.bin", **entries), tmp_path))


def test_external__rejects_empty_file(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(ExternalDataRangeError, match="truncated"):
        load_onnx(saved(model_with_external(location="w.bin"), tmp_path))


@pytest.mark.parametrize(
    "data", [b"", b"hello, world", b"\x80\x02}q\x00.", b"PK\x03\x04" + b"\0" * 64]
)
def test_load__rejects_other_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(NotAnOnnxFileError):
        load_onnx(path)


def test_load__rejects_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(NotAnOnnxFileError):
            load_onnx(path)


def test_load__every_truncation_is_a_named_error(tmp_path: Path) -> None:
    weights = {"w": np.ones((3, 3), np.float32)}
    model = model_of([node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])],
                     {"x": [2, 3]}, ["y"], weights)  # fmt: skip
    data = model.SerializeToString()
    path = tmp_path / "model.onnx"
    refused = 0
    for size in range(len(data)):
        path.write_bytes(data[:size])
        try:
            load_onnx(path)
        except SvdqcError:
            refused += 1
    # The opset comes last in the file: nothing shorter is a model.
    assert refused == len(data)


@pytest.mark.parametrize("opset", [1, 7, 12])
def test_load__rejects_old_opset(tmp_path: Path, opset: int) -> None:
    with pytest.raises(OnnxOpsetError, match="convert_version"):
        module_of(model_of([RELU], {"x": [2]}, ["y"], opset=opset), tmp_path)


def test_load__rejects_future_opset(tmp_path: Path) -> None:
    with pytest.raises(OnnxOpsetError, match="upgrade"):
        module_of(model_of([RELU], {"x": [2]}, ["y"], opset=10_000), tmp_path)


def test_load__rejects_foreign_domain_listing_all(tmp_path: Path) -> None:
    foreign = [
        helper.make_node("Fused", ["x"], ["a"], domain="com.microsoft"),
        helper.make_node("Fused", ["a"], ["b"], domain="com.microsoft"),
        helper.make_node("Other", ["b"], ["y"], domain="my"),
    ]
    model = model_of(foreign, {"x": [2]}, ["y"], domains=["com.microsoft", "my"])
    with pytest.raises(OnnxDomainError, match=r"com\.microsoft::Fused ×2, my::Other ×1"):
        module_of(model, tmp_path)


def test_load__rejects_unsupported_operators_all_at_once(tmp_path: Path) -> None:
    nodes = [
        node("NonMaxSuppression", ["x", "x"], ["a"]),
        node("RandomNormalLike", ["x"], ["b"]),
        node("RandomNormalLike", ["b"], ["y"]),
    ]
    with pytest.raises(UnsupportedOnnxOpsError) as caught:
        module_of(model_of(nodes, {"x": [1, 2, 4]}, ["y"]), tmp_path)
    assert caught.value.nodes == {
        "NonMaxSuppression": ("nonmaxsuppression_a",),
        "RandomNormalLike": ("randomnormallike_b", "randomnormallike_y"),
    }
    assert "RandomNormalLike ×2 ('randomnormallike_b', 'randomnormallike_y')" in str(caught.value)


def test_load__rejects_strings_and_sequences(tmp_path: Path) -> None:
    text = model_of([node("Identity", ["x"], ["y"])], {"x": (TensorProto.STRING, [2])}, ["y"])
    with pytest.raises(UnsupportedOnnxTypeError, match="STRING"):
        module_of(text, tmp_path)
    listed = model_of([RELU], {"x": [2]}, ["y"])
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2])
    listed.graph.input.append(sequence)
    with pytest.raises(UnsupportedOnnxTypeError, match="sequence"):
        module_of(listed, tmp_path)


@pytest.mark.parametrize(
    ("nodes", "outputs", "found"),
    [
        ([node("Relu", ["gone"], ["y"])], ["y"], "reads 'gone'"),
        ([node("Relu", ["h"], ["y"]), node("Relu", ["x"], ["h"])], ["y"], "reads 'h'"),
        ([RELU, RELU], ["y"], "defined twice"),
        ([RELU], ["z"], "no node makes"),
    ],
)
def test_load__rejects_broken_graph(
    tmp_path: Path, nodes: list[onnx.NodeProto], outputs: list[str], found: str
) -> None:
    with pytest.raises(MalformedOnnxError, match=found):
        module_of(model_of(nodes, {"x": [2]}, outputs), tmp_path)


def test_load__rejects_initializer_of_wrong_size(tmp_path: Path) -> None:
    model = model_of([node("Add", ["x", "w"], ["y"])], {"x": [2]}, ["y"])
    model.graph.initializer.append(
        TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], raw_data=b"\0" * 4)
    )
    with pytest.raises(MalformedOnnxError, match="4 bytes of data for 8"):
        module_of(model, tmp_path)


def test_load__rejects_negative_shape(tmp_path: Path) -> None:
    model = model_of([node("Add", ["x", "w"], ["y"])], {"x": [2]}, ["y"])
    model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[-1]))
    with pytest.raises(MalformedOnnxError, match="shape"):
        module_of(model, tmp_path)


def test_run__error_names_the_node(tmp_path: Path) -> None:
    module = module_of(
        model_of([node("MatMul", ["x", "x"], ["y"])], {"x": [2, 3]}, ["y"]), tmp_path
    )
    with pytest.raises(OnnxNodeError, match="'matmul_y'"):
        module(x=torch.zeros(2, 3))


def test_run__missing_and_unknown_inputs(tmp_path: Path) -> None:
    module = module_of(model_of([RELU], {"x": [2]}, ["y"]), tmp_path)
    with pytest.raises(SvdqcError, match="missing"):
        module()
    with pytest.raises(SvdqcError, match="no such input"):
        module(z=torch.zeros(2))


def test_export__rejects_data_dependent_shape(tmp_path: Path) -> None:
    inputs = {"x": [6], "s": (TensorProto.INT64, [2])}
    module = module_of(model_of([node("Reshape", ["x", "s"], ["y"])], inputs, ["y"]), tmp_path)
    assert module(x=torch.zeros(6), s=torch.tensor([2, 3]))["y"].shape == (2, 3)
    example = {"x": torch.zeros(6), "s": torch.tensor([2, 3])}
    with pytest.raises(DataDependentError, match="'reshape_y'"):
        torch.export.export(module, (), example, strict=False)


def test_load__inlines_local_functions(tmp_path: Path) -> None:
    body = [helper.make_node("Mul", ["a", "a"], ["b"]), helper.make_node("Relu", ["b"], ["c"])]
    function = helper.make_function(
        "my", "SquaredRelu", ["a"], ["c"], body, [helper.make_opsetid("", 18)]
    )
    nodes = [helper.make_node("SquaredRelu", ["x"], ["y"], domain="my")]
    weights = {"unused": np.ones(100, np.float32)}
    model = model_of(nodes, {"x": [2]}, ["y"], weights, functions=[function], domains=["my"])
    module = module_of(model, tmp_path)
    assert torch.equal(module(x=torch.tensor([2.0, -3.0]))["y"], torch.tensor([4.0, 9.0]))
