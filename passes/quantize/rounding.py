"""AdaRound: weights are rounded up or down so that the layer's *output* changes least (Nagel et al. 2020, eq. 13).

With d = q - w / s the rounding error of one output channel and G = E[x x^T] the Gram matrix of the layer's input:

    E[(s d . x)^2] = s^2 d^T G d        minimized over q_k in {floor(w_k / s), ceil(w_k / s)}, within the integers' range

Rounding to nearest minimizes d^T d, which is the same only where the inputs are uncorrelated. This is a binary quadratic
problem a channel; all channels are solved at once and without gradients, in two steps:

    1  one coordinate after another, largest G_kk first, each error carried over to the coordinates that are still free
       (Frantar et al. 2022: the Cholesky factor of the inverse of G says how)
    2  coordinate descent from there and from nearest rounding: with g = G d, turning q_k over by e = +-1 changes the
       objective by 2 e g_k + G_kk; done where that is negative, until nothing is

The better one of both ends is kept per channel, so the error is never larger than that of nearest rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.contracts import Array

_DAMPING = 0.01
"""Of the mean of G's diagonal, added to it: the data are a sample, and what they say about rare directions is noise."""
_BLOCK = 64
"""Coordinates between two updates by matrix products."""
_SWEEPS = 4


@dataclass(frozen=True)
class Rounded:
    """Integers for one weight, and the mean squared error of the layer's output that they and nearest rounding cause."""

    integers: Array
    """int32, in the shape of the weight."""
    error: float
    nearest_error: float


def learn(weight: Array, scale: Array, zero_point: Array, limits: tuple[int, int], gram: Array) -> Rounded:
    """Round a weight.

    Args:
        weight: [out, ...], of K numbers a channel; channels of one group follow each other.
        scale: [out] or [1], positive.
        zero_point: [out] or [1].
        limits: The least and the largest integer.
        gram: [groups, K, K], symmetric, of the inputs of a group's channels in the order of the weight's.
    """
    groups, size = gram.shape[:2]
    out = weight.shape[0]
    assert weight.size == out * size
    exact = weight.reshape(out, size).astype(np.float64) / scale.reshape(-1, 1) + zero_point.reshape(-1, 1)
    exact = exact.reshape(groups, out // groups, size).astype(np.float32)
    choices = np.clip(np.floor(exact), *limits), np.clip(np.ceil(exact), *limits)
    power = np.maximum(np.einsum("gkk->g", gram) / size, np.finfo(np.float64).tiny)
    damped = (gram / power[:, None, None]).astype(np.float32)  # half the memory, and G is damped
    damped[:, range(size), range(size)] += _DAMPING
    nearest = np.clip(np.rint(exact), *limits)
    first = _descend(nearest, exact, choices, damped)
    second = _descend(_carried(exact, choices, damped), exact, choices, damped)
    better = _errors(second - exact, damped) < _errors(first - exact, damped)
    best = np.where(better[..., None], second, first)

    def error(integers: Array) -> float:
        per_channel = _errors(integers - exact, gram).reshape(out)
        mean: float = np.mean(per_channel * np.broadcast_to(scale.reshape(-1), out) ** 2).item()
        return mean

    return Rounded(best.reshape(weight.shape).astype(np.int32), error(best), error(nearest))


def _errors(difference: Array, gram: Array) -> Array:
    """d^T G d: [groups, out, K], [groups, K, K] -> [groups, out]."""
    errors: Array = np.sum((difference @ gram) * difference, axis=-1)
    return errors


def _carried(exact: Array, choices: tuple[Array, Array], gram: Array) -> Array:
    """Step 1: each coordinate's error is carried over to those after it, in order of G's diagonal. All [groups, out, K]."""
    order = np.argsort(-np.einsum("gkk->gk", gram), axis=1, kind="stable")
    matrix = np.take_along_axis(np.take_along_axis(gram, order[:, :, None], 1), order[:, None, :], 2)
    lower = np.linalg.cholesky(matrix[:, ::-1, ::-1].astype(np.float64))
    factor = np.linalg.inv(lower)[:, ::-1, ::-1].astype(np.float32)  # upper triangular: inverse of G = factor^T factor
    del matrix, lower
    sought = np.take_along_axis(exact, order[:, None, :], 2)
    low, high = (np.take_along_axis(choice, order[:, None, :], 2) for choice in choices)
    taken = np.empty_like(sought)
    size = sought.shape[2]
    for start in range(0, size, _BLOCK):
        block = slice(start, min(start + _BLOCK, size))
        carried = np.empty_like(sought[:, :, block])
        for k in range(block.start, block.stop):
            taken[:, :, k] = np.clip(np.rint(sought[:, :, k]), low[:, :, k], high[:, :, k])
            error = (sought[:, :, k] - taken[:, :, k]) / factor[:, None, k, k]
            carried[:, :, k - start] = error
            sought[:, :, k + 1 : block.stop] -= error[:, :, None] * factor[:, None, k, k + 1 : block.stop]
        sought[:, :, block.stop :] -= carried @ factor[:, block, block.stop :]
    back = np.empty_like(taken)
    np.put_along_axis(back, np.broadcast_to(order[:, None, :], taken.shape), taken, 2)
    return back


def _descend(integers: Array, exact: Array, choices: tuple[Array, Array], gram: Array) -> Array:
    """Step 2: turn single coordinates over while that makes the error smaller. All [groups, out, K]."""
    low, high = choices
    taken = integers.copy()
    diagonal = np.einsum("gkk->gk", gram)
    slope = (taken - exact) @ gram
    size = exact.shape[2]
    for _ in range(_SWEEPS):
        turned = 0
        for start in range(0, size, _BLOCK):
            block = slice(start, min(start + _BLOCK, size))
            inside, before = slope[:, :, block].copy(), taken[:, :, block].copy()
            square = gram[:, block, block]
            for k in range(block.start, block.stop):
                step = low[:, :, k] + high[:, :, k] - 2 * taken[:, :, k]  # +1, -1, or 0 where the weight is on the grid
                gain = 2 * step * inside[:, :, k - start] + np.abs(step) * diagonal[:, None, k]
                step = np.where(gain < 0, step, 0.0)
                if step.any():
                    turned += int(np.count_nonzero(step))
                    taken[:, :, k] += step
                    inside += step[:, :, None] * square[:, None, k - start]
            slope += (taken[:, :, block] - before) @ gram[:, block, :]
        if not turned:
            break
    return taken
