"""Which values of a fused program lie where: inputs, weights, outputs, concatenations, channels-last images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch.fx import Node

from svdqc.compiler.codegen.ops import anchors
from svdqc.compiler.codegen.ops.registry import rule_of
from svdqc.compiler.codegen.region import Region
from svdqc.compiler.codegen.scalar import DTYPE_NAMES
from svdqc.compiler.codegen.storage import BufferKey, Storage, dense, dense_bytes
from svdqc.compiler.ir import ops
from svdqc.compiler.ir.intexpr import ZERO, IntExpr
from svdqc.compiler.ir.program import Program
from svdqc.compiler.ir.symbols import SymbolTable


class Memory(Mapping[Node, Storage]):
    """Storages by node; a weight also has one for each packing that a kernel asks for."""

    def __init__(
        self,
        program: Program,
        regions: list[Region],
        table: SymbolTable,
        packed_codes: bool = False,
    ) -> None:
        self._table = table
        self._graph = program.graph_module.graph
        self._storages: dict[Node, Storage] = {}
        self.num_bytes: dict[BufferKey, IntExpr] = {}
        self._channels_last = _channels_last(self._graph)
        self._packed_codes = packed_codes
        self._place_ports(program)
        self._place_outputs()
        self._place_concats()
        for region in regions:
            for node in region.nodes:
                if str(node.target) in anchors.QUANTIZERS:
                    for item in node.users:
                        self._place(item)
                elif node in region.stored and node not in self._storages:
                    self._place(node)

    def __getitem__(self, node: Node) -> Storage:
        if node not in self._storages and node.op == "get_attr":
            self._storages[node] = self.packed(node, "row_major")
        return self._storages[node]

    def __iter__(self) -> Iterator[Node]:
        return iter(self._storages)

    def __len__(self) -> int:
        return len(self._storages)

    def packed(self, weight: Node, layout: str) -> Storage:
        """A weight in a kernel's layout; only kernels that know the layout may address into it."""
        name, value = weight.meta["weight"], weight.meta["val"]
        shape = self._table.shape(weight)
        return dense(BufferKey("weight", name, layout), DTYPE_NAMES[value.dtype], shape)

    # ---- placement

    def _place(self, node: Node) -> None:
        shape, dtype = self._table.shape(node), DTYPE_NAMES[node.meta["val"].dtype]
        if self._packed_codes and _is_s4_codes(node):
            shape = (*shape[:-1], shape[-1] // 2)
        key = BufferKey("arena", node.name)
        self._storages[node] = dense(key, dtype, shape, self._order(node, len(shape)))
        self.num_bytes[key] = dense_bytes(dtype, shape)

    def _order(self, node: Node, rank: int) -> tuple[int, ...] | None:
        """Axes outermost first: images channels-last, attention results with heads beside features."""
        if node in self._channels_last:
            return (0, *range(2, rank), 1)
        if str(node.target) == anchors.ATTENTION and rank == 4:
            return (0, 2, 1, 3)
        return None

    def _place_ports(self, program: Program) -> None:
        placeholders = [n for n in self._graph.nodes if n.op == "placeholder"]
        for node, spec in zip(placeholders, program.inputs, strict=True):
            key = BufferKey("input", spec.name)
            shape, dtype = self._table.shape(node), DTYPE_NAMES[node.meta["val"].dtype]
            self._storages[node] = dense(key, dtype, shape)
            self.num_bytes[key] = dense_bytes(dtype, shape)

    def _place_outputs(self) -> None:
        outputs = next(n for n in self._graph.nodes if n.op == "output")
        for position, value in enumerate(outputs.args[0]):
            key = BufferKey("output", str(position))
            shape, dtype = self._table.shape(value), DTYPE_NAMES[value.meta["val"].dtype]
            self._storages[value] = dense(key, dtype, shape)
            self.num_bytes[key] = dense_bytes(dtype, shape)

    def _place_concats(self) -> None:
        """A part lies in its range of the whole."""
        for node in self._graph.nodes:
            if node.target is not ops.concat:
                continue
            self._place(node)
            whole, axis = self._storages[node], int(node.args[1])
            start = ZERO
            for part in node.args[0]:
                shape = self._table.shape(part)
                self._storages[part] = Storage(
                    whole.buffer,
                    whole.dtype,
                    shape,
                    whole.strides,
                    whole.offset + start * whole.strides[axis],
                )
                start = start + shape[axis]


def _is_s4_codes(node: Node) -> bool:
    """The codes of a 4-bit quantization, which go from it to linears and nowhere else."""
    source = node.args[0] if getattr(node.target, "__name__", "") == "getitem" else None
    if not isinstance(source, Node) or str(source.target) not in anchors.S4_QUANTIZERS:
        return False
    return bool(node.args[1] == 0)


def _channels_last(graph: object) -> set[Node]:
    """Images that convolutions write or read, and what pointwise ops make of them, have their channels innermost."""
    nodes = list(graph.nodes)  # type: ignore[attr-defined]
    chosen: set[Node] = set()
    for node in nodes:
        if str(node.target) == anchors.CONVOLUTION:
            chosen.add(node)
            if isinstance(node.args[0], Node):
                chosen.add(node.args[0])
    changed = True
    while changed:
        changed = False
        for node in nodes:
            rule = rule_of(node)
            same = (rule is not None and rule.kind == "pointwise") or node.target in (
                ops.copy,
                ops.concat,
            )
            if not same:
                continue
            peers = [node, *(o for o in node.all_input_nodes if _rank(o) == _rank(node))]
            if any(p in chosen for p in peers) and not all(p in chosen for p in peers):
                chosen.update(peers)
                changed = True
    return {n for n in chosen if _rank(n) in (3, 4, 5)}


def _rank(node: Node) -> int:
    value = node.meta.get("val")
    return int(value.dim()) if isinstance(value, torch.Tensor) else -1
