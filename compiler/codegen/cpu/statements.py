"""Row-program statements as C++ loop nests over a block of rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from torch.fx import Node

from svdqc.compiler.codegen.cpu.quantizers import quantizer
from svdqc.compiler.codegen.ops.registry import Index
from svdqc.compiler.codegen.printing.expressions import value_type
from svdqc.compiler.codegen.printing.statements import (
    UNROLL,
    Body,
    Loop,
    StatementPrinter,
    accumulate,
    identity,
    indented,
)
from svdqc.compiler.codegen.rowprogram import Quantize, Reduce
from svdqc.compiler.ir.intexpr import IntExpr, prod
from svdqc.compiler.ir.rewrite import operands


class CpuStatements(StatementPrinter):
    """Rows outside, then the value's axes; the innermost loop is vectorised."""

    def row_number(self) -> str:
        return "(row_begin + r)"

    def row_size(self, size: IntExpr) -> str:
        return self.params.scalar(size, force=True)

    def row_loop(self, body: list[str]) -> list[str]:
        return [
            "for (int64_t r = 0; r < rows; ++r) {",
            *indented(self.decode_row(body) + body),
            "}",
        ]

    def compute(
        self, loops: Sequence[Loop], body: Body, columns: tuple[str, str] | None
    ) -> list[str]:
        """Nested loops; short innermost ones are unrolled, the innermost remaining one is vectorised."""
        loops = list(loops)
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
            block = body([chosen], indent)
            lines.extend([indent + "{", *indented(block), indent + "}"] if unrolled else block)
        lines.extend("  " * depth + "}" for depth in reversed(range(len(loops))))
        return self.row_loop(lines)

    def reduce(self, statement: Reduce) -> list[str]:
        node, reduction = statement.node, statement.reduction
        c_type = value_type(reduction.dtype)
        own, operand = self.reduce_indices(statement)
        folded, kept = self.loops(statement.folded), self.loops(statement.kept)
        indent = "  " * (len(kept) + 1)
        body = [f"{indent}{c_type} acc = {identity(reduction.combine, reduction.dtype)};"]
        pad = indent
        for depth, (name, size) in enumerate(folded):
            if depth == len(folded) - 1 and (
                clause := _simd_clause(reduction.combine, reduction.dtype)
            ):
                body.append(f"{pad}{clause}")
            body.append(
                f"{pad}for (int64_t {name} = 0; {name} < {self.params.scalar(size)}; ++{name}) {{"
            )
            pad += "  "
        lines, text = self.folded_value(statement, operand, pad)
        body.extend(lines)
        body.append(f"{pad}{accumulate(reduction.combine, text)}")
        for _ in folded:
            pad = pad[:-2]
            body.append(f"{pad}}}")
        if reduction.mean:
            count = self.params.scalar(prod(size for _, size in folded))
            body.append(f"{indent}acc /= static_cast<{c_type}>({count});")
        body += [indent + line for line in self.writes(node, own, "acc")]

        lines = []
        for depth, (name, size) in enumerate(kept):
            lines.append(
                "  " * depth
                + f"for (int64_t {name} = 0; {name} < {self.params.scalar(size)}; ++{name}) {{"
            )
        lines.extend(["  " * len(kept) + "{", *body, "  " * len(kept) + "}"])
        lines.extend("  " * depth + "}" for depth in reversed(range(len(kept))))
        return self.row_loop(lines)

    def gather(self, source: Node, name: str, stride: str, lead: Index | None = None) -> list[str]:
        lines, text, width = self.gathered_value(source, lead, "  ")
        body = [
            "SVDQ_VECTORIZE",
            f"for (int64_t ik = 0; ik < {self.params.scalar(width)}; ++ik) {{",
        ]
        body += [*lines, f"  {name}[r * {stride} + ik] = {text};", "}"]
        return self.row_loop(body)

    def quantize(self, statement: Quantize) -> list[str]:
        node, source = statement.node, statement.source
        _, inv_smooth, lora_down = operands(node)[:3]
        shape = self.program.table.shape(source)
        in_features, rank = shape[-1].const, int(lora_down.meta["val"].shape[0])
        stride = in_features + 16  # rows a power of two apart would share cache sets
        x = f"x{len(self._scratch_names) + len(self.declarations)}"
        self.declare_scratch(x, "float", IntExpr.of(stride))
        lines = self.gather(source, x, str(stride))
        codes, scale, low = (self.item_pointer(node, i) for i in range(3))
        smooth = self.pointer(self.storages[inv_smooth])
        function, more = quantizer(node, self.params)
        shift, groups = float(operands(node)[6]), in_features // int(operands(node)[3])
        lines.append(
            f"svdq::{function}(rows, {in_features}, {x}, {stride}, {smooth}, {shift!r}f, "
            f"{x}, {stride}, {codes} + row_begin * {in_features}, "
            f"{scale} + row_begin * {groups}{more});"
        )
        if rank:
            lines += self._project_down(lora_down, x, in_features, stride, rank, low)
        return lines

    def _project_down(
        self, lora_down: Node, x: str, in_features: int, stride: int, rank: int, low: str
    ) -> list[str]:
        panels = -(-rank // 16)
        weight = self.pointer(self.storages.packed(lora_down, "gemm_n16"))
        target, row_stride = f"{low} + row_begin * {rank}", rank
        if rank % 16:
            row_stride = panels * 16
            target = self.declare_scratch(
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


def _simd_clause(combine: str, dtype: str) -> str:
    """Reassociation is allowed for this loop only; its order is fixed by the instruction set, so results repeat."""
    return "SVDQ_VECTORIZE_SUM" if combine == "add" and dtype in ("f32", "f64") else ""
