"""Which units of a group to remove, by what the layers that read them would lose: Optimal Brain Surgeon on their inputs.

A layer y = W^T x + b reads rows x with covariance H. Without the elements r of x, and with the best weights for those that are
left, its squared error grows by (Hassibi and Stork 1993, for blocks)

    e(r) = trace( W_r^T [(H^-1)_rr]^-1 W_r )

Then W and H^-1 are those of the layer without r, and the next unit is chosen:

    W    <-  W    - (H^-1)_.r [(H^-1)_rr]^-1 W_r
    H^-1 <-  H^-1 - (H^-1)_.r [(H^-1)_rr]^-1 (H^-1)_r.

Units are removed one by one, so a harsher choice removes all that a gentler one does. Several layers that read a group add
their errors, each as a part of its own output's energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.contracts import Array
from graphopt.reconstruct import centred

_RIDGE = 1e-3
_FEW = 0.1
"""What is added to variances for each element of a row, as a part of the mean, divided by the number of rows."""
_AT_ONCE = 64
"""Of a large group this part of the units goes before what is left is weighed again: 1 / 64."""
_NO_ENERGY = 1e-30


@dataclass(frozen=True)
class Reader:
    """A layer that reads a group's units.

    ``matrix`` [k, out]; ``covariance`` [k, k] and ``mean`` [k] of what it reads; ``unit`` [k] of each row, -1 for other rows.
    """

    matrix: Array
    covariance: Array
    mean: Array
    unit: Array

    @classmethod
    def of(cls, matrix: Array, products: Array, sums: Array, count: int, independent: int, unit: Array) -> Reader:
        """From second moments of what the layer reads, of so many rows that have little to do with one another.

        From few rows the smallest variances come out too small, as if what is left could stand in for anything: a part of the
        mean is added to all.
        """
        rows = max(count, 1)
        covariance = centred(products, sums, count) / rows
        part = max(_RIDGE, _FEW * len(matrix) / max(independent, 1))
        covariance += part * max(float(np.trace(covariance)) / len(matrix), _NO_ENERGY) * np.eye(len(matrix))
        return cls(matrix, covariance, sums / rows, unit)

    @property
    def energy(self) -> float:
        """Variance of what the layer gives, summed over its outputs."""
        return float(np.einsum("ko,kl,lo->", self.matrix, self.covariance, self.matrix, optimize=True))


@dataclass(frozen=True)
class Selection:
    """``order``: units, those that go first before; ``error`` [len(order) + 1]: what the readers lose when so many are gone."""

    order: Array
    error: Array


def surgeon(readers: Sequence[Reader], size: int, most: int) -> Selection:
    """The order in which ``most`` of ``size`` units go by the error that they leave behind.

    The readers' matrices are consumed; their error is noise to signal, summed over readers.
    """
    states = [_State.of(reader, size) for reader in readers]
    left = np.ones(size, bool)
    order: list[int] = []
    error = [0.0]
    while len(order) < most:
        at_once = min(max(1, size // _AT_ONCE), most - len(order))
        units = np.flatnonzero(left)
        costs = np.sum([state.costs(units) for state in states], axis=0) if states else np.zeros(len(units))
        chosen = units[np.argsort(costs, kind="stable")[:at_once]]
        cost = sum(state.remove(chosen) for state in states)
        error += [error[-1] + cost * (place + 1) / len(chosen) for place in range(len(chosen))]
        left[chosen] = False
        order += chosen.tolist()
    return Selection(np.array(order, np.int64), np.array(error))


def ranked(scores: Array, most: int) -> Selection:
    """The order by a score of each unit [size], the smallest first; the error is the part of all scores that is gone."""
    order = np.argsort(scores, kind="stable")[:most]
    total = max(float(scores.sum()), _NO_ENERGY)
    return Selection(order.astype(np.int64), np.concatenate([[0.0], np.cumsum(scores[order])]) / total)


@dataclass
class _State:
    """A reader while units go: ``rows`` [units, width] of each unit, scaled weights and the inverse of the covariance."""

    weights: Array
    inverse: Array
    rows: dict[int, Array]

    @classmethod
    def of(cls, reader: Reader, size: int) -> _State:
        covariance = reader.covariance
        inverse = np.linalg.inv(covariance)
        rows = {unit: np.flatnonzero(reader.unit == unit) for unit in range(size)}
        return cls(reader.matrix / np.sqrt(max(reader.energy, _NO_ENERGY)), inverse, rows)

    def costs(self, units: Array) -> Array:
        """What each unit's going would cost."""
        found = np.zeros(len(units))
        by_width: dict[int, list[int]] = {}
        for place, unit in enumerate(units.tolist()):
            by_width.setdefault(len(self.rows[unit]), []).append(place)
        for width, places in by_width.items():
            if width == 0:
                continue
            rows = np.stack([self.rows[int(units[place])] for place in places])
            blocks = self.inverse[rows[:, :, None], rows[:, None, :]]
            weights = self.weights[rows]
            found[places] = np.einsum("uro,uro->u", weights, np.linalg.solve(blocks, weights))
        return found

    def remove(self, units: Array) -> float:
        """Remove units; what that costs."""
        rows = np.concatenate([self.rows[int(unit)] for unit in units])
        if not len(rows):
            return 0.0
        weights, columns = self.weights[rows], self.inverse[:, rows]
        factors = np.linalg.solve(columns[rows], columns.T)
        cost = float((weights * (np.linalg.solve(columns[rows], weights))).sum())
        self.weights -= factors.T @ weights
        self.inverse -= columns @ factors
        self.weights[rows] = 0.0
        self.inverse[rows] = 0.0
        self.inverse[:, rows] = 0.0
        self.inverse[rows, rows] = 1.0
        return max(cost, 0.0)
