"""What can be observed of a value while data stream by, in memory that does not grow with the samples.

    MinMax          low = min x, high = max x                                        -> Range
    MovingAverage   low <- m low + (1 - m) min x, likewise high, sample by sample    -> Range
    Histogram       how often x falls into each of a few thousand equal bins         -> Counts
    Keep            the first samples themselves                                     -> Kept

An observer is a description that can be compared and hashed; ``start`` makes the collector that does the work. What a
collector finds does not depend on how the samples are cut into batches.

**Histogram.** Bins are [k w, (k + 1) w) for integers k, so zero is always an edge. The width w starts at the first range seen
divided by twice ``bins``; a value outside doubles it until all bins fit again, and neighbours are added up: one sweep, exact.
Between ``bins`` and twice ``bins`` bins cover the range in the end.

Of a sample with more than 2^14 elements every s-th is counted, from a start drawn for each sample, and counts as s. Each is
then counted with the same probability 1/s, so the expected count of every bin is the true one, whatever the layout; s is
coprime to the tensor's dimensions, so that the steps go through all channels, rows and columns evenly. N samples give 2^14 N
elements: a share p of them is known to sqrt(p / (2^14 N)), a hundredth with 16 samples to 2 % of itself. That is enough where
the values are many, not in the tails, where the few largest decide what clipping costs: the outermost hundredth of each
sample's values at either end, as its own sample places it, is counted one by one. Extremes are taken over all elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np

from graphopt.contracts import Array
from graphopt.dataset import Batch

Result: TypeAlias = Any
"""One of the frozen dataclasses of numbers and arrays below."""

_TAIL = 0.01
"""The share of a sample's values at each end that a histogram counts one by one, up to a bin's width."""
COUNTED = 1 << 14
"""Elements of a tensor and sample that a histogram counts at most; about so many of a larger one."""


@dataclass(frozen=True)
class Seen:
    """A value in one run of the model: ``values`` is the array as it comes, of float32 or float64, never empty."""

    values: Array
    samples: int

    @classmethod
    def of(cls, array: Array, batch: Batch) -> Seen:
        """The value that a model gave for a batch, whatever its float type is."""
        return cls(np.ascontiguousarray(array, np.float64 if array.dtype == np.float64 else np.float32), batch.samples)

    @cached_property
    def rows(self) -> Array:
        """[samples, elements]: the values of each sample; one row where the first axis does not count samples."""
        split = self.values.ndim > 0 and len(self.values) % self.samples == 0
        return self.values.reshape(self.samples if split else 1, -1)

    @cached_property
    def lows(self) -> Array:
        """[samples]: each one's smallest value."""
        return np.asarray(self.rows.min(axis=1))

    @cached_property
    def highs(self) -> Array:
        """[samples]: each one's largest value."""
        return np.asarray(self.rows.max(axis=1))


class Collector(Protocol):
    """Takes what is seen, run by run."""

    def update(self, seen: Seen) -> None:
        """Take the value of one run."""
        ...

    def result(self) -> Result:
        """What all runs showed; called once, after one run at least."""
        ...


class Observer(Protocol):
    """A description of what to find out; equal ones are collected once."""

    gives: ClassVar[type[Result]]
    """The class of the result."""

    def start(self) -> Collector:
        """A collector that has seen nothing yet."""
        ...


# --------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Range:
    """The values lie, or are taken to lie, in [low, high]."""

    low: float
    high: float


@dataclass(frozen=True)
class Counts:
    """A histogram: ``counts[i]`` (float64) values lie in [(first + i) width, (first + i + 1) width)."""

    low: float
    """The smallest value of all, exactly."""
    high: float
    """The largest value of all, exactly."""
    width: float
    first: int
    counts: Array
    zeros: float
    """How many of the values are zero itself, which integers represent exactly; they are in ``counts`` too."""

    @property
    def edges(self) -> Array:
        """[bins + 1], float64; zero is one of them."""
        return (self.first + np.arange(len(self.counts) + 1)) * self.width

    @property
    def centres(self) -> Array:
        """[bins], float64."""
        return (self.first + 0.5 + np.arange(len(self.counts))) * self.width


@dataclass(frozen=True)
class Kept:
    """The value in the first runs, one array a run, as the model gave it."""

    arrays: tuple[Array, ...]

    def joined(self) -> Array:
        """All runs along the first axis."""
        return np.concatenate(self.arrays)


# ------------------------------------------------------------------------------------------------------------- observers


@dataclass(frozen=True)
class MinMax:
    """The exact range."""

    gives: ClassVar[type[Result]] = Range

    def start(self) -> Collector:
        """A collector that has seen nothing yet."""
        return _MinMax()


@dataclass(frozen=True)
class MovingAverage:
    """The exponential moving average of each sample's range; a rare outlier moves it by 1 - ``momentum`` of itself."""

    momentum: float = 0.9
    gives: ClassVar[type[Result]] = Range

    def start(self) -> Collector:
        """A collector that has seen nothing yet."""
        return _MovingAverage(self.momentum)


@dataclass(frozen=True)
class Histogram:
    """How the values are distributed, in ``bins`` bins at least."""

    bins: int = 2048
    gives: ClassVar[type[Result]] = Counts

    def start(self) -> Collector:
        """A collector that has seen nothing yet."""
        return _Histogram(self.bins)


@dataclass(frozen=True)
class Keep:
    """The first ``samples`` samples, or fewer: only as many runs as fit into ``limit_bytes``, the first one in any case."""

    samples: int
    limit_bytes: int = 64 << 20
    gives: ClassVar[type[Result]] = Kept

    def start(self) -> Collector:
        """A collector that has seen nothing yet."""
        return _Keep(self.samples, self.limit_bytes)


# ------------------------------------------------------------------------------------------------------------ collectors


class _MinMax:
    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def update(self, seen: Seen) -> None:
        self.low = min(self.low, float(seen.lows.min()))
        self.high = max(self.high, float(seen.highs.max()))

    def result(self) -> Range:
        return Range(self.low, self.high)


class _MovingAverage:
    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.range: Array | None = None  # [2]

    def update(self, seen: Seen) -> None:
        for pair in np.stack([seen.lows, seen.highs], axis=1).astype(np.float64):
            self.range = pair if self.range is None else self.momentum * self.range + (1 - self.momentum) * pair

    def result(self) -> Range:
        assert self.range is not None
        return Range(*map(float, self.range))


class _Histogram:
    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.low, self.high = np.inf, -np.inf
        self.random = np.random.default_rng(0)
        self.width = 0.0  # no value but zero so far
        self.first = 0
        self.counts = np.zeros(1)
        self.zeros = 0.0

    def update(self, seen: Seen) -> None:
        every = step(seen.rows.shape[1], COUNTED)
        if every == 1:
            for low, high in zip(seen.lows, seen.highs, strict=True):
                self._cover(float(low), float(high))
            self._add(seen.rows.reshape(-1))
            return
        for row, low, high in zip(seen.rows, seen.lows, seen.highs, strict=True):
            self._cover(float(low), float(high))
            self._add_part(row, int(self.random.integers(every)), every)

    def result(self) -> Counts:
        return Counts(self.low, self.high, self.width or 1.0, self.first, self.counts, self.zeros)

    def _cover(self, low: float, high: float) -> None:
        """Widen the bins until they cover [low, high]; the width begins with the first sample that is not all zero."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        low, high = min(0.0, self.low), max(0.0, self.high)
        if low == high:
            return
        self.width = self.width or max((high - low) / (2 * self.bins - 1), float(np.finfo(np.float32).tiny))
        while True:
            first, last = math.floor(low / self.width), math.floor(high / self.width)
            if last - first < 2 * self.bins:
                break
            self.first, self.counts = _halved(self.first, self.counts)
            self.width *= 2
        if first < self.first or last - first >= len(self.counts):
            counts = np.zeros(last - first + 1)
            counts[self.first - first : self.first - first + len(self.counts)] = self.counts
            self.first, self.counts = first, counts

    def _add(self, values: Array) -> None:
        self.counts += self._bins(values)
        self.zeros += float(values.size - np.count_nonzero(values))

    def _add_part(self, row: Array, start: int, every: int) -> None:
        """Count every so manieth of a sample's values, and all of those in its tails."""
        part = row[start::every]
        found = self._bins(part) * every
        self.zeros += every * float(part.size - np.count_nonzero(part))
        below = np.cumsum(found)
        left, right = np.searchsorted(below, [_TAIL * below[-1], (1 - _TAIL) * below[-1]])
        right += 1  # the bins from ``left`` to before ``right`` hold the bulk
        for bins, tail in (
            (slice(0, left), row < (self.first + left) * self.width if left else None),
            (slice(right, None), row >= (self.first + right) * self.width if right < len(found) else None),
        ):
            if tail is not None:
                found[bins] = self._bins(row[tail])[bins]
        self.counts += found

    def _bins(self, values: Array) -> Array:
        """How many of the values fall into each bin."""
        if not self.width:
            return np.array([values.size], np.float64)
        scaled = values * values.dtype.type(1 / self.width)
        scaled -= self.first  # at least 0, up to rounding: the cast, which cuts towards zero, is then the floor
        inside = np.clip(scaled.astype(np.intp), 0, len(self.counts) - 1)
        return np.bincount(inside, minlength=len(self.counts)).astype(np.float64)


def step(elements: int, limit: int) -> int:
    """Of so many elements every how manieth to take for about ``limit``, or fewer; coprime to all of their dimensions."""
    found = -(-elements // limit)
    while math.gcd(found, elements) > 1 and found < elements:
        found += 1
    return found


def _halved(first: int, counts: Array) -> tuple[int, Array]:
    """The same histogram in bins of twice the width."""
    start, stop = first // 2, (first + len(counts) + 1) // 2
    padded = np.zeros(2 * (stop - start))
    padded[first - 2 * start :][: len(counts)] = counts
    return start, padded.reshape(-1, 2).sum(axis=1)


class _Keep:
    def __init__(self, samples: int, limit_bytes: int) -> None:
        self.wanted = samples
        self.room = limit_bytes
        self.arrays: list[Array] = []

    def update(self, seen: Seen) -> None:
        if self.wanted <= 0:
            return
        values = seen.values
        if values.ndim and len(values) == seen.samples:
            fit = max(self.room // max(1, values.nbytes // seen.samples), 0 if self.arrays else 1)
            values = values[: min(self.wanted, fit)]
        elif self.arrays and values.nbytes > self.room:
            values = values[:0]
        self.wanted = self.wanted - seen.samples if values.size == seen.values.size else 0
        self.room -= values.nbytes
        if values.size:
            self.arrays.append(values.copy())

    def result(self) -> Kept:
        return Kept(tuple(self.arrays))
