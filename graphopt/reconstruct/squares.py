"""Least squares on second moments: the weights that give a layer's old outputs from what it reads now.

    minimize over W, b:   sum over rows |t - W^T x - b|^2  +  l |W - W0|^2

x is what the layer reads now, t what it ought to give (of the original, or corrected for the error made so far), W0 the weights
that it has. Only sums over rows are needed (``Moments``), whatever the number of samples. With means m and v of x and t:

    (P - n m m^T + l) (W - W0) = C - n m v^T - (P - n m m^T) W0,        b = v - W^T m

l is a part of the mean of the diagonal, so that it does not depend on units, and W0 keeps what the data say nothing of. The
data decide how large it is (``choose``): what was fitted to some rows is judged by others, and so is W0 itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.contracts import Array

RIDGE = 1e-4
"""l as a part of the mean of the diagonal."""
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""What is tried."""
_LARGE = 2400
"""Of layers that read longer rows, whose equations take long to solve, one ridge is tried."""


@dataclass
class Moments:
    """Sums over ``count`` rows, in float64.

    ``products`` [k, k] of x x^T, ``cross`` [k, out] of x t^T, ``inputs`` [k] of x, ``targets`` [out] of t.
    """

    products: Array
    cross: Array
    inputs: Array
    targets: Array
    count: int

    @classmethod
    def empty(cls, k: int, out: int) -> Moments:
        """Of no rows."""
        return cls(np.zeros((k, k)), np.zeros((k, out)), np.zeros(k), np.zeros(out), 0)

    def add(self, x: Array, t: Array) -> None:
        """Take rows ``x`` [n, k] and what they ought to give, ``t`` [n, out]."""
        x, t = (rows.astype(np.result_type(rows, np.float32), copy=False) for rows in (x, t))
        self.products += x.T @ x
        self.cross += x.T @ t
        self.inputs += x.sum(axis=0, dtype=np.float64)
        self.targets += t.sum(axis=0, dtype=np.float64)
        self.count += len(x)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.products + other.products,
            self.cross + other.cross,
            self.inputs + other.inputs,
            self.targets + other.targets,
            self.count + other.count,
        )

    def error(self, weights: Array, bias: Array) -> float:
        """Squared error of ``weights`` [k, out] and ``bias`` [out] over the rows, less the sum of t^2."""
        quadratic = float(((self.products @ weights) * weights).sum()) - 2 * float((self.cross * weights).sum())
        given = weights.T @ self.inputs
        return quadratic + float(bias @ (2 * given - 2 * self.targets + self.count * bias))


def centred(products: Array, sums: Array, count: int) -> Array:
    """Covariance [k, k] times the number of rows."""
    return np.asarray(products - np.outer(sums, sums) / max(count, 1))


def solve(matrix: Array, right: Array, ridge: float = RIDGE) -> Array:
    """``(matrix + l)^-1 right`` for a positive semidefinite ``matrix`` [k, k] and ``right`` [k, out], float64.

    Zeros where one of them is not finite.
    """
    diagonal = float(np.trace(matrix)) / max(len(matrix), 1)
    if diagonal <= 0 or not (np.isfinite(matrix).all() and np.isfinite(right).all()):
        return np.zeros_like(right)
    scale = ridge * diagonal
    while True:
        try:
            found = np.linalg.solve(matrix + scale * np.eye(len(matrix)), right)
        except np.linalg.LinAlgError:
            found = np.full_like(right, np.nan)
        if np.isfinite(found).all():
            return found
        scale = max(10 * scale, 1e-12 * diagonal)


def fit(moments: Moments, start: Array, *, bias: Array | None = None, ridge: float = RIDGE) -> tuple[Array, Array]:
    """The best weights [k, out] and bias [out], float64.

    Args:
        moments: Of what the layer reads and ought to give.
        start: Its weights so far [k, out]; where the data do not decide they stay.
        bias: A bias [out] that cannot be changed; None: the best one is found too.
        ridge: How much ``start`` weighs, as a part of the mean of the diagonal.
    """
    start = start.astype(np.float64)
    if bias is None:
        covariance = centred(moments.products, moments.inputs, moments.count)
        cross = moments.cross - np.outer(moments.inputs, moments.targets) / max(moments.count, 1)
        weights = start + solve(covariance, cross - covariance @ start, ridge)
        return weights, (moments.targets - weights.T @ moments.inputs) / max(moments.count, 1)
    cross = moments.cross - np.outer(moments.inputs, bias)
    return start + solve(moments.products, cross - moments.products @ start, ridge), bias.astype(np.float64)


def choose(
    fitted: Sequence[Moments], held_out: Sequence[Moments], start: Array, bias: Array, *, fixed: bool = False
) -> list[tuple[Array, Array]] | None:
    """Weights and biases of a layer's groups, with the ridge that is best on rows that were held out, fitted to all rows.

    Args:
        fitted: Moments of each group.
        held_out: Of other rows.
        start: Weights so far [group, k, out].
        bias: Biases so far [group, out].
        fixed: Whether biases cannot be changed.

    Returns:
        For each group weights [k, out] and bias [out]; None where nothing is better than what was.
    """

    def made(moments: Sequence[Moments], ridge: float) -> list[tuple[Array, Array]]:
        return [
            fit(one, weights, bias=offset if fixed else None, ridge=ridge)
            for one, weights, offset in zip(moments, start, bias, strict=True)
        ]

    def judged(found: Iterable[tuple[Array, Array]]) -> float:
        return sum(one.error(*pair) for one, pair in zip(held_out, found, strict=True))

    errors = {ridge: judged(made(fitted, ridge)) for ridge in (RIDGES if start.shape[1] <= _LARGE else RIDGES[2:3])}
    best = min(errors, key=lambda ridge: errors[ridge])
    if not errors[best] < judged(zip(start, bias, strict=True)):  # nor where values are not finite
        return None
    return made([one + other for one, other in zip(fitted, held_out, strict=True)], best)
