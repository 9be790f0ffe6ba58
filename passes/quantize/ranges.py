"""Which range of a value the integers shall cover, chosen from what was observed of it.

A range [a, b] that contains zero is cut into steps s = (b - a) / (levels - 1), or s = 2 b / (levels - 2) when it must be
symmetric. What lies inside is rounded (mean squared error s^2 / 12), what lies outside is clipped to a or b.

    minmax           a = min x, b = max x: nothing is clipped
    moving-average   the moving average of each sample's minimum and maximum
    percentile       99.99 % of the values lie in [a, b], half of the others at each end
    mse              minimizes  s^2 / 12 P(0 != x in [a, b]) + E (x - b)^2 [x > b] + E (x - a)^2 [x < a]; where only a LeakyRelu
                     reads x, what is wrong below zero counts alpha^2, since that much of it is left
    entropy          minimizes the Kullback-Leibler divergence KL(P || Q) of the values' distribution from its quantized form
                     (S. Migacz, 8-bit Inference with TensorRT, GTC 2017)

**mse** looks at ``_GRID`` values of each end together. With the cumulated sums of n, n x and n x^2 over the histogram the
error of a pair costs a few additions, since sum n (x - b)^2 = sum n x^2 - 2 b sum n x + b^2 sum n.

**entropy**, for one end of the range (the other one stays): for each bin that can be the last one inside, P is the histogram up
to there with all that is clipped added to that bin, and Q the histogram up to there *without* it, in ``levels`` groups of
neighbouring bins, each group's count spread evenly over its bins that are not empty. Clipping makes P unlike Q at the end;
rounding makes Q flatter than P. Zeros are left out of both: they are exact, and the spike behind a Relu would hide the rest.
A symmetric range is searched over the histogram of |x| with half of the levels. No range of fewer bins than levels is looked
at, save the widest: the histogram does not resolve what is rounded there. With 16 bits nothing is clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias

import numpy as np

from graphopt.contracts import Array
from graphopt.observe import Counts, Histogram, MinMax, MovingAverage, Observer, Range

Method: TypeAlias = Literal["minmax", "moving-average", "percentile", "mse", "entropy"]
Ends: TypeAlias = tuple[float, float]

OBSERVERS: Mapping[Method, Observer] = {
    "minmax": MinMax(),
    "moving-average": MovingAverage(),
    "percentile": Histogram(),
    "mse": Histogram(),
    "entropy": Histogram(),
}
"""What each method must be told of a value."""
PERCENTILE = 99.99
_GRID = 256
"""How many values of each end ``mse`` looks at."""
_LOOKS = 16
"""How many ends ``entropy`` looks at before it looks closer around the best."""


def choose(found: Range | Counts, method: Method, *, levels: int = 256, symmetric: bool = False, slope: float = 1.0) -> Ends:
    """The range [low, high], with low <= 0 <= high, within what was observed.

    Args:
        found: What the observer ``OBSERVERS[method]`` found; a histogram serves all methods but ``moving-average``.
        method: How to choose.
        levels: How many integers there are: 256 for 8 bits.
        symmetric: Whether the integers will cover [-m, m], m = max(-low, high); low and high are still what is needed.
        slope: By what values below zero are multiplied by all that read them.
    """
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    if method in {"minmax", "moving-average"} or low == high:
        return low, high
    assert isinstance(found, Counts), f"{method} needs a histogram"
    a, b = _METHODS[method](found, levels, symmetric, slope)
    return max(a, low), min(b, high)


# ------------------------------------------------------------------------------------------------------------ percentile


def _percentile(found: Counts, _levels: int, _symmetric: bool, _slope: float) -> Ends:
    below = np.concatenate([[0.0], np.cumsum(found.counts)]) / found.counts.sum()
    tail = (100 - PERCENTILE) / 200
    a, b = np.interp([tail, 1 - tail], below, found.edges)
    return min(float(a), 0.0), max(float(b), 0.0)


# ------------------------------------------------------------------------------------------------------------------- mse


def _mse(found: Counts, levels: int, symmetric: bool, slope: float) -> Ends:
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    shrink = np.arange(1, _GRID + 1) / _GRID
    a, b = (low * shrink if low else np.zeros(1))[:, np.newaxis], high * shrink if high else np.zeros(1)
    steps = (b - a) / (levels - 1)
    if symmetric:
        b = max(-low, high) * shrink
        a, steps = -b, 2 * b / (levels - 2)
    inside, clipped = _clipping(found, a, b)
    below, above = (inside[end] * steps**2 / 12 + clipped[end] for end in (0, 1))
    errors = slope**2 * below + above
    best = np.unravel_index(np.argmin(errors), errors.shape)
    return float(np.broadcast_to(a, errors.shape)[best]), float(np.broadcast_to(b, errors.shape)[best])


def _clipping(found: Counts, a: Array, b: Array) -> tuple[list[Array], list[Array]]:
    """How many values lie in [a, 0) and in (0, b], and the sums of squares of what clipping does to those beyond a and b.

    ``a`` and ``b`` are of one shape, or broadcast to it: [A, 1] and [B] ask for all pairs.
    """
    counts, x = found.counts, found.centres
    sums = [np.concatenate([[0.0], np.cumsum(counts * x**power)]) for power in range(3)]
    below, above = np.searchsorted(x, a), np.searchsorted(x, b)  # bins before ``below`` and from ``above`` on are clipped
    n, n_x, n_xx = ((s[below], s[-1] - s[above]) for s in sums)
    squares = [n_xx[i] - 2 * end * n_x[i] + end**2 * n[i] for i, end in enumerate((a, b))]
    negative = sums[0][np.searchsorted(x, 0.0)]
    inside = [negative - n[0], sums[0][-1] - negative - found.zeros - n[1]]
    return [np.maximum(count, 0.0) for count in inside], [np.maximum(square, 0.0) for square in squares]


# --------------------------------------------------------------------------------------------------------------- entropy


def _entropy(found: Counts, levels: int, symmetric: bool, _slope: float) -> Ends:
    counts = found.counts.copy()
    zero = -found.first
    if 0 <= zero < len(counts):
        counts[zero] = max(0.0, counts[zero] - found.zeros)
    negative, positive = counts[:zero][::-1], counts[zero:]
    if symmetric:
        folded = np.zeros(max(len(negative), len(positive)))
        folded[: len(negative)] += negative
        folded[: len(positive)] += positive
        peak = _last_bin(folded, levels // 2) * found.width
        return -peak, peak
    first, last = -len(negative), len(positive)
    if positive.any():
        last = first + _last_bin(counts, levels, at_least=len(negative))
    if negative.any():
        first = last - _last_bin(counts[: last - first][::-1], levels, at_least=last)
    return first * found.width, last * found.width


def _last_bin(counts: Array, levels: int, at_least: int = 0) -> int:
    """How many of the bins to keep so that their quantized form is nearest to the whole; all of them, or more than some."""
    ends: list[int] = (np.flatnonzero(counts) + 1).tolist()
    resolved = max(0, int(np.searchsorted(ends, levels)) - 1)  # the last with no more bins than levels: nothing is rounded
    ends = ends[max(resolved, int(np.searchsorted(ends, at_least, side="right"))) :]
    if not ends:
        return len(counts)
    best = len(ends) - 1
    stride = max(1, len(ends) // _LOOKS)
    looks: Iterable[int] = range(0, len(ends), stride)
    while True:
        best = min([best, *looks], key=lambda index: _divergence(counts, ends[index], levels))
        if stride == 1:
            return len(counts) if best == len(ends) - 1 else ends[best]
        near, stride = stride, max(1, 2 * stride // _LOOKS)
        looks = range(max(0, best - near), min(len(ends), best + near), stride)


def _divergence(counts: Array, end: int, levels: int) -> float:
    """KL(P || Q) when the bins from ``end`` on are clipped."""
    kept, clipped = counts[:end], counts[end:].sum()
    filled = kept > 0
    p = kept[filled]
    q = p.copy()
    if end > levels:
        groups = -(-np.arange(levels) * end // levels)  # first bin of each: ceil(k end / levels)
        members = np.add.reduceat(filled, groups, dtype=np.float64)
        means = np.add.reduceat(kept, groups) / np.maximum(members, 1)
        q = np.repeat(means, np.diff(groups, append=end))[filled]
    p[-1] += clipped
    return float(np.sum(p * np.log(p / q)) / p.sum() - np.log(p.sum() / q.sum()))


_METHODS: Mapping[Method, Callable[[Counts, int, bool, float], Ends]] = {
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
