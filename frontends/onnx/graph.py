"""The parsed graph: nodes bound to their implementations, constants to tensors, everything checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import AttributeProto, GraphProto, NodeProto
from torch import Tensor

from svdqc.frontends.onnx.dtypes import is_narrow
from svdqc.frontends.onnx.errors import MalformedOnnxError, UnsupportedOnnxTypeError
from svdqc.frontends.onnx.external import TensorReader
from svdqc.frontends.onnx.host import MOST_HOST_ELEMENTS, host_of_tensor
from svdqc.frontends.onnx.registry import OpDef, find_op

STANDARD_DOMAINS = ("", "ai.onnx")

# Operators whose output has the element type of their first input, whatever that is.
_MOVERS = frozenset(
    {"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather"}
    | {"GatherElements", "GatherND", "Concat", "Split", "Expand", "Tile", "Pad", "DepthToSpace"}
    | {"ScatterElements", "ScatterND", "SpaceToDepth", "ReverseSequence"}
)


@dataclass(frozen=True)
class Node:
    """One operator, ready to run.

    source         the module of the original model it comes from, if the exporter wrote it down, or its name
    inputs         names, "" where absent
    narrow_inputs  input index → ONNX element type, where the carrier dtype does not tell it
    constant_inputs  indices of inputs that depend on initializers alone: weights
    dead_after     values nobody reads after this node
    """

    name: str
    op_type: str
    op: OpDef
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    narrow_inputs: dict[int, int]
    constant_inputs: frozenset[int] = frozenset()
    dead_after: tuple[str, ...] = ()
    source: str = ""

    @property
    def label(self) -> str:
        return self.name or f"{self.op_type} → {next((name for name in self.outputs if name), '?')}"


@dataclass
class Graph:
    """Nodes in order of execution. `constants` maps a value's name to a key of the builder's tensors."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: list[Node]
    constants: dict[str, str] = field(default_factory=dict)


class GraphBuilder:
    """Parses a GraphProto and its subgraphs.

    tensors      key → tensor, of every initializer and Constant
    unsupported  operator → names of its nodes, where there is no implementation
    """

    def __init__(self, opset: int, reader: TensorReader) -> None:
        self.opset = opset
        self.reader = reader
        self.tensors: dict[str, Tensor] = {}
        self.unsupported: dict[str, list[str]] = {}
        self._constant_names: set[str] = set()

    def build(self, proto: GraphProto, outer: dict[str, int | None] | None = None) -> Graph:
        """Parse `proto`. `outer` has the names a subgraph sees, with their narrow types."""
        scope: dict[str, int | None] = dict(outer or {})
        own: set[str] = set()
        constants: dict[str, str] = {}

        def define(name: str, code: int | None, where: str) -> None:
            if name in own:
                raise MalformedOnnxError(where, f"value {name!r} defined twice", "export again")
            own.add(name)
            scope[name] = code if code is not None and is_narrow(code) else None

        for tensor in proto.initializer:
            define(tensor.name, tensor.data_type, tensor.name)
            constants[tensor.name] = self._add(tensor.name, self.reader.read(tensor))
        for sparse in proto.sparse_initializer:
            define(sparse.values.name, sparse.values.data_type, sparse.values.name)
            constants[sparse.values.name] = self._add(
                sparse.values.name, dense_of_sparse(sparse, self.reader)
            )
        inputs = tuple(info.name for info in proto.input if info.name not in constants)
        for info in proto.input:
            if info.name not in constants:
                define(info.name, info.type.tensor_type.elem_type or None, info.name)

        nodes: list[Node] = []
        for node_proto in proto.node:
            label = node_proto.name or f"{node_proto.op_type} → {', '.join(node_proto.output)}"
            for name in node_proto.input:
                if name and name not in scope:
                    raise MalformedOnnxError(
                        label, f"reads {name!r}, which nothing before it makes", "export again"
                    )
            code: int | None
            if node_proto.op_type == "Constant":
                tensor_of_node = self._constant(node_proto, label)
                (output,) = node_proto.output
                code = _constant_code(node_proto)
                constants[output] = self._add(output, tensor_of_node)
                define(output, code, label)
                continue
            node = self._node(node_proto, label, scope)
            if node is not None:
                nodes.append(node)
            code = _narrow_output(node_proto, scope)
            for name in node_proto.output:
                if name:
                    define(name, code, label)
            if node_proto.input and self._constant_names.issuperset(filter(None, node_proto.input)):
                self._constant_names.update(node_proto.output)
        outputs = tuple(info.name for info in proto.output)
        for name in outputs:
            if name not in scope:
                raise MalformedOnnxError(
                    name, "an output that no node makes", "the file is truncated: export it again"
                )
        return Graph(proto.name, inputs, outputs, _with_lifetimes(nodes, outputs), constants)

    def _node(self, proto: NodeProto, label: str, scope: dict[str, int | None]) -> Node | None:
        attributes = {attr.name: self._attribute(attr, label, scope) for attr in proto.attribute}
        for key, value in attributes.items():
            if isinstance(value, Tensor) and value.numel() <= MOST_HOST_ELEMENTS:
                # Read now: while tracing, the elements of a tensor are out of reach.
                attributes[key] = host_of_tensor(value)
        op = find_op(proto.op_type, self.opset)
        if op is None:
            self.unsupported.setdefault(proto.op_type, []).append(label)
            return None
        narrow = {
            index: code
            for index, name in enumerate(proto.input)
            if name and (code := scope[name]) is not None
        }
        return Node(
            name=proto.name,
            op_type=proto.op_type,
            op=op,
            attributes=attributes,
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            source=_source_of(proto) or label,
            narrow_inputs=narrow,
            constant_inputs=frozenset(
                index for index, name in enumerate(proto.input) if name in self._constant_names
            ),
        )

    def _attribute(self, attr: AttributeProto, label: str, scope: dict[str, int | None]) -> Any:
        kind = attr.type
        if kind == AttributeProto.FLOAT:
            return float(attr.f)
        if kind == AttributeProto.INT:
            return int(attr.i)
        if kind == AttributeProto.STRING:
            return attr.s.decode("utf-8", errors="replace")
        if kind == AttributeProto.FLOATS:
            return [float(item) for item in attr.floats]
        if kind == AttributeProto.INTS:
            return [int(item) for item in attr.ints]
        if kind == AttributeProto.STRINGS:
            return [item.decode("utf-8", errors="replace") for item in attr.strings]
        if kind == AttributeProto.TENSOR:
            return self.reader.read(attr.t)
        if kind == AttributeProto.SPARSE_TENSOR:
            return dense_of_sparse(attr.sparse_tensor, self.reader)
        if kind == AttributeProto.GRAPH:
            return self.build(attr.g, scope)
        raise UnsupportedOnnxTypeError(
            label,
            f"attribute {attr.name!r} of kind {AttributeProto.AttributeType.Name(kind)}",
            "only numbers, strings, tensors and graphs are known",
        )

    def _constant(self, proto: NodeProto, label: str) -> Tensor:
        if len(proto.attribute) != 1 or len(proto.output) != 1:
            raise MalformedOnnxError(label, "a Constant without exactly one value", "export again")
        attr = proto.attribute[0]
        if attr.name in ("value_string", "value_strings"):
            raise UnsupportedOnnxTypeError(
                label, "a string constant", "move text processing out of the model"
            )
        value = self._attribute(attr, label, {})
        if attr.name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
        if attr.name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
        assert isinstance(value, Tensor), f"{label}: Constant attribute {attr.name!r}"
        return value

    def _add(self, name: str, tensor: Tensor) -> str:
        """A key for a tensor: its name, made unique across subgraphs."""
        key, count = name, 1
        while key in self.tensors:
            count += 1
            key = f"{name}#{count}"
        self.tensors[key] = tensor
        self._constant_names.add(name)
        return key


def dense_of_sparse(sparse: Any, reader: TensorReader) -> Tensor:
    """The dense tensor of a SparseTensorProto: indices are linear [nnz] or coordinates [nnz, rank]."""
    values = reader.read(sparse.values)
    indices = reader.read(sparse.indices).to(torch.int64)
    shape = tuple(sparse.dims)
    dense = torch.zeros(shape, dtype=values.dtype)
    coordinates = (
        torch.unravel_index(indices, shape) if indices.dim() == 1 else tuple(indices.unbind(1))
    )
    dense[coordinates] = values
    return dense


def _constant_code(proto: NodeProto) -> int | None:
    attr = proto.attribute[0]
    return int(attr.t.data_type) if attr.name == "value" else None


def _narrow_output(proto: NodeProto, scope: dict[str, int | None]) -> int | None:
    """The ONNX type of a node's outputs, if it is one that is carried in a wider type."""
    codes = [scope[name] if name else None for name in proto.input]
    numbers = {attr.name: int(attr.i) for attr in proto.attribute}
    if proto.op_type in ("Cast", "BitCast"):
        return numbers.get("to")
    if proto.op_type == "CastLike":
        return codes[1]
    if proto.op_type == "QuantizeLinear":
        return numbers.get("output_dtype") or (codes[2] if len(codes) > 2 else None)
    if proto.op_type == "DequantizeLinear":
        return None
    return codes[0] if proto.op_type in _MOVERS and codes else None


def _source_of(proto: NodeProto) -> str:
    """The path of the module a node was exported from: torch.onnx keeps the scopes of each node."""
    for entry in proto.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            # A list of paths from the outside in, as Python prints it; the last one is the operator.
            scopes = [scope.strip().strip("'\"") for scope in entry.value.strip("[]").split(",")]
            module = scopes[-2] if len(scopes) > 1 else ""
            return "" if module.startswith("_empty_nn_module_stack") else module
    return ""


def subgraphs(attributes: dict[str, Any]) -> list[Graph]:
    return [value for value in attributes.values() if isinstance(value, Graph)]


def _reads(node: Node) -> list[str]:
    """Every name a node reads, including those its subgraphs take from the scope around them."""
    names = [name for name in node.inputs if name]
    for graph in subgraphs(node.attributes):
        inner = {name for child in graph.nodes for name in _reads(child)}
        names.extend(sorted(inner | set(graph.outputs)))
    return names


def _with_lifetimes(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """Nodes with `dead_after` filled in: what they make or read last, and is no output."""
    seen, ordered = set(outputs), []
    for node in reversed(nodes):
        touched = dict.fromkeys([*_reads(node), *(name for name in node.outputs if name)])
        dead = tuple(name for name in touched if name not in seen)
        seen.update(touched)
        ordered.append(
            Node(
                **{
                    **{key: getattr(node, key) for key in node.__dataclass_fields__},
                    "dead_after": dead,
                }
            )
        )
    return ordered[::-1]
