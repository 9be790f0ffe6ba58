"""The best product of two thin matrices in place of a weight, on data.

    minimize over A [k, r], B [r, n]:   |X M - X A B|^2 = trace((M - A B)^T G (M - A B)),      G = X^T X, X the layer's inputs

The best outputs of rank r are X M V V^T, with V the first r eigenvectors of M^T G M (Eckart and Young 1936; the principal
components of the outputs). So A = M V, B = V^T: exact for any G, singular ones too, and nothing is inverted; what is left out
are the other eigenvalues. Where n > k the smaller problem is S S^T = U D U^T with S = L^T M, G = L L^T, and

    V = S^T U D^-1/2,      A = M V D^1/2 = M S^T U,   B = D^-1 U^T S

G = 1 is the plain singular value decomposition. This is what is elsewhere called whitening (Wang et al., SVD-LLM, 2024;
Liebenwein et al., ALDS, 2021). A ridge on G, relative to its diagonal, keeps M where the data say nothing.

Where at most half of many components are wanted they are found by a random projection and power iterations (Halko, Martinsson
and Tropp 2011, algorithm 4.4), in half the memory. Large matrices are decomposed in float32: squares of singular values below
1e-7 of the largest are then noise, far below what truncation leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.contracts import Array

RIDGE = 1e-3
"""Added to the diagonal of G, as a part of its mean."""
_LARGE = 1536
"""Rows from which on a symmetric matrix is decomposed in float32."""
_SMALL_PART = 2
"""Components of large matrices are found by random projection if they are fewer than this part of all."""
_OVERSAMPLE = 16
_POWER = 2


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
        gram: Positive semidefinite; singular is fine.
        rank: The largest rank that is of interest; None: all.

    Returns:
        Factors in float32, or in the matrix's type if that is wider.
    """
    k, n = matrix.shape
    full = min(k, n)
    rank = full if rank is None else min(rank, full)
    kept = np.float64 if matrix.dtype == np.float64 else np.float32
    used = np.float32 if full >= _LARGE else np.float64
    m: Array = matrix.astype(used, copy=False)
    if gram is not None:
        scale = float(np.trace(gram)) / k
        gram = gram.astype(used)  # a copy, of the size of the weight or less: changed in place
        gram *= used(1 / scale if scale > 0 else 0)
        gram[np.diag_indices(k)] += RIDGE if scale > 0 else 1.0
    total = float(np.vdot(m, m if gram is None else gram @ m).item())
    if total <= 0 or not np.isfinite(total):
        return Factors(np.zeros((k, rank), kept), np.zeros((rank, n), kept), np.zeros(rank + 1))
    if rank * _SMALL_PART < full and full >= _LARGE:
        a, b, found = _projected(m, gram, rank)
    elif n <= k:
        found, v = _largest(m.T @ (m if gram is None else gram @ m), rank)
        a, b = m @ v, v.T
    else:
        s = m if gram is None else _root(gram).T @ m
        found, u = _largest(s @ s.T, rank)
        a = (u if gram is None else m @ (s.T @ u)).astype(used)
        b = u.T @ s
        if gram is not None:
            b /= np.maximum(found, np.finfo(used).tiny)[:, np.newaxis]
    lost = np.clip(1 - np.concatenate([[0.0], np.cumsum(found, dtype=np.float64)]) / total, 0, 1)
    return Factors(np.ascontiguousarray(a, kept), np.ascontiguousarray(b, kept), lost)


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


def _projected(m: Array, gram: Array | None, rank: int) -> tuple[Array, Array, Array]:
    """A, B and the eigenvalues of the first components of M^T G M, from its action on few random vectors."""

    def act(v: Array) -> Array:
        y = m @ v
        return np.asarray(m.T @ (y if gram is None else gram @ y))

    random = np.random.default_rng(0)
    q: Array = random.standard_normal((m.shape[1], rank + _OVERSAMPLE), dtype=np.float32)
    for _ in range(_POWER):
        q = act(q)  # the old one is let go of before the next is made
        q = np.linalg.qr(q)[0]
    found, inner = _largest(q.T @ act(q), rank)
    q = q @ inner
    return m @ q, q.T, found
