"""Small ONNX models for the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from svdqc.frontends.onnx import OnnxModule, load_onnx

Shape = Sequence[int | str]


def model_of(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Shape] | Mapping[str, tuple[int, Shape]],
    outputs: Sequence[str],
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    opset: int = 18,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model; inputs are f32 unless given with their element type."""
    infos = []
    for name, spec in inputs.items():
        typed = len(spec) == 2 and not isinstance(spec[1], (int, str))
        code, shape = (spec[0], spec[1]) if typed else (TensorProto.FLOAT, spec)
        infos.append(helper.make_tensor_value_info(name, code, list(shape)))  # type: ignore[arg-type]
    outs = [helper.make_empty_tensor_value_info(name) for name in outputs]
    stored = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", infos, outs, stored)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def module_of(model: onnx.ModelProto, folder: Path) -> OnnxModule:
    return load_onnx(saved(model, folder))


def node(
    op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
) -> NodeProto:
    name = f"{op_type.lower()}_{outputs[0]}"
    return helper.make_node(op_type, list(inputs), list(outputs), name=name, **attributes)


def external(name: str, dims: Sequence[int], **entries: str) -> TensorProto:
    """An f32 initializer stored outside of the model."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=list(dims))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor
