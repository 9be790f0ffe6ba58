"""The best product of two thin matrices in place of a weight, on data.

    minimize over A [k, r], B [r, n]:   |X M - X A B|^2 = trace((M - A B)^T G (M - A B)),      G = X^T X, X the layer's inputs

The best outputs of rank r are X M V V^T, with V the first r eigenvectors of M^T G M (Eckart and Young 1936; the principal
components of the outputs). So A = M V, B = V^T: exact for any G, singular ones too, and nothing is inverted; what is left out
are the other eigenvalues. Where n > k the smaller problem is S S^T = U D U^T with S = L^T M, G = L L^T, and

    V = S^T U D^-1/2,      A = M V D^1/2 = M S^T U,   B = D^-1 U^T S

G = 1 is the plain singular value decomposition; of an embedding G is diagonal, how often each row is looked up. This is what is
elsewhere called whitening (Wang et al., SVD-LLM, 2024; Liebenwein et al., ALDS, 2021). A ridge on G, relative to its diagonal,
keeps M where the data say nothing.

Of large matrices the components are found by a random projection and power iterations (Halko, Martinsson and Tropp 2011,
algorithm 4.4), in float32: squares of singular values below 1e-7 of the largest are then noise, far below what truncation
leaves out. numpy decomposes in float64 whatever it is given, and takes five times the matrix for it: so G is read in rows and
never copied, a basis is made orthonormal a few columns at a time, and only a matrix of the rank's size is decomposed. A weight
much longer or wider than square is large beside the smaller of its two second moments, which is then decomposed whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from graphopt.contracts import Array

RIDGE = 1e-3
"""Added to the diagonal of G, as a part of its mean."""
LARGE = 1536
"""Rows and columns from which on a matrix is large."""
_LONG = 4
"""Times as long as wide, or as wide as long, from which on a large matrix is decomposed whole."""
_PART = 0.8
"""Of all components, from which on they are not looked for by projection."""
_OVERSAMPLE = 16
_ROWS = 512
"""Of G, at a time."""
_COLUMNS = 256
"""Of a basis, at a time."""
_POWER = 4


@dataclass(frozen=True)
class Factors:
    """Nested factors: the first r columns of ``a`` [k, R] and rows of ``b`` [R, n] are the best of rank r.

    ``energy`` [R + 1]: the part of the outputs' energy that is lost at rank 0, 1, ..., R.
    """

    a: Array
    b: Array
    energy: Array

    @property
    def rank(self) -> int:
        """The largest rank that can be taken."""
        return len(self.b)

    def loss(self, rank: int) -> float:
        """The part of the outputs' energy that is lost at this rank."""
        return float(self.energy[min(rank, self.rank)])


def decompose(matrix: Array, gram: Array | None = None, rank: int | None = None) -> Factors:
    """Factors of ``matrix`` [k, n], whose inputs have second moments ``gram`` [k, k]; None: all directions alike.

    Args:
        matrix: The weight, so that the layer gives x @ matrix.
        gram: Positive semidefinite; singular is fine. [k]: its diagonal, the rest being zero.
        rank: The largest rank that is of interest; None: all.

    Returns:
        Factors in float32, or in the matrix's type if that is wider.
    """
    k, n = matrix.shape
    full = min(k, n)
    rank = full if rank is None else min(rank, full)
    kept = np.float64 if matrix.dtype == np.float64 else np.float32
    large = full >= LARGE
    used = np.float32 if large else np.float64
    m: Array = matrix.astype(used, copy=False)
    weighted = _weighted(gram, k)
    total = sum(float(np.vdot(m[rows], part).item()) for rows, part in weighted(m))
    if total <= 0 or not np.isfinite(total):
        return Factors(np.zeros((k, rank), kept), np.zeros((rank, n), kept), np.zeros(rank + 1))
    if large and max(k, n) < _LONG * full and rank + _OVERSAMPLE < _PART * full:
        a, b, found = _projected(m, weighted, rank)
    elif n <= k:
        found, v = _largest(_back(m, weighted(m)), rank)
        a, b = m @ v, v.T
    else:
        s = m if gram is None else _root(np.concatenate([part for _, part in weighted(np.eye(k))])).astype(used).T @ m
        found, u = _largest(s @ s.T, rank)
        a = u if gram is None else m @ (s.T @ u)
        b = u.T @ s
        if gram is not None:
            b /= np.maximum(found, np.finfo(used).tiny)[:, np.newaxis]
    lost = np.clip(1 - np.concatenate([[0.0], np.cumsum(found, dtype=np.float64)]) / total, 0, 1)
    return Factors(np.ascontiguousarray(a, kept), np.ascontiguousarray(b, kept), lost)


def _weighted(gram: Array | None, k: int) -> Callable[[Array], Iterator[tuple[slice, Array]]]:
    """Y -> G y, some rows at a time, with G of mean diagonal 1 and its ridge; None: the unit matrix."""
    scale = 0.0 if gram is None else float((gram if gram.ndim == 1 else np.diagonal(gram)).mean())

    def act(y: Array) -> Iterator[tuple[slice, Array]]:
        for start in range(0, k, _ROWS):
            rows = slice(start, start + _ROWS)
            if gram is None or scale <= 0:
                yield rows, y[rows]
                continue
            part = (gram[rows] / scale).astype(y.dtype)
            yield rows, (part[:, np.newaxis] * y[rows] if gram.ndim == 1 else part @ y) + y.dtype.type(RIDGE) * y[rows]

    return act


def _back(m: Array, parts: Iterator[tuple[slice, Array]]) -> Array:
    """M^T y, of y in rows."""
    rows, part = next(parts)
    found = np.asarray(m[rows].T @ part)
    for rows, part in parts:
        found += m[rows].T @ part
    return found


def _largest(symmetric: Array, count: int) -> tuple[Array, Array]:
    """The largest eigenvalues [count], falling, and their vectors [rows, count]."""
    values, vectors = np.linalg.eigh(symmetric)
    return np.maximum(values[::-1][:count], 0), vectors[:, ::-1][:, :count]


def _root(gram: Array) -> Array:
    """L [k, k] with L L^T = gram, by Cholesky, or by eigenvectors where rounding made gram indefinite."""
    try:
        return np.asarray(np.linalg.cholesky(gram))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(gram)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def _projected(m: Array, weighted: Callable[[Array], Iterator[tuple[slice, Array]]], rank: int) -> tuple[Array, Array, Array]:
    """A, B and the eigenvalues of the first components of M^T G M, from its action on few random vectors."""
    random = np.random.default_rng(0)
    q: Array = random.standard_normal((m.shape[1], rank + _OVERSAMPLE), dtype=np.float32)
    for _ in range(_POWER):
        q = _back(m, weighted(m @ q))  # the old one is let go of before the next is made
        _orthonormalize(q)
    found, inner = _largest(q.T @ _back(m, weighted(m @ q)), rank)
    q = q @ inner
    return m @ q, q.T, found


def _orthonormalize(q: Array) -> None:
    """Make the columns orthonormal in place: block by block, each twice against those before it."""
    for start in range(0, q.shape[1], _COLUMNS):
        before, block = q[:, :start], q[:, start : start + _COLUMNS]
        for _ in range(2):
            block -= before @ (before.T @ block)
            block[:] = np.linalg.qr(block)[0]
