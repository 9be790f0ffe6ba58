"""Scores of a group's units from their weights alone: one number for each unit, the smallest go first.

l1, l2        norm of the weights that make the unit (Li et al. 2017)
fpgm          distance to the other units: what lies in their middle can be replaced by them (He et al. 2019)
batchnorm     scale of the batch norm behind the unit (Liu et al. 2017), where the recipe leaves batch norms; l2 elsewhere
random        the yardstick for all others
activation    mean square of what the unit gives, where layers read it
apoz          the part of what the unit gives that is not zero, there (Hu et al. 2016: average percentage of zeros); l2 where
              nothing is ever zero, as no ReLU is
wanda         norm of the weights that read the unit, each times the root mean square of what it multiplies (Sun et al. 2024)
taylor, obd   by gradients: see ``gradients``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from graphopt.axes import Group
from graphopt.axes.groups import Use
from graphopt.contracts import Array
from graphopt.graphs import constant

from .selection import Reader

Criterion = Literal["reconstruction", "l1", "l2", "fpgm", "batchnorm", "random", "activation", "apoz", "wanda", "taylor", "obd"]
BY_GRADIENTS = frozenset({"taylor", "obd"})


def slices(use: Use, size: int) -> list[Array]:
    """The weights that belong to each unit, flat float64; empty where a weight has nothing of it."""
    tensor = constant(use.value)
    assert tensor is not None
    array = np.moveaxis(tensor.numpy().astype(np.float64), use.axis, 0)
    return [array[use.units == unit].reshape(-1) for unit in range(size)]


def by_weights(group: Group, criterion: Criterion, random: np.random.Generator) -> Array:
    """Scores [size] from the weights that make the units."""
    if criterion == "random":
        return np.asarray(random.random(group.size))
    if criterion == "batchnorm" and (found := _scales(group)) is not None:
        return found
    made = [slices(use, group.size) for use in group.producers]
    vectors = [np.concatenate(parts) for parts in zip(*made, strict=True)]
    return _NORMS.get(criterion, _l2)(vectors)


def by_readers(readers: Sequence[Reader], size: int, criterion: Criterion) -> Array:
    """Scores [size] from what layers read of the units."""
    found = np.zeros(size)
    for reader in readers:
        squares = np.diag(reader.covariance)
        if criterion == "wanda":
            squares = squares * (reader.matrix**2).sum(axis=1)
        within = reader.unit >= 0
        found += np.bincount(reader.unit[within], squares[within], size) / max(float(squares.sum()), 1e-30)
    return found


def _scales(group: Group) -> Array | None:
    """Absolute scales of the batch norms along the group, summed by unit; None where there is none."""
    found = np.zeros(group.size)
    norms = 0
    for member in group.members:
        tensor = constant(member.value)
        reads = any(use.node.op_type == "BatchNormalization" and use.idx == 1 for use in member.value.uses())
        if tensor is not None and reads:
            within = member.units >= 0
            found += np.bincount(member.units[within], np.abs(tensor.numpy().astype(np.float64))[within], group.size)
            norms += 1
    return found if norms else None


def _l1(vectors: Sequence[Array]) -> Array:
    return np.array([np.abs(vector).sum() for vector in vectors])


def _l2(vectors: Sequence[Array]) -> Array:
    return np.array([float(vector @ vector) for vector in vectors])


def _middle(vectors: Sequence[Array]) -> Array:
    if len({len(vector) for vector in vectors}) > 1:
        return _l2(vectors)
    stacked = np.stack(vectors)
    squares = (stacked**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * stacked @ stacked.T, 0))
    return np.asarray(distances.sum(axis=1))


_NORMS: Mapping[str, Callable[[Sequence[Array]], Array]] = {"l1": _l1, "l2": _l2, "fpgm": _middle}
