"""IntExpr: normalisation keeps every value, ranges hold every value, comparisons are sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svdqc.compiler.ir.intexpr import ONE, ZERO, IntExpr, index, maximum, minimum, prod, symbol

Values = dict[str, int]

W = symbol("W", 1, 12)  # a dim, also the extent of a loop
H = symbol("H", 0, 7)
I = index("i", W)  # noqa: E741  0 <= i < W
J = index("j", 6)


@dataclass(frozen=True)
class Pair:
    """An expression and how Python computes the same."""

    expr: IntExpr
    value: Callable[[Values], int]


@st.composite
def values(draw: st.DrawFn) -> Values:
    """Legal values: the loop index stays below its extent."""
    width = draw(st.integers(1, 12))
    return {
        "W": width,
        "H": draw(st.integers(0, 7)),
        "i": draw(st.integers(0, width - 1)),
        "j": draw(st.integers(0, 5)),
    }


def _leaf() -> st.SearchStrategy[Pair]:
    symbols = [Pair(e, lambda v, n=n: v[n]) for e, n in ((W, "W"), (H, "H"), (I, "i"), (J, "j"))]  # type: ignore[misc]
    constants = st.integers(-9, 9).map(lambda c: Pair(IntExpr.of(c), lambda v: c))
    return st.one_of(st.sampled_from(symbols), constants)


def _grow(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    def combine(op: str, a: Pair, b: Pair, divisor: int) -> Pair:
        x, y = a.value, b.value
        if op == "add":
            return Pair(a.expr + b.expr, lambda v: x(v) + y(v))
        if op == "sub":
            return Pair(a.expr - b.expr, lambda v: x(v) - y(v))
        if op == "mul":
            return Pair(a.expr * b.expr, lambda v: x(v) * y(v))
        if op == "min":
            return Pair(minimum(a.expr, b.expr), lambda v: min(x(v), y(v)))
        if op == "max":
            return Pair(maximum(a.expr, b.expr), lambda v: max(x(v), y(v)))
        if op == "floordiv":
            return Pair(a.expr // divisor, lambda v: x(v) // divisor)
        if op == "mod":
            return Pair(a.expr % divisor, lambda v: x(v) % divisor)
        if op == "ceildiv":
            return Pair(a.expr.ceildiv(divisor), lambda v: -(-x(v) // divisor))
        if op == "floordiv W":
            return Pair(a.expr // W, lambda v: x(v) // v["W"])
        return Pair(a.expr % (W * divisor), lambda v: x(v) % (v["W"] * divisor))

    ops = ["add", "sub", "mul", "min", "max", "floordiv", "mod", "ceildiv", "floordiv W", "mod W"]
    return st.builds(combine, st.sampled_from(ops), inner, inner, st.integers(1, 8))


PAIRS = st.recursive(_leaf(), _grow, max_leaves=8)


@settings(max_examples=600, deadline=None)
@given(PAIRS, values())
def test_normalisation_keeps_the_value(pair: Pair, at: Values) -> None:
    assert pair.expr.evaluate(at) == pair.value(at), pair.expr


@settings(max_examples=400, deadline=None)
@given(PAIRS, values())
def test_range_holds_every_value(pair: Pair, at: Values) -> None:
    lo, hi = pair.expr.range()
    assert lo <= pair.value(at) <= hi, pair.expr


@settings(max_examples=400, deadline=None)
@given(PAIRS, PAIRS, values())
def test_known_less_is_sound(a: Pair, b: Pair, at: Values) -> None:
    if a.expr.known_less(b.expr):
        assert a.value(at) < b.value(at), f"{a.expr} < {b.expr}"


@settings(max_examples=300, deadline=None)
@given(PAIRS, values())
def test_substituted_constants_evaluate(pair: Pair, at: Values) -> None:
    result = pair.expr.substitute(at)
    assert result.as_int() == pair.value(at)


@settings(max_examples=300, deadline=None)
@given(PAIRS, PAIRS, values())
def test_substituted_expression_evaluates(outer: Pair, inner: Pair, at: Values) -> None:
    """A symbol replaced by an expression within its range."""
    replacement = minimum(maximum(inner.expr, 0), 7)
    result = outer.expr.substitute({"H": replacement})
    assert result.evaluate(at) == outer.value({**at, "H": min(max(inner.value(at), 0), 7)})


@settings(max_examples=300, deadline=None)
@given(PAIRS, values())
def test_printed_text_evaluates(pair: Pair, at: Values) -> None:
    functions = {
        "floordiv": lambda a, b: a // b,
        "mod": lambda a, b: a % b,
        "min": min,
        "max": max,
    }
    assert eval(str(pair.expr), functions, dict(at)) == pair.value(at)


@settings(max_examples=200, deadline=None)
@given(PAIRS, PAIRS)
def test_equal_polynomials_are_equal_objects(a: Pair, b: Pair) -> None:
    assert a.expr + b.expr == b.expr + a.expr
    assert a.expr * b.expr == b.expr * a.expr
    assert hash(a.expr - b.expr) == hash(-(b.expr - a.expr))
    assert a.expr - a.expr == 0


@settings(max_examples=200, deadline=None)
@given(PAIRS, values())
def test_coefficient_splits_off_a_symbol(pair: Pair, at: Values) -> None:
    (j,) = J.symbols()
    coefficient = pair.expr.coefficient_of(j)
    if coefficient is not None:
        rest = pair.expr - coefficient * J
        assert j not in rest.symbols()
        assert coefficient.evaluate(at) * at["j"] + rest.evaluate(at) == pair.value(at)


def test_reshape_arithmetic_folds() -> None:
    i, j = index("i", 10), index("j", 64)
    assert (i * 64 + j) // 64 == i
    assert (i * 64 + j) % 64 == j
    assert (i * 64 + j) // 32 == i * 2 + j // 32


def test_reshape_arithmetic_folds__symbolic_extent() -> None:
    i, j = index("i", H), index("j", W)
    assert (i * W + j) // W == i
    assert (i * W + j) % W == j


def test_common_factor_leaves_a_quotient() -> None:
    i = index("i", 100)
    assert (i * 4) // 8 == i // 2


def test_extent_of_one_is_no_index() -> None:
    assert index("i", 1) == ZERO
    assert symbol("N", 3, 3) == 3


@pytest.mark.parametrize(("dividend", "divisor"), [(7, 2), (-7, 2), (0, 5), (-1, 64)])
def test_constants_divide_as_python_does(dividend: int, divisor: int) -> None:
    assert IntExpr.of(dividend) // divisor == dividend // divisor
    assert IntExpr.of(dividend) % divisor == dividend % divisor


def test_product_of_nothing_is_one() -> None:
    assert prod([]) == ONE
    assert prod([W, 2, 3]) == W * 6
