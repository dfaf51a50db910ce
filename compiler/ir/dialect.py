"""What a graph may hold at each stage: a verifier that names the first node that breaks the rules.

The rules that hold at every stage are here: nodes in order, fake values and sources on each, weights that exist and
are as described, one flat tuple of tensors at the end. A stage adds which calls are legal (`passes/dialects.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import Node

from svdqc.compiler.ir.program import Program
from svdqc.errors import SvdqcError

Judge = Callable[[Node], str | None]
"""Why a call is illegal, or None."""


class IllegalGraph(SvdqcError):
    """A pass left a graph that the next stage cannot take: a fault of the compiler, not of the model."""


@dataclass(frozen=True)
class Dialect:
    """A stage's name and what it says of a call, and of the output node."""

    stage: str
    judge_call: Judge
    judge_output: Judge = lambda node: None


def verify(program: Program, dialect: Dialect) -> None:
    """Raise IllegalGraph unless `program` is a legal graph of this stage."""
    problem = _first_problem(program, dialect)
    if problem is not None:
        node, found = problem
        where = f"{node.name} ({node.meta.get('source') or 'no source'})"
        remedy = "report this with the folder that --dump writes"
        raise IllegalGraph(f"{dialect.stage} graph", where, found, remedy)


def is_size(node: Node) -> bool:
    """Arithmetic on sizes, which is folded into the plan's expressions."""
    sizes = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
    return isinstance(node.meta.get("val"), sizes)


def _first_problem(program: Program, dialect: Dialect) -> tuple[Node, str] | None:
    seen: set[Node] = set()
    placeholders = 0
    for node in program.graph_module.graph.nodes:
        late = next((i for i in node.all_input_nodes if i not in seen), None)
        if late is not None:
            return node, f"it reads {late.name}, which comes later"
        seen.add(node)
        if node.op != "output" and "val" not in node.meta:
            return node, "it has no fake value"
        if node.op == "placeholder":
            placeholders += 1
            problem = None
        elif node.op == "get_attr":
            problem = _weight_problem(program, node)
        elif node.op == "call_function":
            problem = None if is_size(node) else _call_problem(node, dialect)
        elif node.op == "output":
            problem = _output_problem(program, node) or dialect.judge_output(node)
            if problem is None and placeholders != len(program.inputs):
                problem = f"{placeholders} placeholders for {len(program.inputs)} inputs"
        else:
            problem = f"op {node.op!r}, where only ATen calls and weights are legal"
        if problem is not None:
            return node, problem
    return None


def _call_problem(node: Node, dialect: Dialect) -> str | None:
    if "source" not in node.meta:
        return "it has no source"
    return dialect.judge_call(node)


def _weight_problem(program: Program, node: Node) -> str | None:
    name, value = node.meta.get("weight"), node.meta["val"]
    if name is None or name not in program.weights:
        return f"weight {name!r} is not in the store"
    spec = program.weights.spec(name)
    if spec.shape != tuple(value.shape) or spec.dtype != value.dtype:
        return f"weight {name!r} is {spec}, the node {value.dtype} {list(value.shape)}"
    return None


def _output_problem(program: Program, node: Node) -> str | None:
    values = node.args[0]
    if not isinstance(values, tuple) or not all(isinstance(v, Node) for v in values):
        return "the output is not a flat tuple of tensors"
    if len(values) != len(program.outputs):
        return f"{len(values)} values for {len(program.outputs)} outputs"
    return None
