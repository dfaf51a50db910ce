"""Small tools every graph pass uses: emit ops with their fake values, add weights, clean up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.weights import WeightSpec
from svdqc.errors import SvdqcError

aten = torch.ops.aten


def fake_mode_of(program: Program) -> FakeTensorMode:
    """The fake mode in which the program's values live."""
    for node in program.graph_module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


class DimFixed(SvdqcError):
    """A dim that should stay dynamic was fixed to the size of the example."""


class Rewriter:
    """Inserts ops before a place in the graph, keeping `meta["val"]` and `meta["source"]` right."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.graph: Graph = program.graph_module.graph
        self.mode = fake_mode_of(program)
        self._source = ""

    @contextmanager
    def before(self, node: Node) -> Iterator[None]:
        """Emit in front of `node`, with its source."""
        previous, self._source = self._source, node.meta.get("source", "")
        with self.graph.inserting_before(node):
            yield
        self._source = previous

    @contextmanager
    def after(self, node: Node) -> Iterator[None]:
        """Emit right after `node`, with its source."""
        with self.before(node.next):
            self._source = node.meta.get("source", "")
            yield

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Emit `target(*args, **kwargs)`; operands may be nodes, numbers and lists of them."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta["val"] = self.fake_value(node)
        node.meta["source"] = self._source
        return node

    def fake_value(self, node: Node) -> Any:
        args = map_arg(node.args, lambda n: n.meta["val"])
        kwargs = map_arg(node.kwargs, lambda n: n.meta["val"])
        known = self._known_sizes()
        # PyTorch's own decompositions read sizes as plain ints, which would fix a dim to its example's value.
        with self.mode, enable_python_dispatcher():
            value = node.target(*args, **kwargs)  # type: ignore[operator]
        if self._known_sizes() != known:
            raise DimFixed(
                "passes",
                node.meta.get("source") or node.name,
                f"shape inference of {node.target} fixes a dynamic size",
                "compile for one size, or report this model",
            )
        return value

    def _known_sizes(self) -> int:
        """How many size symbols have been replaced by something simpler."""
        return len(self.mode.shape_env.replacements) if self.mode.shape_env is not None else 0

    def size(self, x: Node, axis: int) -> Any:
        """The size of an axis of x: an int, or a node that computes it."""
        size = x.meta["val"].shape[axis]
        return size if isinstance(size, int) else self.call(aten.sym_size.int, x, axis)

    def sizes(self, x: Node) -> list[Any]:
        """The sizes of x: ints, or nodes that compute them."""
        return [self.size(x, axis) for axis in range(x.meta["val"].dim())]

    def weight(self, name: str, spec: WeightSpec | None = None) -> Node:
        """A get_attr node for the weight `name` (present in the program's store)."""
        spec = spec or self.program.weights.spec(name)
        attribute = "w_" + "".join(c if c.isalnum() else "_" for c in name)
        with torch.device("cpu"), self.mode:
            value = torch.empty(spec.shape, dtype=spec.dtype)
        node = self.graph.create_node("get_attr", attribute)
        node.meta.update(val=value, weight=name, source=self._source)
        return node

    def constant(self, name: str, tensor: torch.Tensor) -> Node:
        """Store `tensor` under a fresh name derived from `name`, and a node for it."""
        unique, count = name, 0
        while unique in self.program.weights:
            count += 1
            unique = f"{name}.{count}"
        self.program.weights.put(unique, tensor)
        return self.weight(unique)

    def replace(self, old: Node, new: Node) -> None:
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def finish(self) -> None:
        """Drop dead code and recompile."""
        eliminate_dead(self.graph)
        self.program.graph_module.recompile()


def eliminate_dead(graph: Graph) -> None:
    """Remove every node without users: the dialect has no side effects."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)


def is_tensor(value: Any) -> bool:
    """Whether an argument is a node with a tensor value."""
    return isinstance(value, Node) and isinstance(value.meta.get("val"), torch.Tensor)


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """A positional or keyword argument of an ATen call."""
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name, default)


def operands(node: Node) -> tuple[Any, ...]:
    """Positional arguments of a call whose kinds its op fixes."""
    return node.args


def concat_parts(cat: Node) -> tuple[list[Node], int]:
    """The parts of an aten.cat and the axis, counted from the front."""
    axis = int(argument(cat, 1, "dim", 0)) % cat.meta["val"].dim()
    return list(argument(cat, 0, "tensors")), axis


def is_weight_cast(node: Node) -> bool:
    """Whether a node is a stored weight in another type; kernels read the weight as it is stored."""
    return is_call(node, aten._to_copy.default) and node.all_input_nodes[0].op == "get_attr"


def is_call(value: Any, *targets: Any) -> bool:
    return isinstance(value, Node) and value.op == "call_function" and value.target in targets
