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
    """Collects what the code refers to, in order of first use, so that equal regions have equal code."""

    def __init__(self) -> None:
        self.buffers: list[BufferParam] = []
        self.scalars: list[IntExpr] = []
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
        if expr not in self.scalars:
            self.scalars.append(expr)
        return f"s{self.scalars.index(expr)}"

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

    def declarations(self, arguments: str) -> list[str]:
        """C statements that bind the parameters to names; `arguments` is how the kernel spells its own ("args->")."""
        lines = []
        for i, param in enumerate(self.buffers):
            const = "const " if param.access == "read" else ""
            pointer = f"{const}{C_TYPES[param.dtype]}*"
            lines.append(f"{pointer} const b{i} = static_cast<{pointer}>({arguments}buffers[{i}]);")
        lines.extend(
            f"const int64_t s{i} = {arguments}scalars[{i}];" for i in range(len(self.scalars))
        )
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
