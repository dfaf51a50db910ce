"""A captured model: one runnable fx graph, its lazy weights, its named dims, its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

import torch
from torch.fx import GraphModule

from svdqc.compiler.ir.weights import LayeredWeights


@dataclass(frozen=True)
class Dim:
    """A symbolic size: `lo <= dim <= hi` and `dim % multiple == 0`.

    The graph's symbol counts units: dim = multiple * symbol (see `svdqc.frontends.dims`).
    """

    name: str
    lo: int
    hi: int
    multiple: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.lo <= self.hi, f"dim {self.name!r}: empty range [{self.lo}, {self.hi}]"
        assert self.multiple >= 1, f"dim {self.name!r}: multiple {self.multiple} < 1"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the model.

    name   keyword path: `img_ids`, `cond.0.mask`; outputs: `sample`, `0`
    shape  ints and SymInts, as in the fake tensor of its node
    """

    name: str
    shape: tuple[int | torch.SymInt, ...]
    dtype: torch.dtype


@dataclass
class Program:
    """The one intermediate representation, from the frontend to the plan.

    graph_module  placeholders = `inputs` in order; weights are get_attr nodes whose `meta["weight"]` is a
                  key of `weights`; the output node holds a flat tuple, one tensor per `outputs` entry.
                  Each node has `meta["val"]` (fake value) and `meta["source"]` (where it comes from).
    dims          sympy symbol name (as in the SymInts' expressions) → Dim
    origin        what was captured: "torch.export", "onnx", …, with a name for messages
    """

    graph_module: GraphModule
    weights: LayeredWeights
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: dict[str, Dim] = field(default_factory=dict)
    origin: str = ""
    name: str = "model"

    def copy(self) -> Program:
        """The same program, to be rewritten apart: weights that passes derive stay its own."""
        graph, root = deepcopy(self.graph_module.graph), torch.nn.Module()
        for node in graph.nodes:
            if (
                node.op == "get_attr"
            ):  # read by name from the store; fx wants the attribute to exist
                root.register_buffer(str(node.target), torch.empty(0, device="meta"))
        module = GraphModule(root, graph)
        return replace(self, graph_module=module, weights=LayeredWeights(self.weights))

    def run(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Execute the graph with PyTorch, reading each weight when it is first used.

        `inputs` has exactly the names in `self.inputs`. Works after any pass.
        """
        from svdqc.compiler.ir.interpreter import run_program

        return run_program(self, inputs)

    def input_names(self) -> Sequence[str]:
        return [spec.name for spec in self.inputs]
