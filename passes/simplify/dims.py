"""Dimensions as polynomials: equal ones have equal normal forms, so that equality is a comparison.

A dimension is an int, or a ``Poly``: a sum of products of atoms with integer coefficients, never constant. An atom stands for

    a symbol of the inputs' dynamic dimensions       the same symbol is the same size, as ONNX says
    a dimension of a value that nothing is known of  one atom for each value and axis
    a // b, a mod b, min(a, b), max(a, b)            where they cannot be resolved; equal operands give the equal atom

Every atom is at least 0. Division is resolved only where it is exact, by long division; or becomes an atom where dividend and
divisor are not negative, because there rounding down and rounding toward zero are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakValueDictionary

Monomial = tuple[str, ...]
"""The atoms of a product, sorted, each as often as its power; () is 1."""

UNKNOWN = "?"
"""Begins the names of atoms that stand for a dimension of which nothing is known."""
_MOST_TERMS = 40
"""Longer polynomials are given up: ``TooLongError``."""


class TooLongError(Exception):
    """A polynomial grew too long to be worth following."""


@dataclass(frozen=True, eq=False)
class Poly:
    """A polynomial that is not constant; made by ``symbol`` and arithmetic. Equal ones are one object."""

    terms: frozenset[tuple[Monomial, int]]

    def __add__(self, other: Dim) -> Dim:
        total = dict(self.terms)
        for monomial, factor in _terms(other):
            total[monomial] = total.get(monomial, 0) + factor
        return _normal(total)

    def __mul__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            return _normal({monomial: factor * other for monomial, factor in self.terms})
        total: dict[Monomial, int] = {}
        if len(self.terms) * len(other.terms) > _MOST_TERMS * _MOST_TERMS:
            raise TooLongError
        for left, a in self.terms:
            for right, b in other.terms:
                monomial = tuple(sorted(left + right))
                total[monomial] = total.get(monomial, 0) + a * b
        return _normal(total)

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + -other

    def __rsub__(self, other: int) -> Dim:
        return -self + other

    __radd__ = __add__
    __rmul__ = __mul__

    @cached_property
    def leading(self) -> tuple[Monomial, int]:
        """The first term in the order of degree, then of names."""
        return max(self.terms, key=lambda term: (len(term[0]), term[0]))

    @cached_property
    def has_unknown(self) -> bool:
        """Whether it depends on a dimension of which nothing is known, not on symbols of the inputs alone."""
        return any(UNKNOWN in atom for monomial, _ in self.terms for atom in monomial)

    def __str__(self) -> str:
        return " + ".join("*".join((str(factor), *monomial)) for monomial, factor in sorted(self.terms))


Dim = int | Poly
_POLYS: WeakValueDictionary[frozenset[tuple[Monomial, int]], Poly] = WeakValueDictionary()
"""All that there are, by their terms."""


def symbol(name: str) -> Poly:
    """The dimension that is one atom."""
    return _only(frozenset({((name,), 1)}))


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dimensions; 1 of none."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def is_nonnegative(dim: Dim) -> bool:
    """Whether a number cannot be below 0, whatever the atoms are."""
    return all(factor >= 0 for _, factor in _terms(dim))


def exact_quotient(a: Dim, b: Dim) -> Dim | None:
    """The q with a = q b as polynomials; None if there is none. Where b is 0, q is not the quotient of anything."""
    if b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a % b == 0 else None
    first, divisor = b.leading if isinstance(b, Poly) else ((), b)
    quotient: Dim = 0
    while a != 0:
        monomial, factor = a.leading if isinstance(a, Poly) else ((), a)
        rest = _without(monomial, first)
        if rest is None or factor % divisor:
            return None
        part = _normal({rest: factor // divisor})
        quotient = quotient + part
        a = a - part * b
    return quotient


def quotient(a: Dim, b: Dim) -> Dim | None:
    """What ONNX's Div gives for integers: a / b rounded toward zero; None if it cannot be told. b is not 0: Div by 0 fails."""
    found = exact_quotient(a, b)
    if found is not None:
        return found
    if not (is_nonnegative(a) and is_nonnegative(b)) or b == 0:
        return None
    return a // b if isinstance(a, int) and isinstance(b, int) else symbol(f"({a})//({b})")


def remainder(a: Dim, b: Dim) -> Dim | None:
    """What ONNX's Mod gives for integers: a - b floor(a / b), for b > 0; None if it cannot be told."""
    if isinstance(b, int) and b > 0:
        rest = _normal({monomial: factor % b for monomial, factor in _terms(a)})
        return rest % b if isinstance(rest, int) else symbol(f"({rest}) mod {b}")
    if not is_nonnegative(b) or b == 0:
        return None
    if exact_quotient(a, b) is not None:
        return 0
    return symbol(f"({a}) mod ({b})") if is_nonnegative(a) else None


def smaller(a: Dim, b: Dim) -> Dim | None:
    """min(a, b); None if it cannot be told."""
    if is_nonnegative(b - a):
        return a
    if is_nonnegative(a - b):
        return b
    if not (is_nonnegative(a) and is_nonnegative(b)):
        return None
    return symbol(f"min({', '.join(sorted((str(a), str(b))))})")


def larger(a: Dim, b: Dim) -> Dim | None:
    """max(a, b); None if it cannot be told."""
    least = smaller(a, b)
    return None if least is None else a + b - least


def are_equal(a: Dim, b: Dim) -> bool | None:
    """Whether two numbers are equal, always or never; None if it depends."""
    difference = a - b
    if difference == 0:
        return True
    factors = dict(_terms(difference))
    constant = factors.pop((), 0)
    same_sign = all(f > 0 for f in factors.values()) if constant > 0 else all(f < 0 for f in factors.values())
    return False if constant and same_sign else None


def _terms(dim: Dim) -> Iterable[tuple[Monomial, int]]:
    return dim.terms if isinstance(dim, Poly) else (((), dim),)


def _normal(terms: Mapping[Monomial, int]) -> Dim:
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    if not kept:
        return 0
    if len(kept) > _MOST_TERMS:
        raise TooLongError
    if len(kept) == 1 and () in kept:
        return kept[()]
    return _only(frozenset(kept.items()))


def _only(terms: frozenset[tuple[Monomial, int]]) -> Poly:
    found = _POLYS.get(terms)
    if found is None:
        found = _POLYS[terms] = Poly(terms)
    return found


def _without(monomial: Monomial, divisor: Monomial) -> Monomial | None:
    """The monomial divided by another; None if that does not divide it."""
    rest = [*monomial]
    for atom in divisor:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)
