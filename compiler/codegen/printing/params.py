"""A kernel's parameters: the buffers and integers that differ between launches of the same code."""

from __future__ import annotations

from dataclasses import dataclass

from svdqc.compiler.codegen.storage import BufferKey, Storage
from svdqc.compiler.ir.intexpr import ZERO, Apply, Atom, IntExpr, Sym, maximum

C_TYPES = {
    "f32": "float",
    "f64": "double",
    "f16": "uint16_t",
    "bf16": "uint16_t",
    "i8": "int8_t",
    "u8": "uint8_t",
    "i16": "int16_t",
    "i32": "int32_t",
    "i64": "int64_t",
    "bool": "bool",
}


@dataclass
class BufferParam:
    """A pointer to `buffer` + `offset` elements; `reach` bounds the elements touched there (None: all that follow)."""

    buffer: BufferKey
    dtype: str
    offset: IntExpr
    access: str
    reach: IntExpr | None


class Params:
    """Collects what the code refers to, in order of first use, so that equal regions have equal code.

    rows_apart  a number of rows shares no parameter with another integer that happens to be equal: then regions have
                equal code whatever their rows
    """

    def __init__(self, rows_apart: bool = False) -> None:
        self.buffers: list[BufferParam] = []
        self.scalars: list[IntExpr] = []
        self._rows_apart = rows_apart
        self._scalar_at: dict[tuple[IntExpr, bool], int] = {}
        self._by_key: dict[tuple[BufferKey, str, IntExpr, bool], int] = {}

    def buffer(self, storage: Storage, access: str, reach: IntExpr | None = None) -> str:
        """The C name of a pointer to the storage's element at its offset."""
        key = (storage.buffer, storage.dtype, storage.offset, access == "write")
        if key not in self._by_key:
            self._by_key[key] = len(self.buffers)
            self.buffers.append(
                BufferParam(storage.buffer, storage.dtype, storage.offset, access, reach)
            )
        else:
            param = self.buffers[self._by_key[key]]
            param.reach = (
                None if reach is None or param.reach is None else maximum(param.reach, reach)
            )
        return f"b{self._by_key[key]}"

    def scalar(self, expr: IntExpr | int, force: bool = False) -> str:
        """The C text of an integer without loop indices: a literal, or a scalar parameter."""
        expr = IntExpr.of(expr)
        if expr.is_const and not force:
            return str(expr.const)
        return self._parameter(expr, False)

    def rows(self, size: IntExpr) -> str:
        """The C text of the number of rows, or of an axis of them: a scalar parameter."""
        return self._parameter(size, self._rows_apart)

    def _parameter(self, expr: IntExpr, apart: bool) -> str:
        if (expr, apart) not in self._scalar_at:
            self._scalar_at[expr, apart] = len(self.scalars)
            self.scalars.append(expr)
        return f"s{self._scalar_at[expr, apart]}"

    def integer(self, expr: IntExpr) -> str:
        """The C text of an expression over loop indices and dims."""
        groups: dict[tuple[Atom, ...], IntExpr] = {}
        for monomial, coefficient in expr.terms.items():
            loops = tuple(a for a in monomial if _has_loop(a))
            sizes = tuple(a for a in monomial if not _has_loop(a))
            groups[loops] = groups.get(loops, ZERO) + IntExpr({sizes: coefficient})
        parts = []
        for loops, factor in sorted(groups.items(), key=lambda g: [str(a.key()) for a in g[0]]):
            if not loops:
                parts.append(self.scalar(factor))
                continue
            outer = any(isinstance(a, Sym) and a.name.startswith("o") for a in loops)
            factors = [self._atom(a) for a in loops]
            if factor != 1:
                factors.append(self.scalar(factor, force=outer))
            parts.append(" * ".join(factors))
        return "(" + " + ".join(parts) + ")" if len(parts) > 1 else (parts[0] if parts else "0")

    def _atom(self, atom: Atom) -> str:
        if isinstance(atom, Sym):
            return atom.name
        lhs, rhs = self.integer(atom.lhs), self.integer(atom.rhs)
        if atom.op in ("floordiv", "mod"):
            if atom.lhs.lower() >= 0:
                return f"({lhs} {'/' if atom.op == 'floordiv' else '%'} {rhs})"
            return f"svdq::{'floor_div' if atom.op == 'floordiv' else 'floor_mod'}({lhs}, {rhs})"
        return f"svdq::{atom.op}_i64({lhs}, {rhs})"

    @property
    def kinds(self) -> tuple[tuple[tuple[str, str], ...], int]:
        """What declarations depend on: (dtype, access) of each buffer, and the number of scalars."""
        return tuple((param.dtype, param.access) for param in self.buffers), len(self.scalars)

    def declarations(self, arguments: str, of_member: bool = False) -> list[str]:
        """C statements that bind the parameters to names; `arguments` is how the kernel spells its own ("args->").

        of_member  of several sets of them, those of number `member.number` are bound
        """
        buffers, num_scalars = self.kinds
        unused = "[[maybe_unused]] " if of_member else ""  # where a member is only loaded

        def at(i: int, count: int) -> str:
            return f"[member.number * {count} + {i}]" if of_member else f"[{i}]"

        lines = []
        for i, (dtype, access) in enumerate(buffers):
            pointer = f"{'const ' if access == 'read' else ''}{C_TYPES[dtype]}*"
            argument = f"{arguments}buffers{at(i, len(buffers))}"
            lines.append(f"{unused}{pointer} const b{i} = static_cast<{pointer}>({argument});")
        for i in range(num_scalars):
            argument = f"{arguments}scalars{at(i, num_scalars)}"
            lines.append(f"{unused}const int64_t s{i} = {argument};")
        return lines


def _has_loop(atom: Atom) -> bool:
    if isinstance(atom, Sym):
        return atom.extent is not None
    return isinstance(atom, Apply) and any(
        s.extent is not None for s in atom.lhs.symbols() | atom.rhs.symbols()
    )


def largest(address: IntExpr) -> IntExpr | None:
    """The largest value over all loop indices, or None if the address is not affine in them."""
    loops = [s for s in address.symbols() if s.extent is not None]
    for s in loops:
        coefficient = address.coefficient_of(s)
        if coefficient is None:
            return None
        assert s.extent is not None
        address = address.substitute({s.name: s.extent - 1 if coefficient.lower() >= 0 else 0})
    return None if any(s.extent is not None for s in address.symbols()) else address
