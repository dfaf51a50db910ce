"""Atoms: which axes are the same, split where one factors into the other."""

from __future__ import annotations

import pytest

from svdqc.compiler.codegen.atoms import AtomConflict, Atoms
from svdqc.compiler.ir.intexpr import IntExpr, symbol


def constant(size: int) -> IntExpr:
    return IntExpr.of(size)


def test_equal_sizes_become_one_atom() -> None:
    atoms = Atoms()
    a, b = atoms.axis(constant(6)), atoms.axis(constant(6))
    atoms.unify(a, b)
    assert atoms.leaves(a) == atoms.leaves(b)


def test_size_one_has_no_atoms() -> None:
    atoms = Atoms()
    assert atoms.axis(constant(1)) == []
    atoms.unify([], [])


def test_merged_axis_splits() -> None:
    """[24] against [4, 6]."""
    atoms = Atoms()
    whole, outer, inner = (atoms.axis(constant(s)) for s in (24, 4, 6))
    atoms.unify(whole, [*outer, *inner])
    assert atoms.leaves(whole) == atoms.leaves([*outer, *inner])
    assert atoms.sizes(whole) == [4, 6]


def test_both_sides_split() -> None:
    """[4, 6] against [2, 12] has the atoms 2, 2, 6."""
    atoms = Atoms()
    a, b, c, d = (atoms.axis(constant(s)) for s in (4, 6, 2, 12))
    atoms.unify([*a, *b], [*c, *d])
    assert atoms.sizes([*a, *b]) == [2, 2, 6]
    assert atoms.leaves([*a, *b]) == atoms.leaves([*c, *d])


def test_symbolic_sizes_split() -> None:
    tokens = symbol("tokens", 1, 4096)
    atoms = Atoms()
    whole, batch, rest = atoms.axis(tokens * 8), atoms.axis(tokens), atoms.axis(constant(8))
    atoms.unify(whole, [*batch, *rest])
    assert atoms.sizes(whole) == [tokens, 8]


def test_sizes_that_do_not_divide_conflict() -> None:
    atoms = Atoms()
    a, b = atoms.axis(constant(6)), atoms.axis(constant(4))
    with pytest.raises(AtomConflict, match="sizes 6 and 4"):
        atoms.unify(a, b)


def test_counts_that_differ_conflict() -> None:
    atoms = Atoms()
    a, b, c = (atoms.axis(constant(s)) for s in (4, 4, 3))
    with pytest.raises(AtomConflict, match="different numbers"):
        atoms.unify(a, [*c, *b])


def test_inner_marks_survive_aliases_and_splits() -> None:
    atoms = Atoms()
    whole, outer, inner = (atoms.axis(constant(s)) for s in (24, 4, 6))
    atoms.mark_inner(whole)
    atoms.unify(whole, [*outer, *inner])
    assert all(atoms.is_inner(a) for a in atoms.leaves(whole))
    assert all(atoms.is_inner(a) for a in atoms.leaves([*outer, *inner]))


def test_inner_marks_spread_in_either_order() -> None:
    for first_marked in (True, False):
        atoms = Atoms()
        a, b = atoms.axis(constant(6)), atoms.axis(constant(6))
        atoms.mark_inner(a if first_marked else b)
        atoms.unify(a, b)
        assert all(atoms.is_inner(leaf) for leaf in atoms.leaves([*a, *b]))
