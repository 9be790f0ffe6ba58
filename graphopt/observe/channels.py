"""What can be observed of each channel of a value, the indices of one axis, while data stream by.

    ChannelRange    min x and max x for each index of an axis                        -> ChannelRanges
    ChannelMean     E x and E x^2 for each index of an axis                          -> ChannelMoments
    ChannelZeros    how often x = 0 for each index of an axis                        -> ChannelShares

Observers and collectors are as in ``collectors.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.contracts import Array

from .collectors import Collector, Result, Seen

_SQUARABLE = 1e15
"""Sums of squares of larger float32 numbers, such as the -3e38 of attention masks, are infinite."""


@dataclass(frozen=True)
class ChannelRanges:
    """Smallest and largest value of each channel: ``low`` and ``high`` are [C]."""

    low: Array
    high: Array


@dataclass(frozen=True)
class ChannelMoments:
    """Mean and mean square of each channel, [C], float64, over ``count`` values each."""

    mean: Array
    square: Array
    count: int


@dataclass(frozen=True)
class ChannelShares:
    """The part of each channel's values that something is true of, [C], float64."""

    share: Array


@dataclass(frozen=True)
class ChannelRange:
    """The exact range of each index of ``axis``."""

    axis: int = 1
    gives: ClassVar[type[Result]] = ChannelRanges

    def start(self) -> Collector:
        """A collector that has seen nothing yet."""
        return _ChannelRange(self.axis)


@dataclass(frozen=True)
class ChannelMean:
    """Mean and mean square of each index of ``axis``."""

    axis: int = 1
    gives: ClassVar[type[Result]] = ChannelMoments

    def start(self) -> Collector:
        """A collector that has seen nothing yet."""
        return _ChannelMean(self.axis)


@dataclass(frozen=True)
class ChannelZeros:
    """The part of the values of each index of ``axis`` that is zero itself."""

    axis: int = 1
    gives: ClassVar[type[Result]] = ChannelShares

    def start(self) -> Collector:
        """A collector that has seen nothing yet."""
        return _ChannelZeros(self.axis)


class _ChannelRange:
    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.low: Array | float = np.inf
        self.high: Array | float = -np.inf

    def update(self, seen: Seen) -> None:
        values = _by_channel(seen.values, self.axis)
        self.low = np.minimum(self.low, values.min(axis=2).min(axis=0))
        self.high = np.maximum(self.high, values.max(axis=2).max(axis=0))

    def result(self) -> ChannelRanges:
        return ChannelRanges(np.asarray(self.low), np.asarray(self.high))


class _ChannelMean:
    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.sums: Array | float = 0.0
        self.squares: Array | float = 0.0
        self.count = 0

    def update(self, seen: Seen) -> None:
        values = _by_channel(seen.values, self.axis)
        if max(-seen.lows.min(), seen.highs.max()) > _SQUARABLE:
            values = values.astype(np.float64)
        self.sums = self.sums + values.sum(axis=2).sum(axis=0, dtype=np.float64)
        self.squares = self.squares + np.vecdot(values, values).sum(axis=0, dtype=np.float64)
        self.count += values.shape[0] * values.shape[2]

    def result(self) -> ChannelMoments:
        return ChannelMoments(np.asarray(self.sums) / self.count, np.asarray(self.squares) / self.count, self.count)


class _ChannelZeros:
    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.zeros: Array | float = 0.0
        self.count = 0

    def update(self, seen: Seen) -> None:
        values = _by_channel(seen.values, self.axis)
        self.zeros = self.zeros + (values == 0).sum(axis=(0, 2), dtype=np.float64)
        self.count += values.shape[0] * values.shape[2]

    def result(self) -> ChannelShares:
        return ChannelShares(np.asarray(self.zeros) / self.count)


def _by_channel(values: Array, axis: int) -> Array:
    """[before, C, after]: the channels between what lies before and after them."""
    axis %= values.ndim
    return values.reshape(int(np.prod(values.shape[:axis])), values.shape[axis], -1)
