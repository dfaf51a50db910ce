"""Integer expressions over named dims: shapes, strides, buffer sizes, loop indices.

An expression is a polynomial with integer coefficients over atoms; an atom is a symbol, a floor division, a
modulo, a minimum or a maximum. Construction normalises, so equal polynomials are equal objects by `==`, and the
index arithmetic of reshapes folds away:

    (i * 64 + j) // 64  ->  i          for 0 <= j < 64
    (i * 64 + j) %  64  ->  j

A symbol knows its range; a loop index also knows its extent, an expression, so `j < W` is usable for a symbolic W.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce

IntLike = "int | IntExpr"
_UNBOUNDED = 1 << 62


@dataclass(frozen=True, eq=True)
class Sym:
    """A named size or loop index with lo <= value <= hi; an index has value <= extent - 1 as well."""

    name: str
    lo: int
    hi: int
    extent: IntExpr | None = None

    def key(self) -> tuple[object, ...]:
        return (0, self.name)

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True, eq=True)
class Apply:
    """`floordiv`, `mod`, `min` or `max` of two expressions that no rule could simplify."""

    op: str
    lhs: IntExpr
    rhs: IntExpr

    def key(self) -> tuple[object, ...]:
        return (1, self.op, str(self.lhs), str(self.rhs))


Atom = Sym | Apply
Monomial = tuple[Atom, ...]


class IntExpr:
    """An immutable integer polynomial. Build with `IntExpr.of`, `symbol`, `index` and Python's operators."""

    __slots__ = ("_hash", "_range", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms: dict[Monomial, int] = {m: c for m, c in terms.items() if c != 0}
        self._hash: int | None = None
        self._range: tuple[int, int] | None = None

    @staticmethod
    def of(value: int | IntExpr) -> IntExpr:
        return value if isinstance(value, IntExpr) else _constant(int(value))

    # ---- structure

    @property
    def is_const(self) -> bool:
        return not self.terms or (len(self.terms) == 1 and () in self.terms)

    @property
    def const(self) -> int:
        assert self.is_const, f"{self} is not a constant"
        return self.terms.get((), 0)

    def as_int(self) -> int | None:
        return self.terms.get((), 0) if self.is_const else None

    def atoms(self) -> set[Atom]:
        return {atom for monomial in self.terms for atom in monomial}

    def symbols(self) -> set[Sym]:
        """Every symbol, also those inside floor divisions and the like."""
        found: set[Sym] = set()
        for atom in self.atoms():
            if isinstance(atom, Sym):
                found.add(atom)
            else:
                found |= atom.lhs.symbols() | atom.rhs.symbols()
        return found

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            return self.is_const and self.const == other
        return isinstance(other, IntExpr) and self.terms == other.terms

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self.terms.items()))
        return self._hash

    # ---- arithmetic

    def __add__(self, other: int | IntExpr) -> IntExpr:
        terms = dict(self.terms)
        for monomial, coefficient in IntExpr.of(other).terms.items():
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return IntExpr(terms)

    __radd__ = __add__

    def __neg__(self) -> IntExpr:
        return IntExpr({m: -c for m, c in self.terms.items()})

    def __sub__(self, other: int | IntExpr) -> IntExpr:
        return self + (-IntExpr.of(other))

    def __rsub__(self, other: int | IntExpr) -> IntExpr:
        return IntExpr.of(other) - self

    def __mul__(self, other: int | IntExpr) -> IntExpr:
        terms: dict[Monomial, int] = {}
        for lm, lc in self.terms.items():
            for rm, rc in IntExpr.of(other).terms.items():
                monomial = _product(lm, rm)
                terms[monomial] = terms.get(monomial, 0) + lc * rc
        return IntExpr(terms)

    __rmul__ = __mul__

    def __floordiv__(self, other: int | IntExpr) -> IntExpr:
        return _floordiv(self, IntExpr.of(other))

    def __rfloordiv__(self, other: int) -> IntExpr:
        return _floordiv(IntExpr.of(other), self)

    def __mod__(self, other: int | IntExpr) -> IntExpr:
        return _mod(self, IntExpr.of(other))

    def ceildiv(self, other: int | IntExpr) -> IntExpr:
        divisor = IntExpr.of(other)
        return (self + divisor - 1) // divisor

    # ---- ranges

    def range(self) -> tuple[int, int]:
        """An interval that holds every value (not always the tightest)."""
        if self._range is None:
            lo = hi = 0
            for monomial, coefficient in self.terms.items():
                m_lo, m_hi = 1, 1
                for atom in monomial:
                    a_lo, a_hi = _atom_range(atom)
                    corners = (m_lo * a_lo, m_lo * a_hi, m_hi * a_lo, m_hi * a_hi)
                    m_lo, m_hi = min(corners), max(corners)
                lo += min(coefficient * m_lo, coefficient * m_hi)
                hi += max(coefficient * m_lo, coefficient * m_hi)
            self._range = (lo, hi)
        return self._range

    def upper(self) -> int:
        return self.range()[1]

    def lower(self) -> int:
        return self.range()[0]

    def known_less(self, bound: int | IntExpr) -> bool:
        """True if self < bound is certain, using the extents of loop indices."""
        return _maximised(IntExpr.of(bound) - self - 1).lower() >= 0

    # ---- evaluation and rewriting

    def evaluate(self, values: Mapping[str, int]) -> int:
        total = 0
        for monomial, coefficient in self.terms.items():
            product = coefficient
            for atom in monomial:
                product *= _evaluate_atom(atom, values)
            total += product
        return total

    def substitute(self, values: Mapping[str, int | IntExpr]) -> IntExpr:
        """Replace symbols by name and normalise again."""
        total = _constant(0)
        for monomial, coefficient in self.terms.items():
            product = _constant(coefficient)
            for atom in monomial:
                product = product * _substitute_atom(atom, values)
            total = total + product
        return total

    def coefficient_of(self, symbol: Sym) -> IntExpr | None:
        """The c in self = c * symbol + rest, or None if the symbol appears in another way."""
        terms: dict[Monomial, int] = {}
        for monomial, coefficient in self.terms.items():
            count = sum(atom == symbol for atom in monomial)
            if any(isinstance(a, Apply) and _mentions(a, symbol) for a in monomial) or count > 1:
                return None
            if count == 1:
                rest = tuple(atom for atom in monomial if atom != symbol)
                terms[rest] = terms.get(rest, 0) + coefficient
        return IntExpr(terms)

    # ---- text

    def format(self, symbol: Callable[[Sym], str], apply: Callable[[str, str, str], str]) -> str:
        """Print in another language: `symbol` spells a symbol, `apply` an operation on two texts."""
        parts: list[str] = []
        for monomial in sorted(self.terms, key=lambda m: (-len(m), [a.key() for a in m])):
            coefficient = self.terms[monomial]
            factors = [
                symbol(a)
                if isinstance(a, Sym)
                else apply(a.op, a.lhs.format(symbol, apply), a.rhs.format(symbol, apply))
                for a in monomial
            ]
            if coefficient != 1 or not factors:
                factors.insert(0, str(coefficient))
            parts.append("*".join(factors))
        if not parts:
            return "0"
        return parts[0] if len(parts) == 1 else "(" + " + ".join(parts) + ")"

    def __str__(self) -> str:
        return self.format(lambda s: s.name, lambda op, a, b: f"{op}({a}, {b})")

    __repr__ = __str__


ZERO: IntExpr
ONE: IntExpr


@lru_cache(maxsize=4096)
def _constant(value: int) -> IntExpr:
    return IntExpr({(): value} if value else {})


ZERO = _constant(0)
ONE = _constant(1)


def symbol(name: str, lo: int, hi: int) -> IntExpr:
    """A named size in [lo, hi]; a size with one legal value is that constant."""
    return _constant(lo) if lo == hi else IntExpr({(Sym(name, lo, hi),): 1})


def index(name: str, extent: int | IntExpr) -> IntExpr:
    """A loop index in [0, extent); an extent of 1 gives the constant 0."""
    extent = IntExpr.of(extent)
    if extent == 1:
        return ZERO
    return IntExpr({(Sym(name, 0, max(extent.upper() - 1, 0), extent),): 1})


def minimum(lhs: int | IntExpr, rhs: int | IntExpr) -> IntExpr:
    return _extremum("min", IntExpr.of(lhs), IntExpr.of(rhs))


def maximum(lhs: int | IntExpr, rhs: int | IntExpr) -> IntExpr:
    return _extremum("max", IntExpr.of(lhs), IntExpr.of(rhs))


def prod(sizes: object) -> IntExpr:
    """The product of an iterable of ints and expressions."""
    return reduce(lambda a, b: a * b, sizes, ONE)  # type: ignore[call-overload,no-any-return]


# ---- normalisation rules


def _product(lhs: Monomial, rhs: Monomial) -> Monomial:
    if not lhs or not rhs:
        return lhs or rhs
    return tuple(sorted(lhs + rhs, key=lambda a: a.key()))  # type: ignore[arg-type,return-value]


def _divide_monomial(monomial: Monomial, divisor: Monomial) -> Monomial | None:
    rest = list(monomial)
    for atom in divisor:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def _split(expr: IntExpr, divisor: IntExpr) -> tuple[IntExpr, IntExpr] | None:
    """expr = quotient * divisor + remainder, for a one-term divisor; the remainder holds what does not divide."""
    if len(divisor.terms) != 1:
        return None
    ((d_monomial, d_coefficient),) = divisor.terms.items()
    quotient: dict[Monomial, int] = {}
    remainder: dict[Monomial, int] = {}
    for monomial, coefficient in expr.terms.items():
        rest = _divide_monomial(monomial, d_monomial)
        if rest is None:
            remainder[monomial] = coefficient
            continue
        whole, left = divmod(coefficient, d_coefficient)
        if whole:
            quotient[rest] = quotient.get(rest, 0) + whole
        if left:
            remainder[monomial] = left
    return IntExpr(quotient), IntExpr(remainder)


def _in_zero_to(expr: IntExpr, bound: IntExpr) -> bool:
    return expr.lower() >= 0 and expr.known_less(bound)


def _floordiv(lhs: IntExpr, rhs: IntExpr) -> IntExpr:
    if rhs == 1:
        return lhs
    if lhs.is_const and rhs.is_const:
        return _constant(lhs.const // rhs.const)
    if lhs == rhs:
        return ONE
    parts = _split(lhs, rhs)
    if parts is None:
        return ZERO if _in_zero_to(lhs, rhs) else _apply("floordiv", lhs, rhs)
    quotient, remainder = parts
    if _in_zero_to(remainder, rhs):
        return quotient
    # (c * r) // (c * d) == r // d
    if rhs.is_const and (divisor := _common_factor(remainder, rhs.const)) > 1:
        reduced = IntExpr({m: c // divisor for m, c in remainder.terms.items()})
        return quotient + _floordiv(reduced, _constant(rhs.const // divisor))
    return quotient + _apply("floordiv", remainder, rhs)


def _mod(lhs: IntExpr, rhs: IntExpr) -> IntExpr:
    if rhs == 1 or lhs == rhs:
        return ZERO
    if lhs.is_const and rhs.is_const:
        return _constant(lhs.const % rhs.const)
    parts = _split(lhs, rhs)
    remainder = lhs if parts is None else parts[1]
    if _in_zero_to(remainder, rhs):
        return remainder
    return _apply("mod", remainder, rhs)


def _common_factor(expr: IntExpr, bound: int) -> int:
    from math import gcd

    return reduce(gcd, expr.terms.values(), abs(bound))


def _apply(op: str, lhs: IntExpr, rhs: IntExpr) -> IntExpr:
    return IntExpr({(Apply(op, lhs, rhs),): 1})


def _extremum(op: str, lhs: IntExpr, rhs: IntExpr) -> IntExpr:
    difference = lhs - rhs
    if difference.lower() >= 0:
        return lhs if op == "max" else rhs
    if difference.upper() <= 0:
        return rhs if op == "max" else lhs
    return _apply(op, lhs, rhs)


# ---- atoms


def _atom_range(atom: Atom) -> tuple[int, int]:
    if isinstance(atom, Sym):
        return atom.lo, atom.hi
    (a_lo, a_hi), (b_lo, b_hi) = atom.lhs.range(), atom.rhs.range()
    if atom.op == "min":
        return min(a_lo, b_lo), min(a_hi, b_hi)
    if atom.op == "max":
        return max(a_lo, b_lo), max(a_hi, b_hi)
    if b_lo <= 0:
        return -_UNBOUNDED, _UNBOUNDED
    if atom.op == "mod":
        return 0, min(b_hi - 1, a_hi) if a_lo >= 0 else b_hi - 1
    corners = [a // b for a in (a_lo, a_hi) for b in (b_lo, b_hi)]
    return min(corners), max(corners)


def _maximised(expr: IntExpr) -> IntExpr:
    """`expr` with each loop index that lowers it replaced by its extent - 1: a lower bound over the indices."""
    for _ in range(4):
        replaced = {
            s.name: s.extent - 1
            for s in expr.symbols()
            if s.extent is not None
            and not s.extent.is_const
            and (c := expr.coefficient_of(s)) is not None
            and c.upper() <= 0
        }
        if not replaced:
            return expr
        expr = expr.substitute(replaced)
    return expr


def _mentions(atom: Apply, symbol: Sym) -> bool:
    return symbol in atom.lhs.symbols() or symbol in atom.rhs.symbols()


def _evaluate_atom(atom: Atom, values: Mapping[str, int]) -> int:
    if isinstance(atom, Sym):
        return values[atom.name]
    lhs, rhs = atom.lhs.evaluate(values), atom.rhs.evaluate(values)
    return {
        "floordiv": lambda: lhs // rhs,
        "mod": lambda: lhs % rhs,
        "min": lambda: min(lhs, rhs),
        "max": lambda: max(lhs, rhs),
    }[atom.op]()


def _substitute_atom(atom: Atom, values: Mapping[str, int | IntExpr]) -> IntExpr:
    if isinstance(atom, Sym):
        return IntExpr.of(values[atom.name]) if atom.name in values else IntExpr({(atom,): 1})
    lhs, rhs = atom.lhs.substitute(values), atom.rhs.substitute(values)
    return {
        "floordiv": lambda: lhs // rhs,
        "mod": lambda: lhs % rhs,
        "min": lambda: minimum(lhs, rhs),
        "max": lambda: maximum(lhs, rhs),
    }[atom.op]()
