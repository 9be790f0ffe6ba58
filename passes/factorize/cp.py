"""CP factors of a convolution, on data: four small matrices whose outer products add up to the weight.

    W[i, h, w, o] = sum over r of A[i, r] B[h, r] C[w, r] D[r, o],      minimize trace((M - W)^T G (M - W)), G = X^T X

There is no closed form. The weight itself is approximated first, by alternating least squares (Harshman 1970); then the outputs
on data: D by least squares, and A, B and C one after the other by conjugate gradients, the error being quadratic in each
(Lebedev et al. 2015 fit the weight alone). These in float32: they take most of the time.
A smaller rank starts anew: what is left of a larger one's factors is a worse start than the weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.contracts import Array

_ALTERNATIONS = 40
_SWEEPS = 8
_GRADIENTS = 8
_NEGLIGIBLE = 1e-9
_RIDGE = 1e-7
"""Of normal equations in float32, as a part of their mean diagonal."""


def fit(m: Array, gram: Array, shape: tuple[int, int, int], rank: int) -> tuple[Array, Array, Array, Array]:
    """Factors A [i, r], B [kh, r], C [kw, r] and D [r, o] of ``m`` [i kh kw, o] for inputs with these moments; float32.

    Args:
        m: The weight, so that the layer gives x @ m.
        gram: Positive definite, of mean diagonal 1.
        shape: (i, kh, kw).
        rank: Of all four.
    """
    *inner, last = (factor.astype(np.float32) for factor in _alternated(m.reshape(*shape, -1), rank))
    gram = gram.astype(np.float32)
    right = gram @ m.astype(np.float32)
    for _ in range(_SWEEPS):
        last = _last(inner, gram, right)
        square, wanted = last @ last.T, right @ last.T
        for axis in range(3):
            inner[axis] = _descended(inner, axis, gram, square, wanted)
    a, b, c = inner
    return a, b, c, _last(inner, gram, right)


def product(parts: Sequence[Array]) -> Array:
    """The factors multiplied [i kh kw, o]."""
    return np.asarray(_khatri_rao(parts[:3]) @ parts[3])


def _last(inner: Sequence[Array], gram: Array, right: Array) -> Array:
    p = _khatri_rao(inner)
    return _solved(p.T @ gram @ p, p.T @ right).astype(np.float32)


def _descended(inner: Sequence[Array], axis: int, gram: Array, square: Array, wanted: Array) -> Array:
    """One factor after some conjugate gradients of the squared error."""

    def back(p: Array) -> Array:
        others = [factor for place, factor in enumerate(inner) if place != axis]
        shaped = np.moveaxis(p.reshape(*(len(factor) for factor in inner), -1), axis, 0)
        return np.asarray(np.einsum("abcr,br,cr->ar", shaped, *others, optimize=True))

    def act(factor: Array) -> Array:
        return back(gram @ _khatri_rao([factor if place == axis else one for place, one in enumerate(inner)]) @ square)

    x = inner[axis]
    residual = back(wanted) - act(x)
    direction, now = residual, float(np.vdot(residual, residual))
    for _ in range(_GRADIENTS):
        moved = act(direction)
        curvature = float(np.vdot(direction, moved))
        if curvature <= 0 or now <= 0:
            break
        step = now / curvature
        x, residual = x + step * direction, residual - step * moved
        before, now = now, float(np.vdot(residual, residual))
        direction = residual + now / before * direction
    return x


def _khatri_rao(factors: Sequence[Array]) -> Array:
    """[i, r], [h, r], [w, r] -> [i h w, r]."""
    return np.asarray(np.einsum("ir,hr,wr->ihwr", *factors).reshape(-1, factors[0].shape[1]))


def _alternated(array: Array, rank: int) -> list[Array]:
    """Factors of [i, kh, kw, o] that lose little of the weights, as [size, r] each."""
    random = np.random.default_rng(0)
    factors = [random.standard_normal((size, rank)) for size in array.shape]
    unfolded = [np.moveaxis(array, axis, 0).reshape(size, -1).T for axis, size in enumerate(array.shape)]
    for _ in range(_ALTERNATIONS):
        for axis in range(4):
            others = [factor for place, factor in enumerate(factors) if place != axis]
            gram = np.prod([factor.T @ factor for factor in others], axis=0)
            factors[axis] = _solved(gram, _khatri_rao(others).T @ unfolded[axis]).T
            if axis < 3:
                factors[axis] /= np.maximum(np.linalg.norm(factors[axis], axis=0), _NEGLIGIBLE)
    return factors


def _solved(gram: Array, right: Array) -> Array:
    """``gram`` [r, r] is positive, but may be singular. In float64."""
    gram = gram.astype(np.float64)
    ridge = _RIDGE * np.trace(gram) / len(gram) + np.finfo(float).tiny
    return np.asarray(np.linalg.solve(gram + ridge * np.eye(len(gram)), right))
