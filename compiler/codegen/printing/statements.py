"""Row-program statements as code: what every language shares. How loops are distributed is the language's own.

A statement runs its body for each row of the block and each index of one value's inner axes; on a CPU those are nested
loops, on a GPU the threads of a block share them. Bodies, addresses and stores are the same text.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch.fx import Node

from svdqc.compiler.codegen.memory import Memory
from svdqc.compiler.codegen.ops.registry import Index, dtype_of
from svdqc.compiler.codegen.ops.views import delinearize, linearize
from svdqc.compiler.codegen.printing.expressions import (
    BodyPrinter,
    narrowed,
    value_type,
    widened,
)
from svdqc.compiler.codegen.printing.params import Params, largest
from svdqc.compiler.codegen.rowprogram import Compute, Quantize, Reduce, RowProgram, Statement
from svdqc.compiler.codegen.scalar import ITEM_BYTES, Load, cast
from svdqc.compiler.codegen.storage import Storage
from svdqc.compiler.ir.intexpr import ZERO, IntExpr, index, minimum

UNROLL = 4
"""An innermost loop of at most so many iterations is written out, so that its indices are constants."""

RANGES = {"symmetric": "Symmetric7", "signed8": "Signed8", "unsigned": "Unsigned15"}
"""Activation ranges as svdq_cpu/act_range.h spells them."""

Values = Mapping[str, "IntExpr | int"]
Body = Callable[[Sequence[Values], str], list[str]]
"""(for each element that is computed together, the indices that are constants here; indentation) → lines."""
Loop = tuple[IntExpr, IntExpr]
"""(index, extent)"""


class Scratch:
    """Lays out one task's scratch memory; each piece is 64-byte aligned."""

    def __init__(self) -> None:
        self.num_bytes = ZERO

    def take(self, num_bytes: IntExpr, alignment: int = 64) -> IntExpr:
        """Reserve; returns the byte offset."""
        offset = self.num_bytes.ceildiv(alignment) * alignment
        self.num_bytes = offset + num_bytes.ceildiv(64) * 64
        return offset


class StatementPrinter(ABC):
    """Prints the statements of one region. `block_rows` rows are computed at a time."""

    def __init__(
        self,
        program: RowProgram,
        storages: Memory,
        params: Params,
        scratch: Scratch,
        block_rows: int,
    ) -> None:
        self.program, self.storages, self.params = program, storages, params
        self.scratch, self.block_rows = scratch, block_rows
        self.declarations: list[str] = []
        self.tile: tuple[str, str, str] | None = (
            None  # anchor's tile: name, row stride, first column
        )
        self._scratch_names: dict[Node, str] = {}
        for node in program.resident:
            self._scratch_names[node] = self.declare_scratch(
                f"t{len(self._scratch_names)}",
                value_type(dtype_of(node)),
                self.kept_width(node),
            )

    def declare_scratch(self, name: str, c_type: str, row_elements: IntExpr) -> str:
        item = {"float": 4, "double": 8, "int64_t": 8, "int32_t": 4, "bool": 1}.get(c_type, 8)
        offset = self.scratch.take(row_elements * self.block_rows * item)
        self.declarations.append(
            f"{c_type}* const {name} = reinterpret_cast<{c_type}*>(scratch + {self.params.scalar(offset)});"
        )
        return name

    # ---- what a language decides

    @abstractmethod
    def compute(
        self, loops: Sequence[Loop], body: Body, columns: tuple[str, str] | None
    ) -> list[str]:
        """Run `body` for every row and every index of `loops`; `columns` is the range of the one loop, if given."""

    @abstractmethod
    def reduce(self, statement: Reduce) -> list[str]:
        """Fold an operand over some of its inner axes."""

    @abstractmethod
    def gather(self, source: Node, name: str, stride: str, lead: Index | None = None) -> list[str]:
        """Copy rows of `source` (any expression) into scratch: name[r * stride + k], the last axis contiguous."""

    @abstractmethod
    def quantize(self, statement: Quantize) -> list[str]:
        """Code rows for a quantized linear, and project them down."""

    @abstractmethod
    def row_number(self) -> str:
        """The text of the current row's number among all rows."""

    @abstractmethod
    def row_size(self, size: IntExpr) -> str:
        """The text of an outer axis' size, to divide a row number by."""

    # ---- addresses

    def kept_width(self, node: Node) -> IntExpr:
        """Elements that a row of a resident value has in scratch."""
        return self.program.region.layout.inner_elements(node)

    def kept_position(self, node: Node, idx: Index) -> IntExpr:
        """Where element `idx` of a resident value lies in its row of scratch."""
        return self.program.inner_position(node, idx)

    def _kept(self, node: Node, idx: Index) -> str:
        stride = self.params.scalar(self.kept_width(node))
        position = self.params.integer(self.kept_position(node, idx))
        return f"{self._scratch_names[node]}[r * {stride} + {position}]"

    def load(self, load: Load) -> str:
        """The C text of a loaded value; scratch and tiles hold values as they are computed with."""
        node, region = load.source, self.program.region
        anchor = region.anchor
        if anchor is not None and node is anchor and self.tile is not None:
            name, stride, first = self.tile
            column = self.params.integer(self.program.inner_position(anchor, load.idx))
            return f"{name}[r * {stride} + {column}{'' if first == '0' else ' - ' + first}]"
        if node in self._scratch_names:
            return self._kept(node, load.idx)
        if node in region.stored:
            self.program.inner_position(node, load.idx)  # proves that the row is the current one
        storage, access = self.storages[node], "update" if node in region.stored else "read"
        return widened(self.cell(storage, load.idx, access), storage.dtype)

    def cell(self, storage: Storage, idx: Index, access: str) -> str:
        address = storage.address(idx) - storage.offset
        ahead = self.pointer_ahead(address)
        first, address = replace(storage, offset=storage.offset + ahead), address - ahead
        last = largest(address)
        # A guarded load (padding) is addressed past the end but not executed there.
        reach = None if last is None else minimum(last + 1, storage.extent - ahead)
        name = self.params.buffer(first, "write" if access == "update" else access, reach)
        return f"{name}[{self.params.integer(address)}]"

    def pointer_ahead(self, address: IntExpr) -> int:
        """How many elements of an address the kernel's pointer is given with, instead of its code."""
        return 0

    def pointer(self, storage: Storage, access: str = "read") -> str:
        """A pointer to a buffer that a library kernel walks by itself."""
        return self.params.buffer(storage, access, None)

    def item_pointer(self, node: Node, position: int, width: int = 0) -> str:
        """A pointer to the codes (0), scales (1) or projection (2) that a quantization writes, `width` values a row."""
        for user in node.users:
            if user.args[1] == position and user in self.storages:
                return self.pointer(self.storages[user], "write")
        # Nobody reads this output: it still needs a place.
        dtype, c_type = (("i8", "int8_t"), ("f32", "float"), ("f32", "float"))[position]
        value = node.meta["val"][position]
        width = width or int(value.shape[-1])
        name = f"unused{position}"
        self.declare_scratch(name, "float", IntExpr.of(max(width * ITEM_BYTES[dtype] // 4, 1)))
        return f"(reinterpret_cast<{c_type}*>({name}) - row_begin * {width})"

    # ---- statements

    def print(self, statement: Statement, columns: tuple[str, str] | None = None) -> list[str]:
        """The lines of a statement; `columns` restricts the anchor's columns to [first, second)."""
        if isinstance(statement, Compute):
            body = self._element_body(statement.node)  # names the node's own indices first
            return self.compute(self.loops(statement.loops), body, columns)
        if isinstance(statement, Reduce):
            return self.reduce(statement)
        return self.quantize(statement)

    def loops(self, atoms: Sequence[int]) -> list[Loop]:
        """The loops over these atoms that have more than one iteration."""
        layout = self.program.region.layout
        found = [(self.program.loop_index(a), layout.atoms.size(a)) for a in atoms]
        return [(i, size) for i, size in found if not i.is_const]

    def decode_row(self, body: list[str]) -> list[str]:
        """Outer indices from the row number; only those that the body mentions."""
        layout = self.program.region.layout
        names = [(self.program.loop_index(a), layout.atoms.size(a)) for a in layout.outer]
        used = "\n".join(body)
        lines, rest = [], self.row_number()
        for position, (name, size) in enumerate(reversed(names)):
            if name.is_const or not _mentions(used, str(name)):
                text = None
            elif position == len(names) - 1:
                text = rest
            else:
                text = f"{rest} % {self.row_size(size)}"
            if text is not None:
                lines.append(f"const int64_t {name} = {text};")
            if size != 1 and position < len(names) - 1:
                rest = f"{rest} / {self.row_size(size)}"
        return lines

    def _element_body(self, node: Node) -> Body:
        idx = self.program.output_index(node)

        def body(variants: Sequence[Values], indent: str) -> list[str]:
            printer = BodyPrinter(self.params, self.load, self.program.indirects, indent)
            found = []
            for values in variants:
                own = tuple(i.substitute(values) for i in idx)
                found.append((own, printer.value(self.program.element(node, own))))
            return printer.lines + [indent + line for line in self.stores(node, found)]

        return body

    def stores(self, node: Node, elements: Sequence[tuple[Index, str]]) -> list[str]:
        """Store elements that were computed together."""
        return [line for idx, text in elements for line in self.writes(node, idx, text)]

    def writes(self, node: Node, idx: Index, text: str) -> list[str]:
        """Store a computed element wherever its value lives."""
        lines = []
        if node in self._scratch_names:
            lines.append(f"{self._kept(node, idx)} = {text};")
        if node in self.program.region.stored:
            storage = self.storages[node]
            lines.append(f"{self.cell(storage, idx, 'write')} = {narrowed(text, storage.dtype)};")
        return lines

    def reduce_indices(self, statement: Reduce) -> tuple[Index, Index]:
        """The indices of a reduction's result and of its operand, in the order in which they are named."""
        source = statement.node.args[0]
        assert isinstance(source, Node)
        return self.program.output_index(statement.node), self.program.output_index(source)

    def folded_value(self, statement: Reduce, idx: Index, indent: str) -> tuple[list[str], str]:
        """Lines that compute a reduction's operand at `idx`, and the text of its value."""
        source = statement.node.args[0]
        assert isinstance(source, Node)
        printer = BodyPrinter(self.params, self.load, self.program.indirects, indent)
        value = cast(self.program.read(source, idx), statement.reduction.dtype)
        text = printer.value(value)
        return printer.lines, text

    def gathered_value(
        self, source: Node, lead: Index | None, indent: str
    ) -> tuple[list[str], str, IntExpr]:
        """Lines that compute element `ik` of the current row of `source`; its text as f32; the row's length."""
        shape = self.program.table.shape(source)
        layout = self.program.region.layout
        k = IntExpr.of(0) if shape[-1] == 1 else index("ik", shape[-1])
        if lead is None:
            rows = linearize(
                tuple(self.program.loop_index(a) for a in layout.outer),
                tuple(layout.atoms.size(a) for a in layout.outer),
            )
            lead = self._lead_index(source, rows)
        printer = BodyPrinter(self.params, self.load, self.program.indirects, indent)
        text = printer.value(cast(self.program.read(source, (*lead, k)), "f32"))
        return printer.lines, text, shape[-1]

    def _lead_index(self, source: Node, rows: IntExpr) -> Index:
        """The leading index of `source` for the current row: by its own axes where it is in the region."""
        layout = self.program.region.layout
        if source in layout.axes:
            return self.program.output_index(source)[:-1]
        return delinearize(rows, self.program.table.shape(source)[:-1])


def identity(combine: str, dtype: str) -> str:
    """The text of the value that a reduction starts from."""
    c_type = value_type(dtype)
    lowest = (
        f"-std::numeric_limits<{c_type}>::infinity()"
        if dtype in ("f32", "f64")
        else f"std::numeric_limits<{c_type}>::lowest()"
    )
    highest = (
        f"std::numeric_limits<{c_type}>::infinity()"
        if dtype in ("f32", "f64")
        else f"std::numeric_limits<{c_type}>::max()"
    )
    return {
        "add": "0",
        "mul": "1",
        "maximum": lowest,
        "minimum": highest,
        "logical_or": "false",
        "logical_and": "true",
    }[combine]


def accumulate(combine: str, text: str) -> str:
    """The statement that folds a value into `acc`."""
    return {
        "add": f"acc += {text};",
        "mul": f"acc *= {text};",
        "maximum": f"acc = ({text} > acc || {text} != {text}) ? {text} : acc;",
        "minimum": f"acc = ({text} < acc || {text} != {text}) ? {text} : acc;",
        "logical_or": f"acc = acc || {text};",
        "logical_and": f"acc = acc && {text};",
    }[combine]


def indented(lines: list[str], levels: int = 1) -> list[str]:
    return ["  " * levels + line for line in lines]


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", text) is not None
