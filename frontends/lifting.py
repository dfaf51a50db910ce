"""ExportedProgram → Program: weights become lazy get_attr nodes, inputs and outputs get their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from svdqc.compiler.ir.program import Dim, Program, TensorSpec
from svdqc.compiler.ir.weights import LayeredWeights, WeightStore
from svdqc.frontends.dims import DimRequest
from svdqc.frontends.errors import DimConstraintError, UnsupportedGraphError
from svdqc.frontends.normalize import normalize
from svdqc.frontends.rewriting import add_weight_attribute
from svdqc.frontends.spec import walk

SourceOf = Callable[[str], str]


def lift(
    exported: ExportedProgram,
    stored: Callable[[Sequence[str]], WeightStore],
    constants: Mapping[str, torch.Tensor],
    *,
    subject: str,
    origin: str,
    source_of: SourceOf | None = None,
    output_names: Sequence[str] | None = None,
    weight_names: Mapping[str, str] | None = None,
) -> Program:
    """Build the Program of a decomposed export.

    stored     weight names that the graph uses → the store that holds them
    constants  tensors that no store has (lifted constants, computed buffers), by name
    """
    graph = Graph()
    values: dict[Node, Node] = {}
    used: list[str] = []
    own: dict[str, torch.Tensor] = {}
    weight_of: dict[Node, str] = {}
    names = _input_names(exported)
    inputs: list[TensorSpec] = []
    placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
    for index_of_user, (node, spec) in _user_indexed(placeholders, exported):
        if index_of_user is not None:
            if isinstance(spec.arg, TensorArgument):
                values[node] = graph.placeholder(node.name)
                val = node.meta["val"]
                inputs.append(TensorSpec(names[index_of_user], tuple(val.shape), val.dtype))
                values[node].meta = {"val": val, "source": names[index_of_user]}
            elif not isinstance(spec.arg, ConstantArgument):
                raise UnsupportedGraphError(
                    f"{subject}: {names[index_of_user]}",
                    "a symbolic Python number",
                    "pass a plain number",
                )
        elif node.users:
            name = (weight_names or {}).get(spec.target, spec.target)
            if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                kind = spec.kind.name.lower()
                raise UnsupportedGraphError(
                    f"{subject}: {name}", f"a {kind}", "use plain tensors in the model"
                )
            if name in constants:
                own[name] = constants[name]
            else:
                used.append(name)
            weight_of[node] = name

    def value_of(node: Node) -> Node:
        """The new node of `node`; a weight's is made where it is first used, so it is read no earlier."""
        if node not in values:
            name = weight_of[node]
            values[node] = graph.create_node("get_attr", "weight_" + _mangle(name))
            source = name.rpartition(".")[0]
            values[node].meta = {"val": node.meta["val"], "weight": name, "source": source}
        return values[node]

    for node in exported.graph.nodes:
        if node.op == "call_function":
            values[node] = graph.node_copy(node, value_of)
            source = _source(node, source_of)
            values[node].meta = {"val": node.meta.get("val"), "source": source}
        elif node.op == "get_attr":
            raise UnsupportedGraphError(
                f"{subject}: {_source(node, source_of)}",
                "control flow on tensors (torch.cond, while_loop, …)",
                "rewrite it with torch.where",
            )
    outputs = _outputs(exported, value_of, subject, output_names)
    result = graph.output(tuple(value for _, value in outputs))
    result.meta = {"val": tuple(value.meta["val"] for _, value in outputs), "source": "output"}

    weights = LayeredWeights(stored(used))
    for name, tensor in own.items():
        weights.put(name, tensor)
    module = GraphModule(_empty_root(graph), graph, class_name="Program")
    normalize(module, weights, subject)
    return Program(
        graph_module=module,
        weights=weights,
        inputs=tuple(inputs),
        outputs=tuple(_output_spec(name, node) for name, node in _renamed(outputs, module)),
        origin=origin,
        name=subject,
    )


def _user_indexed(
    placeholders: Sequence[Node], exported: ExportedProgram
) -> list[tuple[int | None, Any]]:
    """Placeholders with their specs; user inputs with their position among the flattened arguments."""
    rows: list[tuple[int | None, Any]] = []
    position = 0
    for node, spec in zip(placeholders, exported.graph_signature.input_specs, strict=True):
        user = spec.kind == InputKind.USER_INPUT
        rows.append((position if user else None, (node, spec)))
        position += user
    return rows


def _input_names(exported: ExportedProgram) -> list[str]:
    spec = exported.call_spec.in_spec
    args, kwargs = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    names = {index: name for name, index in walk(kwargs) if isinstance(index, int)}
    names.update({index: f"args.{name}" for name, index in walk(args) if isinstance(index, int)})
    return [names.get(index, f"input.{index}") for index in range(spec.num_leaves)]


def _outputs(
    exported: ExportedProgram,
    value_of: Callable[[Node], Node],
    subject: str,
    given_names: Sequence[str] | None,
) -> list[tuple[str, Node]]:
    """Names and nodes of the tensors among the outputs; Python constants are left out."""
    spec = exported.call_spec.out_spec
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    named = {index: name or "0" for name, index in walk(tree) if isinstance(index, int)}
    names = [named.get(index, str(index)) for index in range(spec.num_leaves)]
    (output_node,) = (node for node in exported.graph.nodes if node.op == "output")
    outputs: list[tuple[str, Node]] = []
    specs = exported.graph_signature.output_specs
    for position, (node, output) in enumerate(zip(output_node.args[0], specs, strict=True)):
        if output.kind != OutputKind.USER_OUTPUT:
            raise UnsupportedGraphError(
                f"{subject}: {output.target}",
                f"the model writes to it ({output.kind.name.lower()})",
                "make forward return the updated tensor instead",
            )
        if isinstance(output.arg, TensorArgument):
            outputs.append((names[position], value_of(node)))
        elif not isinstance(output.arg, ConstantArgument):
            raise UnsupportedGraphError(
                f"{subject}: {names[position]}", "an output that is a size", "return tensors only"
            )
    if not outputs:
        raise UnsupportedGraphError(subject, "no output is a tensor", "return at least one tensor")
    if given_names is not None and len(given_names) == len(outputs):
        return [(name, node) for name, (_, node) in zip(given_names, outputs, strict=True)]
    return outputs


def _renamed(outputs: Sequence[tuple[str, Node]], module: GraphModule) -> list[tuple[str, Node]]:
    """The outputs' nodes after normalization, which may have replaced them."""
    (output_node,) = (node for node in module.graph.nodes if node.op == "output")
    return [(name, node) for (name, _), node in zip(outputs, output_node.args[0], strict=True)]


def _output_spec(name: str, node: Node) -> TensorSpec:
    return TensorSpec(name, tuple(node.meta["val"].shape), node.meta["val"].dtype)


def _mangle(name: str) -> str:
    """An identifier for a weight name; distinct names stay distinct."""
    return "".join(c if c.isalnum() else "__" if c == "_" else f"_{ord(c):x}_" for c in name)


def _source(node: Node, source_of: SourceOf | None) -> str:
    """Module path of the innermost module that made the node: `transformer_blocks.0.attn.to_q`."""
    custom = node.meta.get("custom") or {}
    if "source" in custom:
        # An ONNX graph is one module: its nodes bring their own names.
        return str(custom["source"])
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    path = path.removeprefix("L['self'].").partition("@")[0]
    return source_of(path) if source_of is not None else path


def _empty_root(graph: Graph) -> nn.Module:
    """A module on which every get_attr target is a meta tensor: the values stay in their store."""
    root = nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr":
            add_weight_attribute(root, node.target, node.meta["val"])
    return root


def name_dims(program: Program, requests: Sequence[DimRequest]) -> None:
    """Fill `program.dims`: which symbol of the graph is which dim of the user."""
    shapes = {spec.name: spec.shape for spec in program.inputs}
    for request in requests:
        binding = request.bindings[0]
        size = shapes[binding.input][binding.axis]
        expression = size.node.expr if isinstance(size, torch.SymInt) else None
        symbols = sorted(expression.free_symbols, key=str) if expression is not None else []
        unit = symbols[0] if len(symbols) == 1 else None
        step = request.multiple * binding.factor
        if unit is None or expression != step * unit + binding.offset:
            raise DimConstraintError(
                request.text(),
                f"{binding} became {size if expression is None else expression} in the graph",
                "the model fixes this size, or has a branch for the example's: give example inputs of "
                f"another size, or leave {request.name!r} out, or tie it to the dim it follows",
            )
        program.dims[str(unit)] = Dim(request.name, request.lo, request.hi, request.multiple)
