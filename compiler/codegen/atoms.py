"""Atoms: the factors that the axes of a fused region's values have in common.

Two values belong in one row program if each element of one needs only elements of the other from the same row.
Whether they do is a question about axes, and reshapes split and merge those; so every axis is a run of *atoms*, and
each op says which atoms of its operands and its result are the same (`unify`) and which it mixes (`mark_inner`).
What remains unmixed can be the region's rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from svdqc.compiler.ir.intexpr import IntExpr, prod

Axis = list[int]  # atoms, outermost first; [] for an axis of size 1


class AtomConflict(Exception):
    """Two axes that must be the same cannot be."""


class Atoms:
    """A union-find over atoms that can also be split into factors."""

    def __init__(self) -> None:
        self._size: list[IntExpr] = []
        self._forward: list[Axis | None] = []  # what an atom was replaced by
        self._inner: list[bool] = []

    def axis(self, size: IntExpr) -> Axis:
        """A fresh axis of this size."""
        if size == 1:
            return []
        self._size.append(size)
        self._forward.append(None)
        self._inner.append(False)
        return [len(self._size) - 1]

    def leaves(self, atoms: Iterable[int]) -> Axis:
        """The atoms that these have become."""
        result: Axis = []
        for atom in atoms:
            forward = self._forward[atom]
            if forward is None:
                result.append(atom)
            else:
                result.extend(self.leaves(forward))
        return result

    def size(self, atom: int) -> IntExpr:
        return self._size[atom]

    def sizes(self, atoms: Iterable[int]) -> list[IntExpr]:
        return [self._size[a] for a in self.leaves(atoms)]

    def is_inner(self, atom: int) -> bool:
        return self._inner[atom]

    def mark_inner(self, atoms: Iterable[int]) -> None:
        for atom in self.leaves(atoms):
            self._inner[atom] = True

    def unify(self, lhs: Sequence[int], rhs: Sequence[int]) -> None:
        """Make two runs of atoms the same, splitting where one factors into the other."""
        left, right = self.leaves(lhs), self.leaves(rhs)
        while left and right:
            a, b = left.pop(), right.pop()
            if a == b:
                continue
            if self._size[a] == self._size[b]:
                self._alias(a, b)
            elif (rest := _exact_quotient(self._size[a], self._size[b])) is not None:
                left.extend(self._split(a, rest, b))
            elif (rest := _exact_quotient(self._size[b], self._size[a])) is not None:
                right.extend(self._split(b, rest, a))
            else:
                raise AtomConflict(f"sizes {self._size[a]} and {self._size[b]}")
            left, right = self.leaves(left), self.leaves(right)
        if left or right:
            raise AtomConflict("different numbers of elements")

    def _alias(self, atom: int, target: int) -> None:
        self._inner[target] = self._inner[target] or self._inner[atom]
        self._forward[atom] = [target]

    def _split(self, atom: int, outer_size: IntExpr, inner: int) -> Axis:
        """atom := (outer, inner); returns the outer part, which is still to be matched."""
        outer = self.axis(outer_size)
        if self._inner[atom]:
            self.mark_inner(outer)
            self._inner[inner] = True
        self._forward[atom] = [*outer, inner]
        return outer


def _exact_quotient(size: IntExpr, divisor: IntExpr) -> IntExpr | None:
    quotient = size // divisor
    return quotient if quotient * divisor == size and quotient.lower() >= 0 else None


def elements(atoms: Atoms, axis: Iterable[int]) -> IntExpr:
    return prod(atoms.sizes(axis))
