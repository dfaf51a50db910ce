"""Run a Program with PyTorch, one weight in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Interpreter, Node

if TYPE_CHECKING:
    from svdqc.compiler.ir.program import Program

Observer = Callable[[Node, Any], None]


class ProgramInterpreter(Interpreter):
    """Resolves get_attr nodes from the program's weight store, and shows each value to `observer`."""

    def __init__(self, program: Program, observer: Observer | None = None) -> None:
        super().__init__(program.graph_module, garbage_collect_values=True)
        self._program = program
        self._observer = observer

    def run_node(self, n: Node) -> Any:
        if n.op == "get_attr":
            value: Any = self._program.weights.load(n.meta["weight"])
        else:
            value = super().run_node(n)
        if self._observer is not None:
            self._observer(n, value)
        return value


def run_program(
    program: Program, inputs: Mapping[str, torch.Tensor], observer: Observer | None = None
) -> tuple[torch.Tensor, ...]:
    """Run on named inputs; returns the outputs in the order of `program.outputs`."""
    missing = [spec.name for spec in program.inputs if spec.name not in inputs]
    assert not missing, f"missing inputs {missing}; the program takes {program.input_names()}"
    ordered = [inputs[spec.name] for spec in program.inputs]
    with torch.no_grad():
        outputs = ProgramInterpreter(program, observer).run(*ordered)
    return tuple(outputs)
