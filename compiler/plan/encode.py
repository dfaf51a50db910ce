"""The binary form of a plan (runtime/FORMAT.md, "Plan"): fixed-layout little-endian tables.

    header (80 bytes)   magic, version, sizes, one record count per table
    tables              dims, instructions, expressions, shapes, inputs, outputs, buffers, kernels, arguments,
                        scalars, launches, strings; each padded to 8 bytes

Expressions are postfix code over the dims and are stored once each. Equal plans give equal bytes. A plan is written in
the lowest version that can say it: 2 if its kernels have a shape (GPUs), else 1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from svdqc.compiler.ir.intexpr import Apply, IntExpr, Sym, maximum, minimum, symbol
from svdqc.compiler.ir.program import Dim
from svdqc.compiler.plan.errors import PlanFormatError
from svdqc.compiler.plan.records import (
    DTYPES,
    Buffer,
    BufferArg,
    KernelEntry,
    Launch,
    Plan,
    TensorPort,
)

PLAN_ABI = 2
"""The newest version; all from 1 on are read."""
MAX_RANK = 8
MAX_DIMS = 64
BUFFER_KINDS = ("input", "output", "weight", "arena")
ACCESSES = ("read", "write", "update")
OPS = ("constant", "dim", "add", "mul", "floordiv", "mod", "min", "max", "neg")

_MAGIC = b"SVDQPLAN"
_HEADER = struct.Struct("<8sIIQQ12I")
_RECORDS = {  # in file order
    "dims": struct.Struct("<IIqqq"),  # name, lo, hi, multiple
    "instructions": struct.Struct("<IIq"),  # op, 0, operand
    "exprs": struct.Struct("<II"),  # first instruction, count
    "shapes": struct.Struct("<I"),  # expression
    "inputs": struct.Struct("<IIIIII"),  # name, dtype, first of shape, rank, 0
    "outputs": struct.Struct("<IIIIII"),
    "buffers": struct.Struct("<IIIIQ"),  # kind, index, num_bytes, 0, arena offset
    "kernels": struct.Struct("<IIII"),  # name, threads, shared bytes
    "args": struct.Struct("<IIII"),  # buffer, byte offset, num_bytes, access
    "scalars": struct.Struct("<I"),  # expression
    "launches": struct.Struct("<10I"),  # kernel, args, scalars, num_tasks, scratch, label, 0
    "strings": struct.Struct("<B"),
}
_RECORDS_1 = {**_RECORDS, "kernels": struct.Struct("<II")}  # name
_RECORDS_OF = {1: _RECORDS_1, 2: _RECORDS}


def plan_version(plan: Plan) -> int:
    """The version of the binary form that this plan needs."""
    return 2 if any(k.threads or k.shared_bytes for k in plan.kernels) else 1


def _padded(num_bytes: int) -> int:
    return (num_bytes + 7) // 8 * 8


# ---- encode


@dataclass
class _Encoder:
    plan: Plan
    tables: dict[str, bytearray] = field(default_factory=lambda: {t: bytearray() for t in _RECORDS})
    strings: dict[bytes, int] = field(default_factory=dict)
    exprs: dict[IntExpr, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dim_index = {dim.name: i for i, dim in enumerate(self.plan.dims)}
        self.version = plan_version(self.plan)
        self.records = _RECORDS_OF[self.version]

    def put(self, table: str, *values: int) -> None:
        try:
            self.tables[table] += self.records[table].pack(*values)
        except struct.error as error:
            raise PlanFormatError(
                table, f"a value that does not fit its field: {values} ({error})"
            ) from error

    def count(self, table: str) -> int:
        return len(self.tables[table]) // self.records[table].size

    def text(self, value: str) -> tuple[int, int]:
        raw = value.encode()
        if raw not in self.strings:
            self.strings[raw] = len(self.tables["strings"])
            self.tables["strings"] += raw
        return self.strings[raw], len(raw)

    def expr(self, value: IntExpr) -> int:
        if value not in self.exprs:
            first = self.count("instructions")
            self.emit(value)
            self.exprs[value] = self.count("exprs")
            self.put("exprs", first, self.count("instructions") - first)
        return self.exprs[value]

    def op(self, name: str, operand: int = 0) -> None:
        self.put("instructions", OPS.index(name), 0, operand)

    def emit(self, value: IntExpr) -> None:
        """Postfix code; terms in the order in which the expression prints."""
        if not value.terms:
            self.op("constant", 0)
        ordered = sorted(value.terms, key=lambda m: (-len(m), [str(a.key()) for a in m]))
        for i, monomial in enumerate(ordered):
            for k, atom in enumerate(monomial):
                if isinstance(atom, Apply):
                    self.emit(atom.lhs)
                    self.emit(atom.rhs)
                    self.op(atom.op)
                else:
                    self.op("dim", self.dim(atom))
                if k > 0:
                    self.op("mul")
            coefficient = value.terms[monomial]
            if not monomial:
                self.op("constant", coefficient)
            elif coefficient == -1:
                self.op("neg")
            elif coefficient != 1:
                self.op("constant", coefficient)
                self.op("mul")
            if i > 0:
                self.op("add")

    def dim(self, atom: Sym) -> int:
        if atom.name not in self.dim_index:
            raise PlanFormatError(
                atom.name, "an expression uses a symbol that is not a dim of the plan"
            )
        return self.dim_index[atom.name]

    def encode(self) -> bytes:
        for dim in self.plan.dims:
            self.put("dims", *self.text(dim.name), dim.lo, dim.hi, dim.multiple)
        self.ports("inputs", self.plan.inputs)
        self.ports("outputs", self.plan.outputs)
        for buffer in self.plan.buffers:
            kind = BUFFER_KINDS.index(buffer.kind)
            self.put(
                "buffers", kind, buffer.index, self.expr(buffer.num_bytes), 0, buffer.arena_offset
            )
        for kernel in self.plan.kernels:
            shape = (kernel.threads, kernel.shared_bytes) if self.version > 1 else ()
            self.put("kernels", *self.text(kernel.name), *shape)
        for launch in self.plan.launches:
            self.launch(launch)
        sizes = [_padded(len(table)) for table in self.tables.values()]
        counts = [self.count(table) for table in self.records]
        header = _HEADER.pack(
            _MAGIC,
            self.version,
            _HEADER.size,
            _HEADER.size + sum(sizes),
            self.plan.arena_bytes,
            *counts,
        )
        return header + b"".join(
            bytes(table).ljust(size, b"\0")
            for table, size in zip(self.tables.values(), sizes, strict=True)
        )

    def ports(self, table: str, ports: Iterable[TensorPort]) -> None:
        for port in ports:
            if len(port.shape) > MAX_RANK:
                raise PlanFormatError(
                    port.name, f"{len(port.shape)} dimensions; at most {MAX_RANK}"
                )
            first = self.count("shapes")
            for size in port.shape:
                self.put("shapes", self.expr(IntExpr.of(size)))
            dtype = DTYPES.index(port.dtype)
            self.put(table, *self.text(port.name), dtype, first, len(port.shape), 0)

    def launch(self, launch: Launch) -> None:
        first_arg, first_scalar = self.count("args"), self.count("scalars")
        for arg in launch.args:
            offset, size = self.expr(arg.byte_offset), self.expr(arg.num_bytes)
            self.put("args", arg.buffer, offset, size, ACCESSES.index(arg.access))
        for scalar in launch.scalars:
            self.put("scalars", self.expr(scalar))
        self.put(
            "launches",
            launch.kernel,
            first_arg,
            len(launch.args),
            first_scalar,
            len(launch.scalars),
            self.expr(launch.num_tasks),
            self.expr(launch.scratch_bytes),
            *self.text(launch.label),
            0,
        )


def encode_plan(plan: Plan) -> bytes:
    """The plan's bytes. Raises PlanFormatError for what has no binary form."""
    return _Encoder(plan).encode()


# ---- decode


@dataclass
class _Decoder:
    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) < _HEADER.size or not self.data.startswith(_MAGIC):
            raise PlanFormatError("header", "not a plan")
        _, abi, header_bytes, total, self.arena_bytes, *counts = _HEADER.unpack_from(self.data)
        if abi not in _RECORDS_OF:
            raise PlanFormatError(
                "header", f"plan version {abi}, this svdqc reads up to {PLAN_ABI}"
            )
        if header_bytes != _HEADER.size or total != len(self.data):
            raise PlanFormatError("header", "sizes that do not match")
        at = _HEADER.size
        self.rows: dict[str, list[tuple[int, ...]]] = {}
        for (table, record), count in zip(_RECORDS_OF[abi].items(), counts, strict=True):
            end = at + count * record.size
            if end > len(self.data):
                raise PlanFormatError(table, f"{count} records go beyond the plan")
            if table == "strings":
                self.strings = self.data[at:end]
            else:
                self.rows[table] = list(record.iter_unpack(self.data[at:end]))
            at = _padded(end)
        if at != len(self.data):
            raise PlanFormatError("header", "tables that do not fill the plan")

    def text(self, first: int, length: int) -> str:
        if first + length > len(self.strings):
            raise PlanFormatError("strings", "a name outside the string table")
        try:
            found = self.strings[first : first + length].decode()
        except UnicodeDecodeError as error:
            raise PlanFormatError("strings", "a name that is not UTF-8") from error
        if "\0" in found:
            raise PlanFormatError("strings", "a name with a NUL")
        return found

    def zero(self, table: str, value: int) -> None:
        if value != 0:
            raise PlanFormatError(table, "a reserved field that is not zero")

    def span(self, table: str, first: int, count: int) -> list[tuple[int, ...]]:
        if first + count > len(self.rows[table]):
            raise PlanFormatError(table, "a range outside the table")
        return self.rows[table][first : first + count]

    def decode(self) -> Plan:
        dims = tuple(Dim(self.text(n, k), lo, hi, m) for n, k, lo, hi, m in self.rows["dims"])
        self.symbols = [symbol(d.name, d.lo, d.hi) for d in dims]
        self.exprs = [self.expression(first, count) for first, count in self.rows["exprs"]]
        buffers = tuple(
            Buffer(BUFFER_KINDS[kind], self.exprs[size], index, offset)
            for kind, index, size, _, offset in self.rows["buffers"]
        )
        return Plan(
            dims=dims,
            inputs=self.ports("inputs"),
            outputs=self.ports("outputs"),
            buffers=buffers,
            kernels=tuple(
                KernelEntry(self.text(n, k), *shape) for n, k, *shape in self.rows["kernels"]
            ),
            launches=tuple(self.launch(row) for row in self.rows["launches"]),
            arena_bytes=self.arena_bytes,
        )

    def expression(self, first: int, count: int) -> IntExpr:
        stack: list[IntExpr] = []
        for op, reserved, operand in self.span("instructions", first, count):
            self.zero("instructions", reserved)
            name = OPS[op]
            if name == "constant":
                stack.append(IntExpr.of(operand))
            elif name == "dim":
                stack.append(self.symbols[operand])
            elif name == "neg":
                stack.append(-stack.pop())
            else:
                rhs, lhs = stack.pop(), stack.pop()
                stack.append(_apply(name, lhs, rhs))
        if len(stack) != 1:
            raise PlanFormatError("expressions", f"code that leaves {len(stack)} values")
        return stack[0]

    def ports(self, table: str) -> tuple[TensorPort, ...]:
        return tuple(
            TensorPort(
                self.text(name, length),
                DTYPES[dtype],
                tuple(self.exprs[e] for (e,) in self.span("shapes", first, rank)),
            )
            for name, length, dtype, first, rank, _ in self.rows[table]
        )

    def launch(self, row: tuple[int, ...]) -> Launch:
        kernel, arg, args, scalar, scalars, tasks, scratch, label, label_bytes, reserved = row
        self.zero("launches", reserved)
        return Launch(
            kernel=kernel,
            args=tuple(
                BufferArg(b, self.exprs[offset], self.exprs[size], ACCESSES[access])
                for b, offset, size, access in self.span("args", arg, args)
            ),
            scalars=tuple(self.exprs[e] for (e,) in self.span("scalars", scalar, scalars)),
            num_tasks=self.exprs[tasks],
            scratch_bytes=self.exprs[scratch],
            label=self.text(label, label_bytes),
        )


def _apply(name: str, lhs: IntExpr, rhs: IntExpr) -> IntExpr:
    if name == "add":
        return lhs + rhs
    if name == "mul":
        return lhs * rhs
    if name == "floordiv":
        return lhs // rhs
    if name == "mod":
        return lhs % rhs
    return minimum(lhs, rhs) if name == "min" else maximum(lhs, rhs)


def decode_plan(data: bytes) -> Plan:
    """The plan of these bytes; decode_plan(encode_plan(plan)) == plan. Raises PlanFormatError."""
    try:
        return _Decoder(bytes(data)).decode()
    except (IndexError, ZeroDivisionError, AssertionError, struct.error) as error:
        raise PlanFormatError("plan", f"an index or value out of range ({error})") from error
