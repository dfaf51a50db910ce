"""A program's graph as JSON and back: what `svdqc.reference` executes.

    {"version": 1, "inputs": […], "outputs": […], "nodes": [{"name", "op", "target", "args", "kwargs"}, …]}

Arguments are JSON values; a node is {"node": name}, a dtype {"dtype": "float32"}, a float that JSON cannot hold
{"float": "inf"}. Devices and memory formats are left out: they do not change values.
"""

from __future__ import annotations

import json
import math
import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

# The svdq:: ops must exist before a graph names them.
import svdqc.compiler.quantize.ops  # noqa: F401
from svdqc.compiler.ir.program import Program, TensorSpec
from svdqc.compiler.ir.weights import LayeredWeights, WeightStore
from svdqc.errors import SvdqcError

VERSION = 1
_DROPPED = ("device", "layout", "pin_memory", "memory_format", "non_blocking")
_OPERATORS = {
    f.__name__: f
    for f in (
        operator.getitem,
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.mod,
        operator.neg,
        operator.pow,
        operator.truediv,
    )
}
_SYMBOLIC = {
    f.__name__: f
    for f in (torch.sym_max, torch.sym_min, torch.sym_int, torch.sym_float, torch.sym_not)
}
_NAMESPACES = ("aten", "svdq", "prims")


class UnreadableGraph(SvdqcError):
    """A graph section names something that this version does not know."""


def dump_graph(program: Program) -> bytes:
    """The graph as canonical JSON; weights by the names in the program's store."""
    nodes = []
    for node in program.graph_module.graph.nodes:
        entry: dict[str, Any] = {"name": node.name, "op": node.op}
        if node.op == "get_attr":
            entry["weight"] = node.meta["weight"]
        elif node.op == "call_function":
            entry["target"] = _target_name(node.target)
            entry["kwargs"] = {k: _encode(v) for k, v in node.kwargs.items() if k not in _DROPPED}
        if node.op in ("call_function", "output"):
            entry["args"] = _encode(node.args)
        nodes.append(entry)
    document = {
        "version": VERSION,
        "inputs": [spec.name for spec in program.inputs],
        "outputs": [spec.name for spec in program.outputs],
        "nodes": nodes,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def load_graph(data: bytes, weights: WeightStore) -> Program:
    """A runnable program from `dump_graph`; its specs carry names only, no shapes."""
    document = json.loads(data)
    if document.get("version") != VERSION:
        raise UnreadableGraph(
            "reference",
            "graph",
            f"version {document.get('version')!r}",
            f"use an artifact of version {VERSION}",
        )
    graph = Graph()
    nodes: dict[str, Node] = {}
    names = iter(document["inputs"])
    for entry in document["nodes"]:
        nodes[entry["name"]] = _add_node(graph, entry, nodes, names)
    root = torch.nn.Module()
    for node in graph.nodes:
        if (
            node.op == "get_attr"
        ):  # the interpreter reads weights by name; fx only wants the attribute to exist
            root.register_buffer(node.target, torch.empty(0, device="meta"))
    module = GraphModule(root, graph)
    inputs = tuple(TensorSpec(n, (), torch.float32) for n in document["inputs"])
    outputs = tuple(TensorSpec(n, (), torch.float32) for n in document["outputs"])
    return Program(module, LayeredWeights(weights), inputs, outputs, origin="artifact")


def _add_node(graph: Graph, entry: dict[str, Any], nodes: dict[str, Node], names: Any) -> Node:
    op = entry["op"]
    if op == "placeholder":
        return graph.placeholder(entry["name"])
    if op == "get_attr":
        node = graph.create_node("get_attr", entry["name"])
        node.meta["weight"] = entry["weight"]
        return node
    args = _decode(entry["args"], nodes)
    if op == "output":
        output: Node = graph.output(args[0])
        return output
    return graph.call_function(
        _target(entry["target"]),
        tuple(args),
        {k: _decode(v, nodes) for k, v in entry["kwargs"].items()},
    )


def _target_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    name = getattr(target, "__name__", str(target))
    if name in _OPERATORS or name in _SYMBOLIC:
        return f"python.{name}"
    raise UnreadableGraph(
        "write", str(target), "an op that the graph format cannot name", "report this model"
    )


def _target(name: str) -> Any:
    namespace, *path = name.split(".")
    if namespace == "python":
        table = {**_OPERATORS, **_SYMBOLIC}
        if path[0] in table:
            return table[path[0]]
    elif namespace in _NAMESPACES and len(path) == 2:
        packet = getattr(getattr(torch.ops, namespace), path[0], None)
        if packet is not None and hasattr(packet, path[1]):
            return getattr(packet, path[1])
    raise UnreadableGraph(
        "reference",
        name,
        "no such op in this installation",
        "install the versions the artifact was made with",
    )


def _encode(value: Any) -> Any:
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_encode(v) for v in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, (torch.device, torch.memory_format, torch.layout)):
        return None
    if isinstance(value, torch.SymInt):
        return int(value)
    assert value is None or isinstance(value, (bool, int, float, str)), f"{value!r} in a graph"
    return value


def _decode(value: Any, nodes: dict[str, Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, nodes) for v in value]
    if isinstance(value, dict):
        if "node" in value:
            return nodes[value["node"]]
        if "dtype" in value:
            return getattr(torch, value["dtype"])
        if "float" in value:
            return float(value["float"])
    return value
