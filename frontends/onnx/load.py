"""load_onnx: from a file to an OnnxModule, or to an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.defs import onnx_opset_version
from onnx.inliner import inline_local_functions, inline_selected_functions

from svdqc.frontends.onnx.dtypes import torch_dtype
from svdqc.frontends.onnx.errors import (
    MalformedOnnxError,
    NotAnOnnxFileError,
    OnnxDomainError,
    OnnxOpsetError,
    UnsupportedOnnxOpsError,
    UnsupportedOnnxTypeError,
)
from svdqc.frontends.onnx.external import TensorReader
from svdqc.frontends.onnx.graph import STANDARD_DOMAINS, GraphBuilder
from svdqc.frontends.onnx.module import OnnxInput, OnnxModule, identifier
from svdqc.frontends.onnx.registry import OLDEST_OPSET, find_op


def load_onnx(path: str | Path) -> OnnxModule:
    """The model in file `path`; its external data must lie in the same folder."""
    path = Path(path)
    damaged = "give a complete .onnx file: download or export it again"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotAnOnnxFileError(str(path), error.strerror or str(error), damaged) from error
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise NotAnOnnxFileError(path.name, "no ONNX protobuf, or cut short", damaged) from error
    del data
    if model.ir_version == 0 or not model.HasField("graph") or not model.opset_import:
        raise NotAnOnnxFileError(path.name, "an ONNX file without a graph or opset", damaged)
    return module_of_model(model, path.parent, path.name)


def module_of_model(model: ModelProto, folder: Path | None, name: str = "model") -> OnnxModule:
    """The module of a parsed model, which is consumed. `folder` holds its external data."""
    opset = _opset(model, name)
    model = _expanded(_inlined(model, name), opset)
    graph = model.graph
    builder = GraphBuilder(opset, TensorReader(folder))
    built = builder.build(graph)
    if builder.unsupported:
        raise UnsupportedOnnxOpsError(name, builder.unsupported)
    initializers = {tensor.name for tensor in graph.initializer}
    taken: set[str] = set()
    inputs = tuple(_input(info, taken) for info in graph.input if info.name not in initializers)
    return OnnxModule(built, inputs, builder.tensors, opset)


def _opset(model: ModelProto, name: str) -> int:
    versions = {entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS}
    newest = onnx_opset_version()
    if not versions:
        raise OnnxOpsetError(name, "no opset of the ONNX standard", "export the model again")
    opset = int(max(versions))
    if opset < OLDEST_OPSET:
        raise OnnxOpsetError(
            name,
            f"opset {opset}, older than {OLDEST_OPSET}",
            f"convert it: onnx.version_converter.convert_version(model, {newest})",
        )
    if opset > newest:
        raise OnnxOpsetError(
            name,
            f"opset {opset}, newer than {newest}, the newest of onnx {onnx.__version__}",
            f"upgrade onnx and svdqc, or export with opset {newest}",
        )
    return opset


def _inlined(model: ModelProto, name: str) -> ModelProto:
    """The model with its own functions inlined, and no operator of a foreign domain."""
    if model.functions:
        model = _without_data(model, _inline_own)
    foreign: dict[str, int] = {}
    for node in all_nodes(model.graph):
        if node.domain not in STANDARD_DOMAINS:
            key = f"{node.domain}::{node.op_type}"
            foreign[key] = foreign.get(key, 0) + 1
    if foreign:
        listed = ", ".join(f"{key} ×{count}" for key, count in sorted(foreign.items()))
        raise OnnxDomainError(
            name,
            f"operators that are not of the ONNX standard: {listed}",
            "export the model with standard operators, or with the functions that define these",
        )
    return model


def _expanded(model: ModelProto, opset: int) -> ModelProto:
    """The model with operators that are known only as functions of others replaced by these."""
    while expandable := {
        ("", node.op_type)
        for node in all_nodes(model.graph)
        if node.op_type != "Constant"
        and find_op(node.op_type, opset) is None
        and _has_function(node.op_type, opset)
    }:
        count = sum(1 for _ in all_nodes(model.graph))
        inline = partial(
            inline_selected_functions,
            function_ids=sorted(expandable),
            inline_schema_functions=True,
        )
        try:
            model = _without_data(model, inline)
        except RuntimeError:
            # The function of a node depends on types that the file does not give: reported later.
            return model
        if sum(1 for _ in all_nodes(model.graph)) == count:
            return model
    return model


def _inline_own(model: ModelProto) -> ModelProto:
    own = {entry.domain: entry.version for entry in model.opset_import}
    mixed = any(
        own.get(entry.domain, entry.version) != entry.version
        for function in model.functions
        for entry in function.opset_import
    )
    return inline_local_functions(model, convert_version=mixed)


def _without_data(model: ModelProto, transform: Callable[[ModelProto], ModelProto]) -> ModelProto:
    """`transform` a model without copying its weights through it: they are put back afterwards."""
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    light = ModelProto()
    light.CopyFrom(_skeleton(model))
    transformed = transform(light)
    for stub in transformed.graph.initializer:
        if stub.name in initializers:
            stub.CopyFrom(initializers[stub.name])
    return transformed


def _skeleton(model: ModelProto) -> ModelProto:
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    source, graph = model.graph, light.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.sparse_initializer.extend(source.sparse_initializer)
    for tensor in source.initializer:
        graph.initializer.append(
            TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0])
        )
    return light


def _has_function(op_type: str, opset: int) -> bool:
    try:
        schema: Any = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Nodes of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for attr in node.attribute:
            if attr.type == AttributeProto.GRAPH:
                yield from all_nodes(attr.g)


def _input(info: ValueInfoProto, taken: set[str]) -> OnnxInput:
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        raise UnsupportedOnnxTypeError(
            info.name,
            f"an input of kind {kind or 'unknown'}",
            "only tensors can be inputs; unpack sequences and optionals before the model",
        )
    tensor_type = info.type.tensor_type
    if not tensor_type.HasField("shape"):
        raise MalformedOnnxError(
            info.name, "an input without a shape", "name its dims: onnx.shape_inference or export"
        )
    shape: list[int | str] = []
    for axis, dim in enumerate(tensor_type.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            shape.append(int(dim.dim_value))
        else:
            shape.append(dim.dim_param or f"{info.name}_dim{axis}")
    return OnnxInput(
        name=identifier(info.name, taken),
        onnx_name=info.name,
        shape=tuple(shape),
        dtype=torch_dtype(tensor_type.elem_type, info.name),
    )
