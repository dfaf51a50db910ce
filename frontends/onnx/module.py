"""OnnxModule: an ONNX graph as an nn.Module, for torch.export to trace."""

from __future__ import annotations

import inspect
import keyword
import re
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from svdqc.frontends.onnx.errors import OnnxError
from svdqc.frontends.onnx.examples import Examples, find_examples
from svdqc.frontends.onnx.execute import Executor, keeping_sources
from svdqc.frontends.onnx.graph import Graph
from svdqc.frontends.onnx.host import MOST_HOST_ELEMENTS, Host, Value, host_of_tensor


@dataclass(frozen=True)
class OnnxInput:
    """A graph input.

    name   keyword of OnnxModule.forward: the ONNX name, made an identifier
    shape  sizes, or the name of a dynamic dim
    """

    name: str
    onnx_name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype


class OnnxModule(nn.Module):
    """Runs an ONNX graph. `forward` takes the inputs by keyword and returns {output name: tensor}.

    graph_inputs   the inputs, in order
    output_names   ONNX names of the outputs, in order
    dynamic_axes   input name → {axis: name of the dynamic dim}
    weight_names   attribute of this module → name of the initializer
    opset          of the model
    """

    def __init__(
        self,
        graph: Graph,
        inputs: tuple[OnnxInput, ...],
        tensors: dict[str, Tensor],
        opset: int,
    ) -> None:
        super().__init__()
        self.graph_inputs = inputs
        self.output_names = tuple(graph.outputs)
        self.opset = opset
        self.weight_names: dict[str, str] = {}
        self._graph = graph
        self._constants: dict[str, Value | None] = {}
        taken = set(dir(self))
        for key, tensor in tensors.items():
            attribute = identifier(key, taken, prefix="weight_")
            self.weight_names[attribute] = key
            self._register(attribute, key, tensor)
        self._examples: Examples | None = None
        # torch.export reads the names of the inputs from the signature.
        keyword_only = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward = partial(OnnxModule._forward, self)
        forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(spec.name, keyword_only, annotation=Tensor) for spec in inputs]
        )
        self.forward = forward

    def _register(self, attribute: str, key: str, tensor: Tensor) -> None:
        if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1:
            self.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
        else:
            self.register_buffer(attribute, tensor)
        if tensor.numel() <= MOST_HOST_ELEMENTS:
            self._constants[key] = host_of_tensor(tensor, partial(getattr, self, attribute))
        else:
            self._constants[key] = None

    @property
    def input_names(self) -> dict[str, str]:
        """Keyword of forward → ONNX name."""
        return {spec.name: spec.onnx_name for spec in self.graph_inputs}

    @property
    def examples(self) -> Examples:
        """Sizes for the dynamic dims that the model runs with; found at the first call."""
        if self._examples is None:
            self._examples = find_examples(self)
        return self._examples

    @property
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Input name → {axis: dim}. Dims that the graph needs to be equal have one name."""
        names = self.examples.names
        axes = {
            spec.name: {
                axis: names[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)
            }
            for spec in self.graph_inputs
        }
        return {name: named for name, named in axes.items() if named}

    @property
    def example_inputs(self) -> dict[str, Tensor]:
        """Inputs the model runs with: small distinct sizes for the dynamic dims, seeded values."""
        return dict(self.examples.inputs)

    def _forward(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        names = [spec.name for spec in self.graph_inputs]
        given = dict(zip(names, args, strict=False))
        for name, tensor in kwargs.items():
            if name not in names or name in given:
                raise OnnxError(name, "no such input, or given twice", f"give {', '.join(names)}")
            given[name] = tensor
        missing = [name for name in names if name not in given]
        if missing or len(args) > len(names):
            raise OnnxError(
                "inputs", f"{len(args)} positional, missing {missing}", f"give {', '.join(names)}"
            )
        constants: dict[str, Value] = {}
        for attribute, key in self.weight_names.items():
            value = self._constants[key]
            constants[key] = getattr(self, attribute) if value is None else value
        executor = Executor(constants, self.opset)
        with keeping_sources():
            results = executor.run(self._graph, [given[name] for name in names])
        return {
            name: value.tensor() if isinstance(value, Host) else value
            for name, value in zip(self.output_names, results, strict=True)
        }


def identifier(name: str, taken: set[str], prefix: str = "input_") -> str:
    """`name` as a Python identifier that is not in `taken`, to which it is added."""
    base = re.sub(r"\W", "_", name, flags=re.ASCII) or prefix
    if base[0].isdigit() or keyword.iskeyword(base) or base.startswith("_") or base in taken:
        base = prefix + base
    candidate, count = base, 1
    while candidate in taken:
        count += 1
        candidate = f"{base}_{count}"
    taken.add(candidate)
    return candidate
