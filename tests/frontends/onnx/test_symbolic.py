"""Shape arithmetic stays symbolic: exports with dynamic dims, run at sizes never seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from tests.frontends.onnx.build import model_of, module_of, node, saved

from svdqc.frontends import capture
from svdqc.frontends.onnx import OnnxModule

I64 = np.int64


def exported(module: OnnxModule) -> torch.export.ExportedProgram:
    """An export in which every named dim is dynamic."""
    auto = torch.export.Dim.AUTO
    axes = module.dynamic_axes
    dynamic = {name: dict.fromkeys(axes.get(name, {}), auto) for name in module.input_names}
    return torch.export.export(
        module, (), module.example_inputs, dynamic_shapes=dynamic, strict=False
    )


def symbols(program: torch.export.ExportedProgram) -> int:
    return len(program.range_constraints)


def tensors_of_sizes(program: torch.export.ExportedProgram) -> list[Any]:
    """Nodes that turn a size into a tensor, or a tensor into a size."""
    names = ("item", "_local_scalar_dense", "scalar_tensor", "lift_fresh_copy", "nonzero")
    return [n for n in program.graph.nodes if any(name in str(n.target) for name in names)]


def check(model: onnx.ModelProto, tmp_path: Path, num_symbols: int, **inputs: torch.Tensor) -> None:
    module = module_of(model, tmp_path)
    program = exported(module)
    assert symbols(program) == num_symbols
    assert not tensors_of_sizes(program)
    for name, expected in module(**inputs).items():
        assert torch.equal(program.module()(**inputs)[name], expected)


def test_shape_chain__gather_mul_concat_reshape(tmp_path: Path) -> None:
    # [b, c, h, w] → [b, h·w, c], as PyTorch's flatten(2).transpose(1, 2) exports.
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "i0"], ["b"]),
        node("Slice", ["shape", "two", "four"], ["hw"]),
        node("ReduceProd", ["hw"], ["tokens"], keepdims=1),
        node("Unsqueeze", ["b", "zero"], ["b1"]),
        node("Cast", ["tokens"], ["tokens_f"], to=1),
        node("Cast", ["tokens_f"], ["tokens_i"], to=7),
        node("Concat", ["b1", "c", "tokens_i"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["flat"]),
        node("Transpose", ["flat"], ["y"], perm=[0, 2, 1]),
    ]
    weights = {
        "i0": np.array(0, I64),
        "zero": np.array([0], I64),
        "two": np.array([2], I64),
        "four": np.array([4], I64),
        "c": np.array([3], I64),
    }
    model = model_of(nodes, {"x": ["b", 3, "h", "w"]}, ["y"], weights)
    check(model, tmp_path, 3, x=torch.randn(5, 3, 6, 4))


def test_expand__where_equal_minus_one(tmp_path: Path) -> None:
    # torch.expand with -1 exports as Where(shape == -1, 1, shape).
    nodes = [
        node("Shape", ["x"], ["n"], start=0, end=1),
        node("Concat", ["n", "minus"], ["wanted"], axis=0),
        node("ConstantOfShape", ["two"], ["ones"], value=onnx.helper.make_tensor("v", 7, [1], [1])),
        node("Equal", ["wanted", "minus"], ["is_minus"]),
        node("Where", ["is_minus", "ones", "wanted"], ["target"]),
        node("Expand", ["row", "target"], ["y"]),
    ]
    weights = {
        "minus": np.array([-1], I64),
        "two": np.array([2], I64),
        "row": np.arange(3, dtype=np.float32),
    }
    check(model_of(nodes, {"x": ["n", 2]}, ["y"], weights), tmp_path, 1, x=torch.randn(7, 2))


def test_range_and_division(tmp_path: Path) -> None:
    # Positions 0 … n/2, as a table that depends on the size.
    nodes = [
        node("Shape", ["x"], ["shape"], start=1, end=2),
        node("Squeeze", ["shape"], ["n"]),
        node("Div", ["n", "two"], ["half"]),
        node("Range", ["zero", "half", "one"], ["positions"]),
        node("Cast", ["positions"], ["angles"], to=1),
        node("Sin", ["angles"], ["y"]),
    ]
    weights = {name: np.array(value, I64) for name, value in (("zero", 0), ("one", 1), ("two", 2))}
    check(model_of(nodes, {"x": [2, "n"]}, ["y"], weights), tmp_path, 1, x=torch.randn(2, 10))


def test_resize__sizes_from_another_tensor(tmp_path: Path) -> None:
    # A UNet's upsampling to the size of its skip connection.
    nodes = [
        node("Shape", ["skip"], ["hw"], start=2, end=4),
        node("Shape", ["x"], ["bc"], start=0, end=2),
        node("Concat", ["bc", "hw"], ["sizes"], axis=0),
        node("Resize", ["x", "", "", "sizes"], ["up"], mode="nearest",
             coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Concat", ["up", "skip"], ["y"], axis=1),
    ]  # fmt: skip
    inputs = {"x": ["b", 2, "h", "w"], "skip": ["b", 2, "h2", "w2"]}
    x, skip = torch.randn(3, 2, 4, 6), torch.randn(3, 2, 8, 12)
    check(model_of(nodes, inputs, ["y"]), tmp_path, 5, x=x, skip=skip)


def test_slice_and_pad__symbolic_bounds(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["n"], start=1, end=2),
        node("Sub", ["n", "one"], ["last"]),
        node("Slice", ["x", "one", "last", "one"], ["inner"]),
        node("Pad", ["inner", "pads"], ["y"], mode="edge"),
    ]
    weights = {"one": np.array([1], I64), "pads": np.array([0, 1, 0, 1], I64)}
    check(model_of(nodes, {"x": [2, "n"]}, ["y"], weights), tmp_path, 1, x=torch.randn(2, 9))


def test_split__symbolic_size(tmp_path: Path) -> None:
    nodes = [
        node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        node("Add", ["a", "b"], ["y"]),
    ]
    module = module_of(model_of(nodes, {"x": ["n", 6]}, ["y"]), tmp_path)
    assert symbols(exported(module)) == 1


def test_if__on_a_shape_takes_one_branch(tmp_path: Path) -> None:
    def branch(name: str, op_type: str) -> onnx.GraphProto:
        info = onnx.helper.make_empty_tensor_value_info(name)
        return onnx.helper.make_graph([node(op_type, ["x"], [name])], name, [], [info])

    nodes = [
        node("Shape", ["x"], ["rank_of"], start=1, end=2),
        node("Equal", ["rank_of", "four"], ["same"]),
        node(
            "If", ["same"], ["y"], then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg")
        ),
    ]
    model = model_of(nodes, {"x": ["n", 4]}, ["y"], {"four": np.array([4], I64)})
    program = exported(module_of(model, tmp_path))
    targets = [str(n.target) for n in program.graph.nodes]
    assert "aten.relu.default" in targets
    assert "aten.neg.default" not in targets


def test_export__nodes_name_their_onnx_node(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["h"]), node("Neg", ["h"], ["y"])]
    nodes[0].metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'blocks.0.act', 'relu']"
    )
    program = exported(module_of(model_of(nodes, {"x": ["n", 4]}, ["y"]), tmp_path))
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    sources = {str(n.target): n.meta["custom"]["source"] for n in calls}
    assert sources == {"aten.relu.default": "blocks.0.act", "aten.neg.default": "neg_y"}


def test_linear__weights_become_linear_layers(tmp_path: Path) -> None:
    weights = {"w": np.ones((4, 5), np.float32), "v": np.ones((6, 4), np.float32)}
    nodes = [
        node("MatMul", ["x", "w"], ["y"]),
        node("Transpose", ["v"], ["vt"], perm=[1, 0]),
        node("MatMul", ["x", "vt"], ["z"]),
    ]
    program = exported(
        module_of(model_of(nodes, {"x": ["b", "n", 4]}, ["y", "z"], weights), tmp_path)
    )
    targets = [str(n.target) for n in program.graph.nodes]
    assert targets.count("aten.linear.default") == 2
    assert "aten.matmul.default" not in targets


def test_capture__program_keeps_names_and_dims(tmp_path: Path) -> None:
    weights = {"blocks.0.weight": np.eye(4, dtype=np.float32)}
    nodes = [node("MatMul", ["x", "blocks.0.weight"], ["h"]), node("Relu", ["h"], ["out.0"])]
    model = model_of(nodes, {"x": ["batch", "tokens", 4]}, ["out.0"], weights)
    program = capture(saved(model, tmp_path), dynamic="batch=1:4,tokens=2:64")
    x = torch.randn(3, 7, 4)
    assert torch.equal(program.run({"x": x})[0], torch.relu(x))
    assert {dim.name for dim in program.dims.values()} == {"batch", "tokens"}
    assert [spec.name for spec in program.outputs] == ["out.0"]
    assert "blocks.0.weight" in program.weights
    sources = {n.meta["source"] for n in program.graph_module.graph.nodes if "relu" in n.name}
    assert sources == {"relu_out.0"}
