"""Small programs for tests of the compiler's core: graphs written op by op, and compiled in one C++ run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

import svdqc
from svdqc.compiler.artifact.format import Variant
from svdqc.compiler.artifact.graph import dump_graph
from svdqc.compiler.artifact.write import ArtifactTensor, write_artifact
from svdqc.compiler.codegen.lower import Lowered, lower
from svdqc.compiler.codegen.scalar import DTYPE_NAMES
from svdqc.compiler.driver.compile import Canonical, capture_canonical
from svdqc.compiler.ir.program import Program, TensorSpec
from svdqc.compiler.ir.weights import LayeredWeights, MemoryWeights
from svdqc.compiler.passes.fuse import fuse
from svdqc.compiler.passes.materialize import materialize
from svdqc.compiler.quantize.recipe import Recipe
from svdqc.compiler.targets.cpu import CpuTarget, parse_targets
from svdqc.compiler.targets.layouts import pack
from svdqc.compiler.targets.toolchain import build
from svdqc.runtime import trust
from svdqc.runtime.library import cpu_features


@dataclass(frozen=True)
class Call:
    """One op and its operands; tensors among them become inputs of the program."""

    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def op(self) -> Any:
        namespace, packet, overload = self.target.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)

    def expected(self) -> Tensor:
        """The op's value by PyTorch."""
        result: Tensor = self.op(*self.args, **self.kwargs)
        return result


def call(target: str, *args: Any, label: str = "", **kwargs: Any) -> Call:
    return Call(f"{target}[{label}]" if label else target, target, args, kwargs)


class ProgramBuilder:
    """Writes a Program node by node, with fake values and sources as a frontend leaves them."""

    def __init__(self) -> None:
        self.graph, self.mode = Graph(), FakeTensorMode()
        self.inputs: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}

    def input(self, tensor: Tensor) -> Node:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = tensor
        node = self.graph.placeholder(name)
        node.meta.update(val=self._fake(tensor), source=name)
        return node

    def weight(self, name: str, tensor: Tensor) -> Node:
        self.weights[name] = tensor
        node = self.graph.create_node("get_attr", "w_" + name.replace(".", "_"))
        node.meta.update(val=self._fake(tensor), weight=name, source=name)
        return node

    def call(self, op: Any, *args: Any, source: str = "", **kwargs: Any) -> Node:
        node = self.graph.call_function(op, args, kwargs)

        def value(argument: Any) -> Any:
            return argument.meta["val"] if isinstance(argument, Node) else argument

        with self.mode:
            node.meta["val"] = op(
                *map_aggregate(args, value),  # type: ignore[misc]
                **{k: value(v) for k, v in kwargs.items()},
            )
        node.meta["source"] = source or node.name
        return node

    def finish(self, *outputs: Node) -> Program:
        self.graph.output(tuple(outputs))
        holder = torch.nn.Module()
        for name, tensor in self.weights.items():
            holder.register_buffer("w_" + name.replace(".", "_"), tensor)
        return Program(
            GraphModule(holder, self.graph),
            LayeredWeights(MemoryWeights(self.weights)),
            tuple(TensorSpec(n, tuple(t.shape), t.dtype) for n, t in self.inputs.items()),
            tuple(
                TensorSpec(str(i), tuple(o.meta["val"].shape), o.meta["val"].dtype)
                for i, o in enumerate(outputs)
            ),
            origin="test",
        )

    def _fake(self, tensor: Tensor) -> Any:
        with self.mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype)


def program_of_calls(calls: Sequence[Call]) -> tuple[Program, dict[str, Tensor]]:
    """One program with an output per call, and its inputs."""
    builder = ProgramBuilder()
    placed = []
    for one in calls:  # placeholders come before calls
        args = map_aggregate(one.args, lambda a: builder.input(a) if _is_tensor(a) else a)
        placed.append((one, args))
    nodes = [builder.call(c.op, *args, source=c.name, **c.kwargs) for c, args in placed]  # type: ignore[misc]
    return builder.finish(*nodes), builder.inputs


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def canonical(model: torch.nn.Module, inputs: Mapping[str, Any], **options: Any) -> Canonical:
    """Capture and canonicalize, keeping every layer in its own precision."""
    dynamic = options.pop("dynamic", None)
    return capture_canonical(
        model.eval(), inputs, dynamic, Recipe(**{"precision": "none", **options})
    )


def lowered(program: Program) -> Lowered:
    """Regions and kernels of a program as it stands: only what must lie in memory is added."""
    materialize(program)
    return lower(program, fuse(program))


def native() -> CpuTarget:
    return parse_targets("native", cpu_features())[0]


def write(program: Program, result: Lowered, path: Path, target: CpuTarget | None = None) -> Path:
    """The artifact, its kernels compiled as one translation unit (headers are parsed once); for this machine."""
    target = target or native()
    code = build({"unit": "\n".join(result.kernels.values())}, target, 1)

    def tensor(planned: Any) -> ArtifactTensor:
        def load() -> np.ndarray[Any, Any]:
            packed = pack(planned.layout, program.weights.load(planned.name))
            flat: np.ndarray[Any, Any] = packed.reshape(-1).view(torch.uint8).numpy()
            return flat

        return ArtifactTensor(
            name=f"{planned.name}#{planned.layout}",
            dtype=DTYPE_NAMES[planned.dtype],
            shape=planned.shape,
            layout=planned.layout,
            num_bytes=planned.num_bytes,
            load=load,
        )

    written = write_artifact(
        path,
        name="test",
        producer="test",
        tensors=[tensor(t) for t in result.tensors],
        variants=[Variant(target.name, target.isa_features, code, result.plan, {})],
        graph=dump_graph(program),
        quantization={},
        source_digest="0" * 64,
        meta={},
    )
    trust.register(*written.trust_digests)
    return written.path


def run_compiled(program: Program, inputs: Mapping[str, Tensor], path: Path) -> list[Tensor]:
    """Compile the program as it stands and run it; outputs in order."""
    model = svdqc.load(write(program, lowered(program), path))
    outputs = model(**inputs)
    return [outputs[spec.name] for spec in program.outputs]
