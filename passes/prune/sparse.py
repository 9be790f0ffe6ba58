"""Zeros among the weights of one layer, and the rest of them set so that the layer gives what it gave.

A layer y = W^T x + b reads rows x with second moments H. Optimal Brain Surgeon, row by row of W as in SparseGPT (Frantar and
Alistarh 2023): with H^-1 = U^T U, U upper triangular, the weights w_i. that are to be zero go, and those of later rows make up
for them,

    e_i = w_i. / U_ii  where they go, else 0          W_j.  <-  W_j. - U_ij e_i      for j > i

and a weight's score is w_ij^2 / U_ii^2, the error that it leaves behind. Others that choose (``Criterion``): |w|; and Wanda,
|w| times the root mean square of what it multiplies, compared within an output (Sun et al. 2024). The rest is fitted alike.

So rows only make up for those before them. Where the zeros are known, the best weights solve (H w)_s = (H w0)_s for the
places s that are left of each output, which ``settled`` does for all outputs at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphopt.contracts import Array

Criterion = Literal["reconstruction", "wanda", "magnitude"]
_BLOCK = 128
"""Rows whose zeros are chosen together, with weights that make up for those before them."""
_RIDGE = 0.01
"""What is added to the second moments, as a part of the mean of their diagonal."""
_NO_ENERGY = 1e-30
_SEARCHES = 50
"""Steps of the conjugate gradient."""


@dataclass(frozen=True)
class Pattern:
    """``zeros`` of each ``of`` weights that one output reads in a row are zero: 2:4 is two of four."""

    kept: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """From ``kept:of``.

        Raises:
            ValueError: It is none.
        """
        kept, colon, of = text.partition(":")
        if not (colon and kept.isdigit() and of.isdigit() and 0 < int(kept) < int(of)):
            raise ValueError(f"{text!r} is no pattern: two numbers like 2:4, of which the first is smaller, are")
        return cls(int(kept), int(of))


def scores(matrix: Array, moments: Array, criterion: Criterion) -> Array:
    """How much each weight [k, out] matters, from the second moments [k, k] of what the layer reads."""
    return _SCORES[criterion](matrix, moments)


def sparse(matrix: Array, moments: Array, gone: float | Pattern | Array, criterion: Criterion, *, fit: bool = True) -> Array:
    """The weights [k, out] with zeros.

    Args:
        matrix: Weights [k, out], float64.
        moments: Second moments [k, k] of what the layer reads, in the same order.
        gone: The part of the weights, a pattern along k, or which ones [k, out].
        criterion: What decides which ones.
        fit: Whether the others make up for those that go.
    """
    k = len(matrix)
    weights = matrix.copy()
    upper = _factor(moments) if fit or criterion == "reconstruction" else np.eye(k)
    mask = gone if isinstance(gone, np.ndarray) else None
    if mask is None and not (criterion == "reconstruction" and fit):
        mask = _chosen(scores(matrix, moments, criterion), gone, per_output=criterion == "wanda")
    step = _BLOCK if not isinstance(gone, Pattern) else _BLOCK - _BLOCK % gone.of
    for start in range(0, k, step):
        block = slice(start, min(start + step, k))
        here = weights[block]
        goes = mask[block] if mask is not None else _chosen((here / np.diag(upper)[block, None]) ** 2, gone)
        if not fit:
            here[goes] = 0
            continue
        left = upper[block, block]
        errors = np.zeros_like(here)
        for row in range(len(here)):
            errors[row] = np.where(goes[row], here[row] / left[row, row], 0)
            here[row:] -= np.outer(left[row, row:], errors[row])
            here[row, goes[row]] = 0
        weights[block.stop :] -= upper[block, block.stop :].T @ errors
    return weights


def settled(matrix: Array, moments: Array, zeros: Array) -> Array:
    """The best weights [k, out] with the zeros of ``zeros`` [k, out], which are where the search starts: nearest to ``matrix``.

    Conjugate gradient in the weights that are left, of all outputs at once, scaled by the diagonal.
    """
    ridge = _RIDGE * max(float(np.trace(moments)) / max(len(moments), 1), _NO_ENERGY)
    moments = moments + ridge * np.eye(len(moments))
    scale, stays = 1 / np.diag(moments)[:, None], zeros != 0
    weights = zeros.copy()
    left = stays * (moments @ (matrix - weights))
    step = scale * left
    energy = (left * step).sum(axis=0)
    for _ in range(_SEARCHES):
        along = stays * (moments @ step)
        length = energy / np.maximum((step * along).sum(axis=0), _NO_ENERGY)
        weights += length * step
        left -= length * along
        before, energy = energy, (left * scale * left).sum(axis=0)
        step = scale * left + energy / np.maximum(before, _NO_ENERGY) * step
    return weights


def _chosen(found: Array, gone: float | Pattern | Array, *, per_output: bool = False) -> Array:
    """Which weights go, by their scores."""
    mask = np.zeros(found.shape, bool)
    if isinstance(gone, Pattern):
        whole = len(found) - len(found) % gone.of
        rows = found[:whole].reshape(-1, gone.of, found.shape[1])
        order = np.argsort(np.argsort(rows, axis=1, kind="stable"), axis=1)
        mask[:whole] = (order < gone.of - gone.kept).reshape(whole, -1)
    elif isinstance(gone, np.ndarray):
        mask |= gone
    elif per_output:
        order = np.argsort(np.argsort(found, axis=0, kind="stable"), axis=0)
        mask[:] = order < round(gone * len(found))
    else:
        count = round(gone * found.size)
        mask.reshape(-1)[np.argpartition(found.reshape(-1), max(count - 1, 0))[:count]] = True
    return mask


def _factor(moments: Array) -> Array:
    """U, upper triangular, with H^-1 = U^T U."""
    k = len(moments)
    ridge = _RIDGE * max(float(np.trace(moments)) / max(k, 1), _NO_ENERGY)
    inverse = np.linalg.inv(moments + ridge * np.eye(k))
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)


def _surgeon(matrix: Array, moments: Array) -> Array:
    return np.asarray((matrix / np.diag(_factor(moments))[:, None]) ** 2)


def _wanda(matrix: Array, moments: Array) -> Array:
    return np.asarray(np.abs(matrix) * np.sqrt(np.maximum(np.diag(moments), 0))[:, None])


def _magnitude(matrix: Array, moments: Array) -> Array:
    del moments
    return np.asarray(np.abs(matrix))


_SCORES: Mapping[Criterion, Callable[[Array, Array], Array]] = {
    "reconstruction": _surgeon,
    "wanda": _wanda,
    "magnitude": _magnitude,
}
