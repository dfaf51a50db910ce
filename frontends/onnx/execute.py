"""Executes a parsed graph with torch: host values where everything is known, tensors elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.fx.traceback import annotate, preserve_node_meta

from svdqc.frontends.onnx.call import Call, materialise
from svdqc.frontends.onnx.errors import OnnxError, OnnxNodeError
from svdqc.frontends.onnx.graph import Graph, Node
from svdqc.frontends.onnx.host import FOLDED_DTYPES, Host, Value
from svdqc.frontends.onnx.registry import fold


class Executor:
    """Runs graphs.

    constants  key of a constant → its value
    opset      of the model
    num_run    nodes executed so far
    """

    def __init__(self, constants: dict[str, Value], opset: int) -> None:
        self.num_run = 0
        self._constants = constants
        self._opset = opset

    def run(
        self, graph: Graph, inputs: Sequence[Value], outer: dict[str, Value] | None = None
    ) -> list[Value]:
        """The graph's outputs, in order. `outer` has the values a subgraph may read."""
        scope: dict[str, Value] = dict(outer or {})
        for name, key in graph.constants.items():
            scope[name] = self._constants[key]
        scope.update(zip(graph.inputs, inputs, strict=True))
        for node in graph.nodes:
            with source_of(node):
                results = self._run_node(node, scope)
            self.num_run += 1
            for name, value in zip(node.outputs, results, strict=False):
                if name:
                    scope[name] = value
            for name in node.dead_after:
                scope.pop(name, None)
        return [scope[name] for name in graph.outputs]

    def _run_node(self, node: Node, scope: dict[str, Value]) -> Sequence[Any]:
        call = Call(node, self._opset, lambda graph, inputs: self.run(graph, inputs, scope))
        values = [scope[name] if name else None for name in node.inputs]
        try:
            result = _fold(call, values)
            if result is NotImplemented:
                result = node.op.function(call, *_prepared(node, values))
        except (OnnxError, GuardOnDataDependentSymNode):
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            shapes = ", ".join(_describe(value) for value in values)
            failure = OnnxNodeError(
                node.label,
                f"{node.op_type}({shapes}) cannot be executed: {error}",
                "check the inputs of this node against the definition of its operator",
            )
            failure.num_run = self.num_run
            raise failure from error
        return list(result) if isinstance(result, (tuple, list)) else [result]


def _fold(call: Call, values: Sequence[Value | None]) -> Any:
    hosts = [value for value in values if isinstance(value, Host)]
    if len(hosts) != len(values) or not hosts or call.node.narrow_inputs:
        return NotImplemented
    if any(value.dtype not in FOLDED_DTYPES for value in hosts):
        return NotImplemented
    return fold(call, hosts)


def _prepared(node: Node, values: Sequence[Value | None]) -> list[Value | None]:
    """The inputs as the operator's function wants them: tensors, except where it takes host values."""
    wants_host = node.op.host
    if wants_host is None:
        return list(values)
    return [
        value if index in wants_host else materialise(value) for index, value in enumerate(values)
    ]


def source_of(node: Node) -> AbstractContextManager[object]:
    """While exporting, marks the traced nodes with the ONNX node they come from."""
    if torch.compiler.is_exporting():
        return annotate({"source": node.source})
    return nullcontext()


def keeping_sources() -> AbstractContextManager[object]:
    """While exporting, lets `source_of` reach the traced nodes, as `meta["custom"]["source"]`."""
    return preserve_node_meta() if torch.compiler.is_exporting() else nullcontext()


def _describe(value: Value | None) -> str:
    if value is None:
        return "-"
    kind = str(value.dtype).removeprefix("torch.")
    sizes = ", ".join(str(size) for size in value.shape)
    return f"{kind}[{sizes}]" if isinstance(value, Tensor) else f"{kind}[{sizes}] known"
