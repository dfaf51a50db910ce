"""Row-program statements as CUDA: the elements of a block of rows are shared among the threads of a CTA.

    for (uint32_t e = svdq::thread_id(); e < rows * inner; e += threads)      consecutive threads, consecutive elements

Between statements the CTA meets, so a statement may read what any thread wrote. A reduction is done by one thread, one
warp or the whole CTA per result, whichever its shape asks for; each has one fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from torch.fx import Node

from svdqc.compiler.codegen.columns import Place, column_places
from svdqc.compiler.codegen.cuda.elements import Elements, of_rows, of_tile, split, unsigned
from svdqc.compiler.codegen.cuda.quantizers import part_of, quantizer
from svdqc.compiler.codegen.cuda.tile_quantize import quantize_tile
from svdqc.compiler.codegen.memory import Memory
from svdqc.compiler.codegen.ops.registry import Index
from svdqc.compiler.codegen.printing.backend import Block
from svdqc.compiler.codegen.printing.expressions import value_type
from svdqc.compiler.codegen.printing.operands import stored_kind
from svdqc.compiler.codegen.printing.params import Params
from svdqc.compiler.codegen.printing.statements import (
    UNROLL,
    Body,
    Loop,
    Scratch,
    StatementPrinter,
    accumulate,
    identity,
    indented,
)
from svdqc.compiler.codegen.rowprogram import Quantize, Reduce, RowProgram, Statement
from svdqc.compiler.codegen.scalar import Load
from svdqc.compiler.codegen.storage import Storage
from svdqc.compiler.ir.intexpr import IntExpr, index, prod
from svdqc.compiler.ir.rewrite import operands

SERIAL_FOLD = 16
"""So few values are added by one thread."""
MANY_RESULTS = 64
"""So many results per row keep the threads busy with one result each, and neighbours read neighbours."""
ENOUGH_RESULTS, SHORT_FOLD = 16, 256
"""So do so many, if each has few values."""
CTA_FOLD = 2048
"""So many values per result are worth the whole CTA."""
SLICE = 64
"""Slices begin at multiples of so many elements; smaller constants are places within one, and stay code."""
JOINED = (2, 4)
"""So many floats are stored at once."""


class CudaStatements(StatementPrinter):
    """Elements are counted in 32 bits: a block of rows has fewer than 2^31."""

    def __init__(
        self,
        program: RowProgram,
        storages: Memory,
        params: Params,
        scratch: Scratch,
        block: Block,
        math: str,
    ) -> None:
        self.block, self.math = block, math
        self._is_first = program.region.anchor is None
        self._node: Node | None = None  # the statement's
        places = column_places(program, block.columns) if block.columns else {}
        assert places is not None, f"{program.region.anchor} does not stay in its columns"
        self._places = places
        super().__init__(program, storages, params, scratch, block.slab or block.rows)

    def print(self, statement: Statement, columns: tuple[str, str] | None = None) -> list[str]:
        first, self._is_first = self._is_first, False
        self._node = statement.node
        lines = super().print(statement, columns)
        return lines if first else [self.sync, *lines]

    @property
    def sync(self) -> str:
        """Where the threads that compute statements meet: the CTA, or those of it that do not feed its product."""
        return "gemm.sync();" if self.block.helpers else "svdq::cta_sync();"

    # ---- addresses in a tile: its blocks of columns side by side

    @property
    def _place(self) -> Place | None:
        """Of the statement's value, if the anchor's result is cut along its columns."""
        return self._places.get(self._node) if self._node is not None else None

    def load(self, load: Load) -> str:
        place = self._place
        if place is None or load.source is not self.program.region.anchor:
            return super().load(load)
        return self.tile_cell(place, self.program.column(load.idx))

    def tile_cell(self, place: Place, column: IntExpr) -> str:
        """The anchor's result at a column of the statement's block."""
        assert self.tile is not None
        name, stride, _ = self.tile
        within = self._block(place) * place.block + self._offset(place, column)
        return f"{name}[r * {stride} + {self.params.integer(within)}]"

    def kept_width(self, node: Node) -> IntExpr:
        if node not in self._places:
            return super().kept_width(node)
        place = self._places[node]
        return IntExpr.of(self.block.columns // place.block * place.elements)

    def kept_position(self, node: Node, idx: Index) -> IntExpr:
        place = self._place
        if place is None:
            return super().kept_position(node, idx)
        own, at = self._places[node], self.program.loop_values(node, idx)
        offset = self._offset(place, own.number.substitute(at) * own.block) // own.block
        block = self._block(place) * (place.block // own.block) + offset
        return block * own.elements + own.position.substitute(at)

    def _block(self, place: Place) -> IntExpr:
        """The statement's block within the tile, as elements.py calls it."""
        return index("block", self.block.columns // place.block)

    @staticmethod
    def _offset(place: Place, column: IntExpr) -> IntExpr:
        """A column's place within the statement's block."""
        return column - place.number * place.block

    def pointer_ahead(self, address: IntExpr) -> int:
        """Slices of one tensor, such as the gates of a modulation, have equal code."""
        ahead = address.terms.get((), 0) // SLICE * SLICE
        return ahead if ahead > 0 and (address - ahead).lower() >= 0 else 0

    def row_number(self) -> str:
        return "static_cast<uint32_t>(row_begin + r)"

    def row_size(self, size: IntExpr) -> str:
        return f"static_cast<uint32_t>({self.params.rows(size)})"

    # ---- loops

    def compute(
        self, loops: Sequence[Loop], body: Body, columns: tuple[str, str] | None
    ) -> list[str]:
        loops, place = list(loops), self._place
        unrolled: list[tuple[str, int]] = []
        while (
            loops
            and (count := loops[-1][1].as_int()) is not None
            and 0 < count <= UNROLL
            and (place is None or loops[-1] in place.within)
        ):
            name, _ = loops.pop()
            unrolled.insert(0, (str(name), count))
        last = unrolled.pop() if unrolled else None
        lines: list[str] = []
        for values in product(*(range(count) for _, count in unrolled)):
            fixed = {n: v for (n, _), v in zip(unrolled, values, strict=True)}
            variants = [{**fixed, last[0]: i} for i in range(last[1])] if last else [fixed]
            block = body(variants, "")
            lines.extend(["{", *indented(block), "}"] if unrolled else block)
        return self.elements(loops, lines)

    def stores(self, node: Node, elements: Sequence[tuple[Index, str]]) -> list[str]:
        """Neighbours go to memory together."""
        if node in self.program.region.stored and node not in self.program.resident:
            storage = self.storages[node]
            width = joined(storage, [idx for idx, _ in elements])
            if width:
                cell = self.cell(storage, elements[0][0], "write")
                self.cell(storage, elements[-1][0], "write")  # how far the stores reach
                values = ", ".join(f"svdq::bits_of({text})" for _, text in elements)
                return [f"svdq::store_{4 * width}(&{cell}, make_uint{width}({values}));"]
        return super().stores(node, elements)

    def elements(self, loops: Sequence[Loop], body: list[str]) -> list[str]:
        """`body` for each row and index, a thread each."""
        if prod(size for _, size in loops).as_int() == 0:
            return []
        elements = self._enumerated(loops)
        lines = [
            *self._thread_loop("e", f"rows * {elements.per_row}"),
            *indented([*elements.decode, *self.decode_row(body), *body]),
            "}",
        ]
        return elements.around(lines)

    def _enumerated(self, loops: Sequence[Loop]) -> Elements:
        """What the CTA has of the statement's value."""
        place = self._place
        if place is None:
            return of_rows(self.params, loops)
        return of_tile(self.params, place, loops, self.block.columns, self.program.region)

    def _thread_loop(self, name: str, count: str) -> list[str]:
        return [
            f"for (uint32_t {name} = svdq::thread_id(); {name} < static_cast<uint32_t>({count}); "
            f"{name} += {self.block.threads}) {{"
        ]

    # ---- reductions

    def reduce(self, statement: Reduce) -> list[str]:
        own, operand = self.reduce_indices(statement)
        folded, kept = self.loops(statement.folded), self.loops(statement.kept)
        count = prod(size for _, size in folded).upper()
        results = prod(size for _, size in kept).upper()
        in_tile = self._place is not None  # which has few of the results
        serial = results >= MANY_RESULTS or (results >= ENOUGH_RESULTS and count <= SHORT_FOLD)
        if count <= SERIAL_FOLD or (serial and not in_tile):
            return self._reduce_serially(statement, own, operand, folded, kept)
        few = results * self.block.rows < self.block.threads // 32 and not in_tile
        return self._reduce_together(
            statement, own, operand, folded, kept, by_cta=few and count >= CTA_FOLD
        )

    def _reduce_serially(
        self, statement: Reduce, own: Index, operand: Index, folded: list[Loop], kept: list[Loop]
    ) -> list[str]:
        """A thread per result."""
        reduction = statement.reduction
        lines = [self._start(statement)]
        pad = ""
        for name, size in folded:
            extent = self.params.scalar(size)
            lines.append(f"{pad}for (int64_t {name} = 0; {name} < {extent}; ++{name}) {{")
            pad += "  "
        body, text = self.folded_value(statement, operand, pad)
        lines += [*body, f"{pad}{accumulate(reduction.combine, text)}"]
        while pad:
            pad = pad[:-2]
            lines.append(f"{pad}}}")
        lines += self._finish(statement, folded) + self.writes(statement.node, own, "acc")
        return self.elements(kept, lines)

    def _reduce_together(
        self,
        statement: Reduce,
        own: Index,
        operand: Index,
        folded: list[Loop],
        kept: list[Loop],
        by_cta: bool,
    ) -> list[str]:
        """A warp, or the CTA, per result: each thread folds every so-many-th value, then they meet."""
        reduction = statement.reduction
        c_type = value_type(reduction.dtype)
        body, text = self.folded_value(statement, operand, "")
        count = self.params.scalar(prod(size for _, size in folded))
        decode, _ = split(self.params, folded, "f")
        start, step = ("thread_id", self.block.threads) if by_cta else ("lane_id", 32)
        combine = (
            f"[]({c_type} acc, {c_type} value) SVDQ_LAMBDA {{ "
            f"{accumulate(reduction.combine, 'value')} return acc; }}"
        )
        if by_cta:
            partials = f"p{len(self.declarations)}"
            self._declare_partials(partials, c_type)
            fold = f"acc = svdq::cta_fold<{self.block.threads}>(acc, {partials}, {combine});"
            writer = "svdq::thread_id() == 0"
        else:
            fold = f"acc = svdq::warp_fold(acc, {combine});"
            writer = "svdq::lane_id() == 0"
        lines = [
            self._start(statement),
            f"for (uint32_t f = svdq::{start}(); f < static_cast<uint32_t>({count}); f += {step}) {{",
            *indented([*decode, *body, accumulate(reduction.combine, text)]),
            "}",
            fold,
            *self._finish(statement, folded),
            f"if ({writer}) {{",
            *indented(self.writes(statement.node, own, "acc")),
            "}",
        ]
        elements = self._enumerated(kept)
        lines = [*elements.decode, *self.decode_row(lines), *lines]
        first, stride = ("0", 1) if by_cta else ("svdq::warp_id()", self.block.threads // 32)
        results = f"static_cast<uint32_t>(rows * {elements.per_row})"
        loop = [
            f"for (uint32_t e = {first}; e < {results}; e += {stride}) {{",
            *indented(lines),
            "}",
        ]
        return elements.around(loop)

    def _declare_partials(self, name: str, c_type: str) -> None:
        """Shared memory for one value per warp."""
        offset = self.scratch.take(IntExpr.of(8 * (self.block.threads // 32)))
        self.declarations.append(
            f"{c_type}* const {name} = reinterpret_cast<{c_type}*>(scratch + {self.params.scalar(offset)});"
        )

    def _start(self, statement: Reduce) -> str:
        reduction = statement.reduction
        return (
            f"{value_type(reduction.dtype)} acc = {identity(reduction.combine, reduction.dtype)};"
        )

    def _finish(self, statement: Reduce, folded: list[Loop]) -> list[str]:
        if not statement.reduction.mean:
            return []
        count = self.params.scalar(prod(size for _, size in folded))
        return [f"acc /= static_cast<{value_type(statement.reduction.dtype)}>({count});"]

    # ---- rows in shared memory

    def gather(self, source: Node, name: str, stride: str, lead: Index | None = None) -> list[str]:
        lines, text, width = self.gathered_value(source, lead, "")
        body = [*lines, f"{name}[r * {stride} + ik] = {text};"]
        extent = unsigned(self.params, width)
        head = [f"const int64_t ik = e % {extent};", f"const int64_t r = e / {extent};"]
        return [
            *self._thread_loop("e", f"rows * {self.params.scalar(width)}"),
            *indented(head + self.decode_row(body) + body),
            "}",
        ]

    def quantize(self, statement: Quantize) -> list[str]:
        """A row at a time, or in parts of it: codes of 4 bits need their group only, and the projection adds up."""
        if self._place is not None:
            return quantize_tile(self, statement, self._place)
        node, source = statement.node, statement.source
        _, inv_smooth, lora_down = operands(node)[:3]
        in_features = self.program.table.shape(source)[-1].const
        rank = int(lora_down.meta["val"].shape[0])
        part = part_of(node, in_features)
        stride = part + 4  # rows begin on different banks
        x = f"x{len(self._scratch_names) + len(self.declarations)}"
        self.declare_scratch(x, "float", IntExpr.of(stride))
        threads, whole = self.block.threads, part == in_features
        coder = quantizer(node, in_features, threads, self.params)
        lines = self.gather(source, x, str(stride)) if whole else self._gather_part(source, x, part)
        codes = f"{self.item_pointer(node, 0, coder.code_bytes)} + row_begin * {coder.code_bytes}"
        scale = f"{self.item_pointer(node, 1, coder.scales)} + row_begin * {coder.scales}"
        low = f"{self.item_pointer(node, 2)} + row_begin * {rank}"
        smooth, width, sums = self.pointer(self.storages[inv_smooth]), str(in_features), low
        if not whole:
            codes += f" + k_begin / {coder.k_per_byte}"
            scale += f" + k_begin / {coder.k_per_scale}"
            smooth, width = f"{smooth} + k_begin", "width"
        lines += [
            self.sync,
            f"svdq::{coder.function}(rows, {width}, {x}, {stride}, {smooth}, {float(operands(node)[6])!r}f, "
            f"{codes}, {scale}{coder.more});",
        ]
        if rank:
            weight = self.storages[lora_down]
            pointer = self.pointer(weight)
            if not whole:
                sums = f"low{len(self.declarations)}"
                self.declare_scratch(sums, "float", IntExpr.of(rank))
                pointer = f"{pointer} + k_begin"
            lines += [
                self.sync,
                f"svdq::project_down<{self.block_rows}, {threads}, svdq::{stored_kind(weight)}>("
                f"rows, {width}, {x}, {stride}, {pointer}, {in_features}, {rank}, {sums}"
                f"{'' if whole else ', k_begin > 0'});",
            ]
        if whole:
            return lines
        lines = [
            f"for (int64_t k_begin = 0; k_begin < {in_features}; k_begin += {part}) {{",
            f"  const int64_t width = svdq::min_i64({part}, {in_features} - k_begin);",
            f"  {self.sync}",  # the part before was read
            *indented(lines),
            "}",
        ]
        if rank:
            store = self._thread_loop("e", f"rows * {rank}")
            lines += [self.sync, *store, f"  ({low})[e] = {sums}[e];", "}"]
        return lines

    def _gather_part(self, source: Node, name: str, part: int) -> list[str]:
        """Columns [k_begin, k_begin + width) of the rows, at most `part` of them."""
        lines, text, _ = self.gathered_value(source, None, "")
        body = [*lines, f"{name}[r * {part + 4} + e % {part}u] = {text};"]
        head = [
            f"if (e % {part}u >= width) continue;",
            f"const int64_t ik = k_begin + e % {part}u;",
            f"const int64_t r = e / {part}u;",
        ]
        return [
            *self._thread_loop("e", f"rows * {part}"),
            *indented(head + self.decode_row(body) + body),
            "}",
        ]


def joined(storage: Storage, elements: Sequence[Index]) -> int:
    """How many floats one store writes, if these elements lie side by side and begin at a multiple of it; else 0."""
    count = len(elements)
    if count not in JOINED or storage.dtype != "f32":
        return 0
    first, *rest = (storage.address(idx) for idx in elements)
    if any(address - first != i for i, address in enumerate(rest, 1)):
        return 0
    return count if all(c % count == 0 for c in first.terms.values()) else 0
