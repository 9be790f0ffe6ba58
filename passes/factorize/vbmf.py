"""How many components of a matrix stand out of noise, without data: empirical variational Bayes, in closed form.

    V [L, M] = U + noise of variance s2, L <= M, a = L / M; g_h its singular values, x_h = g_h^2 / (M s2)

A component is kept where x_h > X = (1 + t) (1 + a / t), t = 2.5129 sqrt(a); s2 minimizes

    sum over x_h <= X of x_h - log x_h   +   sum over x_h > X of x_h - log x_h + log(T + 1) + a log(T / a + 1) - T

with T(x) = (x - 1 - a + sqrt((x - 1 - a)^2 - 4 a)) / 2 (Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of
fully-observed variational Bayesian matrix factorization", 2013, theorem 2, corollary 2 and section 4).
"""

from __future__ import annotations

import math

import numpy as np

from graphopt.contracts import Array

from .decompose import LARGE

_SLOPE = 2.5129
_GRID = 400
"""Variances that are tried, evenly spaced as factors: the function of s2 has several minima."""


def rank(matrix: Array) -> int:
    """The number of components of ``matrix`` [k, n] that are more than noise; 0 to min(k, n)."""
    rows, columns = sorted(matrix.shape)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide.astype(np.float64, copy=False) if rows < LARGE else wide
    squares = np.maximum(np.linalg.eigvalsh(wide @ wide.T)[::-1], 0.0)  # falling
    if not np.isfinite(squares).all() or squares[0] <= 0:
        return 0
    a = rows / columns
    t = _SLOPE * math.sqrt(a)
    bound = (1 + t) * (1 + a / t)
    tail = min(math.ceil(rows / (1 + a)) - 1, rows - 1)
    most = float(squares.sum()) / (rows * columns)
    least = max(float(squares[tail]) / (columns * bound), float(squares[tail:].mean()) / columns, 1e-12 * most)
    tried = np.geomspace(min(least, most), most, _GRID)
    best = min(tried, key=lambda variance: _energy(squares / (columns * variance), a, bound))
    return int(np.count_nonzero(squares > columns * best * bound))


def _energy(x: Array, a: float, bound: float) -> float:
    """The free energy but for constants, at x = squared singular values by M s2."""
    x = np.maximum(x, 1e-12)
    kept = x[x > bound]
    t = (kept - 1 - a + np.sqrt(np.maximum((kept - 1 - a) ** 2 - 4 * a, 0.0))) / 2
    return float(np.sum(x - np.log(x)) + np.sum(np.log(t + 1) + a * np.log(t / a + 1) - t))
