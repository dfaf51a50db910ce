"""Row-program statements as C++ loop nests over a block of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from torch.fx import Node

from svdqc.compiler.codegen.cpu.expressions import BodyPrinter, narrowed, value_type, widened
from svdqc.compiler.codegen.cpu.params import Params, largest
from svdqc.compiler.codegen.memory import Memory
from svdqc.compiler.codegen.ops.registry import Index, dtype_of
from svdqc.compiler.codegen.ops.views import delinearize, linearize
from svdqc.compiler.codegen.rowprogram import Compute, Quantize, Reduce, RowProgram, Statement
from svdqc.compiler.codegen.scalar import ITEM_BYTES, Load, cast
from svdqc.compiler.codegen.storage import Storage
from svdqc.compiler.ir.intexpr import ZERO, IntExpr, minimum, prod
from svdqc.compiler.ir.rewrite import operands

UNROLL = 4
"""An innermost loop of at most so many iterations is written out, so that its indices are constants."""

RANGES = {"symmetric": "Symmetric7", "signed8": "Signed8", "unsigned": "Unsigned15"}


class Scratch:
    """Lays out one thread's scratch memory; each piece is 64-byte aligned."""

    def __init__(self) -> None:
        self.num_bytes = ZERO

    def take(self, num_bytes: IntExpr) -> IntExpr:
        """Reserve; returns the byte offset."""
        offset = self.num_bytes
        self.num_bytes = self.num_bytes + num_bytes.ceildiv(64) * 64
        return offset


class StatementPrinter:
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
            self._scratch_names[node] = self._declare_scratch(
                f"t{len(self._scratch_names)}",
                value_type(dtype_of(node)),
                program.region.layout.inner_elements(node),
            )

    def _declare_scratch(self, name: str, c_type: str, row_elements: IntExpr) -> str:
        item = {"float": 4, "double": 8, "int64_t": 8, "int32_t": 4, "bool": 1}.get(c_type, 8)
        offset = self.scratch.take(row_elements * self.block_rows * item)
        self.declarations.append(
            f"{c_type}* const {name} = reinterpret_cast<{c_type}*>(scratch + {self.params.scalar(offset)});"
        )
        return name

    # ---- addresses

    def load(self, load: Load) -> str:
        """The C text of a loaded value; scratch and tiles hold values as they are computed with."""
        node, region = load.source, self.program.region
        anchor = region.anchor
        if anchor is not None and node is anchor and self.tile is not None:
            name, stride, first = self.tile
            column = self.params.integer(self.program.inner_position(anchor, load.idx))
            return f"{name}[r * {stride} + {column}{'' if first == '0' else ' - ' + first}]"
        if node in self._scratch_names:
            position = self.program.inner_position(node, load.idx)
            stride = self.params.scalar(region.layout.inner_elements(node))
            return f"{self._scratch_names[node]}[r * {stride} + {self.params.integer(position)}]"
        if node in region.stored:
            self.program.inner_position(node, load.idx)  # proves that the row is the current one
        storage, access = self.storages[node], "update" if node in region.stored else "read"
        return widened(self._cell(storage, load.idx, access), storage.dtype)

    def _cell(self, storage: Storage, idx: Index, access: str) -> str:
        address = storage.address(idx) - storage.offset
        last = largest(address)
        # A guarded load (padding) is addressed past the end but not executed there.
        reach = None if last is None else minimum(last + 1, storage.extent)
        name = self.params.buffer(storage, "write" if access == "update" else access, reach)
        return f"{name}[{self.params.integer(address)}]"

    # ---- statements

    def print(self, statement: Statement, columns: tuple[str, str] | None = None) -> list[str]:
        """The C++ lines of a statement; `columns` restricts the anchor's columns to [first, second)."""
        if isinstance(statement, Compute):
            return self._print_compute(statement, columns)
        if isinstance(statement, Reduce):
            return self._print_reduce(statement)
        return self._print_quantize(statement)

    def row_loop(self, body: list[str]) -> list[str]:
        return [
            "for (int64_t r = 0; r < rows; ++r) {",
            *_indent(self._decode_row(body) + body),
            "}",
        ]

    def _decode_row(self, body: list[str]) -> list[str]:
        """Outer indices from the row number; only those that the body mentions."""
        layout = self.program.region.layout
        names = [(self.program.loop_index(a), layout.atoms.size(a)) for a in layout.outer]
        used = "\n".join(body)
        lines, rest = [], "(row_begin + r)"
        for position, (name, size) in enumerate(reversed(names)):
            if name.is_const or not _mentions(used, str(name)):
                text = None
            elif position == len(names) - 1:
                text = rest
            else:
                text = f"{rest} % {self.params.scalar(size, force=True)}"
            if text is not None:
                lines.append(f"const int64_t {name} = {text};")
            if size != 1 and position < len(names) - 1:
                rest = f"{rest} / {self.params.scalar(size, force=True)}"
        return lines

    def _print_compute(self, statement: Compute, columns: tuple[str, str] | None) -> list[str]:
        node = statement.node
        idx = self.program.output_index(node)

        def body(values: Mapping[str, IntExpr | int], indent: str) -> list[str]:
            own = tuple(i.substitute(values) for i in idx)
            printer = BodyPrinter(self.params, self.load, self.program.indirects, indent)
            text = printer.value(self.program.element(node, own))
            return printer.lines + [indent + line for line in self._writes(node, own, text)]

        return self.row_loop(self._loops(statement.loops, body, columns))

    def _writes(self, node: Node, idx: Index, text: str) -> list[str]:
        lines = []
        if node in self._scratch_names:
            stride = self.params.scalar(self.program.region.layout.inner_elements(node))
            position = self.params.integer(self.program.inner_position(node, idx))
            lines.append(f"{self._scratch_names[node]}[r * {stride} + {position}] = {text};")
        if node in self.program.region.stored:
            storage = self.storages[node]
            lines.append(f"{self._cell(storage, idx, 'write')} = {narrowed(text, storage.dtype)};")
        return lines

    def _loops(
        self, atoms: Sequence[int], body: object, columns: tuple[str, str] | None = None
    ) -> list[str]:
        """Nested loops; short innermost ones are unrolled, the innermost remaining one is vectorised."""
        layout = self.program.region.layout
        loops = [(self.program.loop_index(a), layout.atoms.size(a)) for a in atoms]
        loops = [(i, size) for i, size in loops if not i.is_const]
        unrolled: list[tuple[str, int]] = []
        while (
            loops
            and (count := loops[-1][1].as_int()) is not None
            and 0 < count <= UNROLL  # an empty value is still named
            and columns is None
        ):
            name, _ = loops.pop()
            unrolled.insert(0, (str(name), count))
        indent = "  " * len(loops)
        lines: list[str] = []
        for depth, (name, size) in enumerate(loops):
            pad = "  " * depth
            first, last = columns if columns is not None else ("0", self.params.scalar(size))
            if depth == len(loops) - 1:
                lines.append(f"{pad}SVDQ_VECTORIZE")
            lines.append(f"{pad}for (int64_t {name} = {first}; {name} < {last}; ++{name}) {{")
        for values in product(*(range(count) for _, count in unrolled)):
            chosen: dict[str, IntExpr | int] = {
                n: v for (n, _), v in zip(unrolled, values, strict=True)
            }
            block = body(chosen, indent)  # type: ignore[operator]
            lines.extend(
                [indent + "{", *_indent(block), indent + "}"]
                if len(unrolled) and unrolled
                else block
            )
        lines.extend("  " * depth + "}" for depth in reversed(range(len(loops))))
        return lines

    def _print_reduce(self, statement: Reduce) -> list[str]:
        node, reduction = statement.node, statement.reduction
        source = node.args[0]
        assert isinstance(source, Node)
        layout = self.program.region.layout
        c_type = value_type(reduction.dtype)
        out_idx, in_idx = self.program.output_index(node), self.program.output_index(source)
        folded = [(self.program.loop_index(a), layout.atoms.size(a)) for a in statement.folded]
        folded = [(i, size) for i, size in folded if not i.is_const]
        count = prod(size for _, size in folded)

        def body(values: Mapping[str, IntExpr | int], indent: str) -> list[str]:
            lines = [f"{indent}{c_type} acc = {_identity(reduction.combine, reduction.dtype)};"]
            pad = indent
            for depth, (name, size) in enumerate(folded):
                if depth == len(folded) - 1 and (
                    clause := _simd_clause(reduction.combine, reduction.dtype)
                ):
                    lines.append(f"{pad}{clause}")
                lines.append(
                    f"{pad}for (int64_t {name} = 0; {name} < {self.params.scalar(size)}; ++{name}) {{"
                )
                pad += "  "
            printer = BodyPrinter(self.params, self.load, self.program.indirects, pad)
            value = cast(
                self.program.read(source, tuple(i.substitute(values) for i in in_idx)),
                reduction.dtype,
            )
            text = printer.value(value)
            lines.extend(printer.lines)
            lines.append(f"{pad}{_accumulate(reduction.combine, text)}")
            for _ in folded:
                pad = pad[:-2]
                lines.append(f"{pad}}}")
            if reduction.mean:
                lines.append(f"{indent}acc /= static_cast<{c_type}>({self.params.scalar(count)});")
            own = tuple(i.substitute(values) for i in out_idx)
            return lines + [indent + line for line in self._writes(node, own, "acc")]

        lines = []
        kept = [(self.program.loop_index(a), layout.atoms.size(a)) for a in statement.kept]
        kept = [(i, size) for i, size in kept if not i.is_const]
        for depth, (name, size) in enumerate(kept):
            lines.append(
                "  " * depth
                + f"for (int64_t {name} = 0; {name} < {self.params.scalar(size)}; ++{name}) {{"
            )
        lines.extend(
            ["  " * len(kept) + "{", *body({}, "  " * (len(kept) + 1)), "  " * len(kept) + "}"]
        )
        lines.extend("  " * depth + "}" for depth in reversed(range(len(kept))))
        return self.row_loop(lines)

    def gather(self, source: Node, name: str, stride: str, lead: Index | None = None) -> list[str]:
        """Copy rows of `source` (any expression) into scratch: name[r * stride + k], the last axis contiguous."""
        shape = self.program.table.shape(source)
        layout = self.program.region.layout
        k = IntExpr.of(0) if shape[-1] == 1 else _gather_index(shape[-1])
        if lead is None:
            rows = linearize(
                tuple(self.program.loop_index(a) for a in layout.outer),
                tuple(layout.atoms.size(a) for a in layout.outer),
            )
            lead = self._lead_index(source, rows)
        printer = BodyPrinter(self.params, self.load, self.program.indirects, "  ")
        text = printer.value(cast(self.program.read(source, (*lead, k)), "f32"))
        body = [
            "SVDQ_VECTORIZE",
            f"for (int64_t ik = 0; ik < {self.params.scalar(shape[-1])}; ++ik) {{",
        ]
        body += [*printer.lines, f"  {name}[r * {stride} + ik] = {text};", "}"]
        return self.row_loop(body)

    def _lead_index(self, source: Node, rows: IntExpr) -> Index:
        """The leading index of `source` for the current row: by its own axes where it is in the region."""
        layout = self.program.region.layout
        if source in layout.axes:
            return self.program.output_index(source)[:-1]
        return delinearize(rows, self.program.table.shape(source)[:-1])

    def _print_quantize(self, statement: Quantize) -> list[str]:
        node, source = statement.node, statement.source
        _, inv_smooth, lora_down, group, range_name, rotated, shift = operands(node)
        shape = self.program.table.shape(source)
        in_features, rank = shape[-1].const, int(lora_down.meta["val"].shape[0])
        stride = in_features + 16  # rows a power of two apart would share cache sets
        x = f"x{len(self._scratch_names) + len(self.declarations)}"
        self._declare_scratch(x, "float", IntExpr.of(stride))
        lines = self.gather(source, x, str(stride))
        codes, scale, low = (self._item_pointer(node, i) for i in range(3))
        smooth = self._whole(self.storages[inv_smooth], "read")
        template = (
            f"{group}, svdq::ActRange::{RANGES[str(range_name)]}, {'true' if rotated else 'false'}"
        )
        lines.append(
            f"svdq::quantize_s4<{template}>(rows, {in_features}, {x}, {stride}, {smooth}, {float(shift)!r}f, "
            f"{x}, {stride}, {codes} + row_begin * {in_features}, "
            f"{scale} + row_begin * {in_features // int(group)});"
        )
        if rank:
            lines += self._project_down(lora_down, x, in_features, stride, rank, low)
        return lines

    def _project_down(
        self, lora_down: Node, x: str, in_features: int, stride: int, rank: int, low: str
    ) -> list[str]:
        panels = -(-rank // 16)
        weight = self._whole(self.storages.packed(lora_down, "gemm_n16"), "read")
        target, row_stride = f"{low} + row_begin * {rank}", rank
        if rank % 16:
            row_stride = panels * 16
            target = self._declare_scratch(
                f"low{len(self.declarations)}", "float", IntExpr.of(row_stride)
            )
        call = (
            f"svdq::gemm_wbf16(rows, {in_features}, {x}, {stride}, {weight}, 0, {panels}, {target}, "
            f"{row_stride}, false);"
        )
        if rank % 16 == 0:
            return [call]
        copy = (
            f"for (int64_t j = 0; j < {rank}; ++j) {low}[(row_begin + r) * {rank} + j] = "
            f"{target}[r * {row_stride} + j];"
        )
        return [call, f"for (int64_t r = 0; r < rows; ++r) {copy}"]

    def _item_pointer(self, node: Node, position: int) -> str:
        for user in node.users:
            if user.args[1] == position and user in self.storages:
                return self._whole(self.storages[user], "write")
        # Nobody reads this output: it still needs a place.
        dtype, c_type = (("i8", "int8_t"), ("f32", "float"), ("f32", "float"))[position]
        value = node.meta["val"][position]
        width = int(value.shape[-1])
        name = f"unused{position}"
        self._declare_scratch(name, "float", IntExpr.of(max(width * ITEM_BYTES[dtype] // 4, 1)))
        return f"(reinterpret_cast<{c_type}*>({name}) - row_begin * {width})"

    def _whole(self, storage: Storage, access: str) -> str:
        return self.params.buffer(storage, access, None)

    def pointer(self, storage: Storage, access: str = "read") -> str:
        """A pointer to a buffer that a library kernel walks by itself."""
        return self._whole(storage, access)


def _gather_index(extent: IntExpr) -> IntExpr:
    from svdqc.compiler.ir.intexpr import index

    return index("ik", extent)


def _identity(combine: str, dtype: str) -> str:
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


def _accumulate(combine: str, text: str) -> str:
    return {
        "add": f"acc += {text};",
        "mul": f"acc *= {text};",
        "maximum": f"acc = ({text} > acc || {text} != {text}) ? {text} : acc;",
        "minimum": f"acc = ({text} < acc || {text} != {text}) ? {text} : acc;",
        "logical_or": f"acc = acc || {text};",
        "logical_and": f"acc = acc && {text};",
    }[combine]


def _simd_clause(combine: str, dtype: str) -> str:
    """Reassociation is allowed for this loop only; its order is fixed by the instruction set, so results repeat."""
    return "SVDQ_VECTORIZE_SUM" if combine == "add" and dtype in ("f32", "f64") else ""


def _mentions(text: str, name: str) -> bool:
    import re

    return re.search(rf"\b{name}\b", text) is not None


def _indent(lines: list[str]) -> list[str]:
    return ["  " + line for line in lines]
