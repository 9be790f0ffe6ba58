"""The contents of a small integer tensor: its shape, and its elements in order.

Tuples, not arrays: there are vectors of a few numbers, some of which are polynomials (``dims.py``). Where elements are moved
about in more than one axis, NumPy moves their places, and the elements follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from graphopt.contracts import Array

from .dims import Dim

Size = TypeVar("Size", int, Dim)

MOST_ELEMENTS = 64
"""Tensors up to this size are followed; shapes are never longer."""


class Numbers(NamedTuple):
    """The contents of a tensor."""

    shape: tuple[int, ...]
    items: tuple[Dim | None, ...]
    """None where an element is not known."""

    def picked(self, pick: Callable[[Array], Array]) -> Numbers:
        """The elements in the places that ``pick`` takes from an array of all places, in the shape that it gives them."""
        places = pick(np.arange(len(self.items)).reshape(self.shape))
        return Numbers(places.shape, tuple([self.items[place] for place in places.reshape(-1).tolist()]))

    def reshaped(self, shape: tuple[int, ...]) -> Numbers | None:
        """The same elements in another shape; None if it has another number of them."""
        return Numbers(shape, self.items) if math.prod(shape) == len(self.items) else None


def vector(items: Iterable[Dim | None]) -> Numbers:
    """A vector of these elements."""
    elements = tuple(items)
    return Numbers((len(elements),), elements)


def concatenated(parts: Sequence[Numbers], axis: int) -> Numbers:
    """The parts one after the other along an axis."""
    whole = vector([item for part in parts for item in part.items])
    if all(len(part.shape) == 1 for part in parts):
        return whole
    ends = np.cumsum([len(part.items) for part in parts])[:-1]

    def join(places: Array) -> Array:
        pieces = zip(np.split(places, ends), parts, strict=True)
        return np.concatenate([piece.reshape(part.shape) for piece, part in pieces], axis)

    return whole.picked(join)


def broadcast(operands: Sequence[Numbers]) -> Sequence[Numbers] | None:
    """The operands, all repeated to one shape; None if they do not fit, or are too large then."""
    shapes = {operand.shape for operand in operands}
    if len(shapes) == 1:
        return operands
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError:
        return None
    if math.prod(shape) > MOST_ELEMENTS:
        return None
    return [operand.picked(lambda places: np.broadcast_to(places, shape)) for operand in operands]


def squeezed(dims: Sequence[Size], axes: Sequence[int] | None) -> tuple[Size, ...]:
    """Dimensions without those of some axes; without all that are 1, if no axes are named."""
    dropped = None if axes is None else {axis % len(dims) for axis in axes}
    return tuple([dim for axis, dim in enumerate(dims) if (dim != 1 if dropped is None else axis not in dropped)])


def unsqueezed(dims: Sequence[Size], axes: Sequence[int]) -> tuple[Size, ...]:
    """Dimensions with 1 at these axes of the result."""
    rank, rest = len(dims) + len(axes), iter(dims)
    inserted = {axis % rank for axis in axes}
    return tuple([1 if axis in inserted else next(rest) for axis in range(rank)])
