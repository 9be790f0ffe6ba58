"""Ids and which of them are one: a union-find over arrays.

    same(a, b)  ->  find(a) == find(b), element by element
    lock(a, r)  ->  why(a) == r for all that are one with an element of ``a``, unless a smaller reason is there already

Ids are int64, counted from 0; the smallest of those that are one stands for all (the one made first: rules run in topological
order). A union of two arrays of n ids hooks all roots at once and repeats for the few that met a root twice; a find jumps
pointers until nothing moves. Both are a handful of numpy calls, whatever n is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
"""Ids along an axis, or of an n-dimensional block of positions."""


@dataclass(frozen=True)
class Symbol:
    """The size of a dynamic axis, which has no ids: equal where it is the same size, as far as is known."""

    name: str

    @property
    def named(self) -> bool:
        """Whether shape inference has a name for it."""
        return not self.name.startswith("?")


Axis = Ids | Symbol
"""What is known of the positions of an axis."""
FREE = np.iinfo(np.int64).max
"""In the place of a reason: nothing forbids these."""


class UnionFind:
    """Which ids are one, and the smallest number of a reason that forbids them to be removed."""

    def __init__(self) -> None:
        self.count = 0
        self._parent: Ids = np.arange(4096)
        self._why: Ids = np.full(4096, FREE)

    def new(self, size: int) -> Ids:
        """``size`` fresh ids, int64 [size]."""
        first, self.count = self.count, self.count + size
        if self.count > len(self._parent):
            capacity = 2 * self.count
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), capacity)])
            self._why = np.concatenate([self._why, np.full(capacity - len(self._why), FREE)])
        return np.arange(first, self.count)

    def find(self, ids: Ids) -> Ids:
        """The id that stands for each, int64 of the same shape."""
        root = self._parent[ids]
        while True:
            further = self._parent[root]
            if np.array_equal(further, root):
                self._parent[ids] = root
                return root
            root = further

    def same(self, a: Ids, b: Ids) -> bool:
        """Make ``a`` and ``b``, of one shape, the same element by element. Whether anything was new."""
        assert a.shape == b.shape, f"{a.shape} and {b.shape} ids cannot be the same"
        if a is b:
            return False
        changed = False
        while True:
            first, second = self.find(a), self.find(b)
            apart = first != second
            if not apart.any():
                return changed
            changed = True
            first, second = first[apart], second[apart]
            upper = np.maximum(first, second)
            np.minimum.at(self._parent, upper, np.minimum(first, second))
            np.minimum.at(self._why, self.find(upper), self._why[upper])

    def lock(self, ids: Ids, reason: int) -> None:
        """Forbid ``ids`` for ``reason``, unless a smaller one forbids them already."""
        root = self.find(ids)
        self._why[root] = np.minimum(self._why[root], reason)

    def why(self, ids: Ids) -> Ids:
        """The number of the reason that forbids each, or FREE; of the same shape."""
        return self._why[self.find(ids)]

    def copy(self) -> UnionFind:
        """Another one that knows the same, and may learn more."""
        other = UnionFind()
        other.count, other._parent, other._why = self.count, self._parent.copy(), self._why.copy()
        return other
