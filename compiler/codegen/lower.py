"""Fused regions → kernels and a plan: a launch for each region or group of regions, buffers placed in an arena."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from svdqc.compiler.codegen.choice import ANALYTIC, Chooser
from svdqc.compiler.codegen.cpu.backend import CpuBackend
from svdqc.compiler.codegen.grouping import plan_launches
from svdqc.compiler.codegen.kernel import Generator, Kernel
from svdqc.compiler.codegen.memory import Memory
from svdqc.compiler.codegen.printing.backend import Backend
from svdqc.compiler.codegen.printing.params import BufferParam
from svdqc.compiler.codegen.region import FusionPlan, Region
from svdqc.compiler.codegen.scalar import ITEM_BYTES
from svdqc.compiler.codegen.storage import BufferKey
from svdqc.compiler.ir.intexpr import IntExpr
from svdqc.compiler.ir.program import Program
from svdqc.compiler.plan.memory import Lifetime, place
from svdqc.compiler.plan.records import (
    Buffer,
    BufferArg,
    KernelEntry,
    Launch,
    Plan,
    TensorPort,
)
from svdqc.compiler.targets.layouts import packed_bytes


@dataclass(frozen=True)
class PlannedTensor:
    """A weight as the plan uses it: its name in the program's store, and the layout it is packed to."""

    name: str
    layout: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    num_bytes: int


@dataclass
class Lowered:
    """kernels: source by name; tensors in order of first use; the regions of each launch, for reports."""

    kernels: dict[str, str]
    plan: Plan
    tensors: list[PlannedTensor]
    launches: list[list[Region]]


def lower(
    program: Program,
    fusion: FusionPlan,
    progress: Callable[[int, int], None] | None = None,
    backend: Backend | None = None,
    chooser: Chooser = ANALYTIC,
) -> Lowered:
    """Generate a kernel for every launch and the plan that runs them in order; by default for CPUs."""
    backend = backend or CpuBackend()
    memory = Memory(program, fusion.regions, fusion.maps.table, backend.packed_codes)
    generator = Generator(fusion.maps, memory, backend, chooser)
    kernels: dict[str, str] = {}
    launches: list[list[Region]] = []
    builder = _PlanBuilder(program, memory)
    for group in plan_launches(fusion.regions, generator, progress):
        kernel = generator.kernel(group)
        kernels[kernel.name] = kernel.source
        launches.append([member.region for member in group])
        builder.add(launches[-1], kernel)
    return Lowered(kernels, builder.finish(), builder.tensors, launches)


class _PlanBuilder:
    def __init__(self, program: Program, memory: Memory) -> None:
        self.program, self.memory = program, memory
        self.kernels: dict[str, int] = {}
        self.entries: list[KernelEntry] = []
        self.launches: list[tuple[Kernel, str]] = []
        self.buffers: dict[BufferKey, int] = {}
        self.tensors: list[PlannedTensor] = []
        self._used: dict[BufferKey, tuple[int, int]] = {}

    def add(self, regions: Sequence[Region], kernel: Kernel) -> None:
        position = len(self.launches)
        if kernel.name not in self.kernels:
            self.kernels[kernel.name] = len(self.kernels)
            self.entries.append(KernelEntry(kernel.name, kernel.threads, kernel.shared_bytes))
        for param in kernel.buffers:
            first, _ = self._used.get(param.buffer, (position, position))
            self._used[param.buffer] = (first, position)
        self.launches.append((kernel, label_of_launch(regions)))

    def finish(self) -> Plan:
        lifetimes = [
            Lifetime(key.name, self.memory.num_bytes[key].upper(), *self._used[key])
            for key in self._used
            if key.kind == "arena"
        ]
        offsets, arena_bytes = place(lifetimes)
        inputs = {spec.name: i for i, spec in enumerate(self.program.inputs)}
        buffers: list[Buffer] = []
        for key in self._used:
            self.buffers[key] = len(buffers)
            if key.kind == "weight":
                buffers.append(
                    Buffer("weight", IntExpr.of(self._tensor(key)), len(self.tensors) - 1)
                )
            elif key.kind == "arena":
                buffers.append(Buffer("arena", self.memory.num_bytes[key], 0, offsets[key.name]))
            else:
                index = inputs[key.name] if key.kind == "input" else int(key.name)
                buffers.append(Buffer(key.kind, self.memory.num_bytes[key], index))
        launches = tuple(self._launch(kernel, label) for kernel, label in self.launches)
        self._add_unread_weights()
        return Plan(
            dims=tuple(
                sorted(
                    {d.name: d for d in self.program.dims.values()}.values(), key=lambda d: d.name
                )
            ),
            inputs=self._ports(
                [n for n in self.program.graph_module.graph.nodes if n.op == "placeholder"],
                [s.name for s in self.program.inputs],
            ),
            outputs=self._ports(
                list(_outputs(self.program)), [s.name for s in self.program.outputs]
            ),
            buffers=tuple(buffers),
            kernels=tuple(self.entries),
            launches=launches,
            arena_bytes=arena_bytes,
        )

    def _add_unread_weights(self) -> None:
        """Weights that the graph names and no kernel reads (a branch of rank 0): the reference wants them."""
        planned = {t.name for t in self.tensors}
        for node in self.program.graph_module.graph.nodes:
            if node.op == "get_attr" and node.meta["weight"] not in planned:
                planned.add(node.meta["weight"])
                self._tensor(BufferKey("weight", node.meta["weight"], "row_major"))

    def _ports(self, nodes: list[Node], names: list[str]) -> tuple[TensorPort, ...]:
        return tuple(
            TensorPort(name, self.memory[node].dtype, self.memory[node].shape)
            for node, name in zip(nodes, names, strict=True)
        )

    def _tensor(self, key: BufferKey) -> int:
        spec = self.program.weights.spec(key.name)
        num_bytes = packed_bytes(key.layout, spec.shape, spec.dtype)
        self.tensors.append(PlannedTensor(key.name, key.layout, spec.shape, spec.dtype, num_bytes))
        return num_bytes

    def _launch(self, kernel: Kernel, label: str) -> Launch:
        args = tuple(self._argument(p) for p in kernel.buffers)
        return Launch(
            self.kernels[kernel.name],
            args,
            kernel.scalars,
            kernel.num_tasks,
            kernel.scratch_bytes,
            label,
        )

    def _argument(self, param: BufferParam) -> BufferArg:
        key = param.buffer
        size = self.memory.num_bytes.get(key)
        item = ITEM_BYTES[param.dtype]
        if size is None:  # a weight: its packed size
            size = IntExpr.of(
                next(
                    t.num_bytes
                    for t in self.tensors
                    if (t.name, t.layout) == (key.name, key.layout)
                )
            )
        offset = param.offset * item
        reach = size - offset if param.reach is None or key.kind == "weight" else param.reach * item
        return BufferArg(self.buffers[key], offset, reach, param.access)


def label_of(region: Region) -> str:
    """Where a region comes from: the anchor's module, else the last op's that has one."""
    nodes = [region.anchor] if region.anchor is not None else list(reversed(region.nodes))
    return next(
        (n.meta["source"] for n in nodes if n is not None and n.meta.get("source")),
        region.nodes[-1].name,
    )


def label_of_launch(regions: Sequence[Region]) -> str:
    """Where its regions come from."""
    return " + ".join(dict.fromkeys(map(label_of, regions)))


def _outputs(program: Program) -> tuple[Node, ...]:
    outputs = next(n for n in program.graph_module.graph.nodes if n.op == "output")
    return tuple(outputs.args[0])
