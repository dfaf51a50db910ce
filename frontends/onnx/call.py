"""One execution of one node: its attributes, and access to sizes and scalars among its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from svdqc.frontends.onnx.dtypes import onnx_code
from svdqc.frontends.onnx.errors import DataDependentError, OnnxNodeError
from svdqc.frontends.onnx.host import Host, Value, host_of_tensor

if TYPE_CHECKING:
    from svdqc.frontends.onnx.graph import Graph, Node


@dataclass(frozen=True)
class Call:
    """What an operator's function sees of its node.

    node         name, operator, attributes
    opset        of the model
    run_graph    executes a subgraph attribute in the scope of this node: `(graph, inputs) → outputs`
    """

    node: Node
    opset: int
    run_graph: Callable[[Graph, Sequence[Value]], list[Value]]

    @property
    def num_outputs(self) -> int:
        return len(self.node.outputs)

    def wants(self, index: int) -> bool:
        """Whether output `index` has a name, so somebody may read it."""
        return index < len(self.node.outputs) and self.node.outputs[index] != ""

    # ---- attributes

    def has(self, name: str) -> bool:
        return name in self.node.attributes

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.node.attributes.get(name, default)

    def required(self, name: str) -> Any:
        if name not in self.node.attributes:
            raise self.error(f"no attribute {name!r}", "write it into the model")
        return self.node.attributes[name]

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.node.attributes.get(name, default))

    # ---- inputs

    def code(self, index: int, value: Value | None) -> int:
        """The ONNX element type of input `index`, which a carrier dtype alone does not tell."""
        narrow = self.node.narrow_inputs.get(index)
        if narrow is not None:
            return narrow
        assert value is not None, f"{self.node.label}: input {index} is absent"
        return onnx_code(value.dtype)

    def host(self, value: Value, what: str) -> Host:
        """The elements of `value`. Tensors are read if they are real, and refused while tracing."""
        if isinstance(value, Host):
            return value
        if isinstance(value, FakeTensor):
            raise DataDependentError(
                self.node.label,
                f"{what} of {self.node.op_type} is computed from the data of a tensor",
                "compute it from shapes or constants, or make it a constant of the model",
            )
        return host_of_tensor(value)

    def ints(self, value: Value, what: str = "the shape") -> list[Any]:
        """The elements of `value` as ints and SymInts, in row-major order."""
        return self.host(value, what).flat()

    def static_ints(self, value: Value, what: str = "the axes") -> list[int]:
        """The elements of `value`, which may not depend on a dynamic dim."""
        hosted = self.host(value, what)
        if not hosted.is_static():
            raise DataDependentError(
                self.node.label,
                f"{what} of {self.node.op_type} depends on a dynamic dim",
                "make that dim static",
            )
        return [int(item) for item in hosted.flat()]

    def axes(self, name: str, value: Value | None) -> list[int] | None:
        """Axes given as an input in newer opsets, as an attribute in older ones."""
        if value is not None:
            return self.static_ints(value)
        attribute = self.node.attributes.get(name)
        return None if attribute is None else [int(axis) for axis in attribute]

    def error(self, found: str, remedy: str) -> OnnxNodeError:
        return OnnxNodeError(self.node.label, found, remedy)


def materialise(value: Value | None) -> Tensor | None:
    """The tensor of a value."""
    return value.tensor() if isinstance(value, Host) else value


def require_tensor(value: Value) -> Tensor:
    return value.tensor() if isinstance(value, Host) else value
