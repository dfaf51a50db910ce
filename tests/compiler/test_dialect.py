"""The verifier names the first node that a stage may not hold; the dump shows every node."""

from __future__ import annotations

import pytest
import torch
from tests.compiler.element_operands import floats
from tests.compiler.programs import ProgramBuilder

from svdqc.compiler.ir import ops
from svdqc.compiler.ir.dialect import Dialect, IllegalGraph, verify
from svdqc.compiler.ir.dump import dump_program
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.dialects import CANONICAL, CAPTURED, LOWERED
from svdqc.compiler.passes.materialize import materialize

aten = torch.ops.aten


def program() -> Program:
    b = ProgramBuilder()
    x, w = b.input(floats(3, 8)), b.weight("up.weight", floats(4, 8))
    y = b.call(aten.linear.default, x, w, source="up")
    return b.finish(b.call(aten.softmax.int, y, -1, source="act"))


def refused(graph: Program, dialect: Dialect, match: str) -> None:
    with pytest.raises(IllegalGraph, match=match):
        verify(graph, dialect)


def test_captured_graph_is_legal() -> None:
    verify(program(), CAPTURED)


def test_undecomposed_op_is_not_canonical() -> None:
    refused(program(), CANONICAL, r"act.*aten.softmax.int has neither a rule nor a kernel")


def test_16_bit_activations_are_not_canonical() -> None:
    b = ProgramBuilder()
    graph = b.finish(b.call(aten.exp.default, b.input(floats(3, dtype=torch.bfloat16))))
    verify(graph, CAPTURED)
    refused(graph, CANONICAL, "activations are float32")


def test_outputs_without_memory_are_not_lowered() -> None:
    b = ProgramBuilder()
    graph = b.finish(b.call(aten.exp.default, b.input(floats(3))))
    verify(graph, CANONICAL)
    refused(graph, LOWERED, "no memory of its own")
    materialize(graph)
    verify(graph, LOWERED)


def test_parts_without_memory_are_not_lowered() -> None:
    b = ProgramBuilder()
    x = b.input(floats(3, 4))
    joined = b.call(ops.concat, [x, b.call(ops.copy, x)], 1)
    refused(b.finish(b.call(ops.copy, joined)), LOWERED, "part x0 has no memory")


def test_missing_weight() -> None:
    graph = program()
    node = next(n for n in graph.graph_module.graph.nodes if n.op == "get_attr")
    node.meta["weight"] = "down.weight"
    refused(graph, CAPTURED, "'down.weight' is not in the store")


def test_weight_of_another_shape() -> None:
    graph = program()
    node = next(n for n in graph.graph_module.graph.nodes if n.op == "get_attr")
    node.meta["val"] = node.meta["val"].t()
    refused(graph, CAPTURED, r"the node torch.float32 \[8, 4\]")


def test_use_before_definition() -> None:
    graph = program()
    nodes = list(graph.graph_module.graph.nodes)
    linear = next(n for n in nodes if n.target is aten.linear.default)
    softmax = next(n for n in nodes if n.target is aten.softmax.int)
    softmax.append(linear)
    refused(graph, CAPTURED, "which comes later")


def test_foreign_call() -> None:
    graph = program()
    node = next(n for n in graph.graph_module.graph.nodes if n.target is aten.softmax.int)
    node.target = torch.relu
    node.args = (node.args[0],)
    refused(graph, CAPTURED, "no op of aten, prims, svdq")


def test_dump_has_a_line_per_node() -> None:
    graph = program()
    text = dump_program(graph)
    for node in graph.graph_module.graph.nodes:
        assert text.count(f"\n%{node.name} ") == 1
    line = next(line for line in text.splitlines() if line.startswith("%linear"))
    assert "float32 [3, 4]" in line
    assert "aten.linear.default(%x0, %w_up_weight)" in line
    assert line.endswith("up")
