"""Second moments of what a layer reads: G = X^T X, which tells the error of any change of its weights without the data.

The rows x of X are what one output position of the layer is computed from, so that the layer is y = W x + b:

    MatMul, Gemm      a row along the last axis; k elements
    Conv              a patch (im2col) of group g: [C / group, *kernel] in the order of the weight's axes; k elements

For weights W' in W's place the output's squared error over the data is trace((W - W') G (W - W')^T). The best weights W' for
another input X' (of a model that is compressed so far) solve W' G' = W C, with G' = X'^T X' and C = X^T X' (``CrossGram`` over
both models, ``collect_pair``).

Sums are float64. With ``rows`` only so many of a sample's positions are taken: every s-th from a random start, the same one for
all samples of a run, each counting as s, so that the expected G is the whole one. Patches are made some megabytes at a time. A
result takes 8 group k^2 bytes (170 MB for 512 channels and a 3x3 kernel), so ask for the layers of a large model one after
another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array

from .collectors import Collector, Result, Seen, step

_CHUNK = 1 << 22  # elements of patches that are made at a time


@dataclass(frozen=True)
class Patches:
    """How a Conv reads its input; tuples have one element for each spatial axis, ``pads`` first all begins, then all ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1
    auto_pad: str = "NOTSET"


def patches(node: ir.Node) -> Patches:
    """The patches of a Conv whose weight has a known shape."""
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    kernel = weight.shape.numpy()[2:]  # raises where a dimension is symbolic
    ones = (1,) * len(kernel)
    given = node.attributes
    return Patches(
        kernel=kernel,
        strides=tuple(given.get_ints("strides", ones)),
        pads=tuple(given.get_ints("pads", (0,) * 2 * len(kernel))),
        dilations=tuple(given.get_ints("dilations", ones)),
        group=given.get_int("group", 1),
        auto_pad=given.get_string("auto_pad", "NOTSET"),
    )


_Item = TypeVar("_Item")


def packs(items: Iterable[_Item], size: Callable[[_Item], int], most: int) -> Iterator[list[_Item]]:
    """Items in their order, so many together as their moments, each of ``size`` bytes, are at most ``most``; one at least."""
    pack: list[_Item] = []
    held = 0
    for item in items:
        own = size(item)
        if pack and held + own > most:
            yield pack
            pack, held = [], 0
        pack.append(item)
        held += own
    if pack:
        yield pack


@dataclass(frozen=True)
class Grams:
    """Sums over ``count`` rows: ``products`` [group, k, k] of x x^T, ``sums`` [group, k] of x; float64."""

    products: Array
    sums: Array
    count: int


@dataclass(frozen=True)
class CrossGrams:
    """Sums over ``count`` pairs of rows: ``products`` [group, k, k'] of x x'^T, and of x and x' alone; float64."""

    products: Array
    first: Array
    second: Array
    count: int


@dataclass(frozen=True)
class Gram:
    """Second moments of rows along the last axis, or of patches; of at most about ``rows`` rows a sample."""

    patches: Patches | None = None
    rows: int | None = None
    gives: ClassVar[type[Result]] = Grams

    def start(self) -> Collector:
        """A collector that has seen nothing yet."""
        return _Gram(self)


@dataclass(frozen=True)
class CrossGram:
    """Second moments between the rows of two values that have as many; see ``collect_pair``."""

    first: Patches | None = None
    second: Patches | None = None
    rows: int | None = None

    def start(self) -> PairCollector:
        """A collector that has seen nothing yet."""
        return PairCollector(self)


def rows(values: Array, asked: Patches | None, limit: int) -> Array:
    """[group, rows, k]: the rows of a value whose first axis counts samples; about ``limit`` of them, evenly spread."""
    reader = _reader(Seen(values, len(values)), asked)
    samples, positions = reader.shape[:2]
    return reader.take(np.arange(0, positions, step(positions, -(-limit // samples))))


class _Gram:
    def __init__(self, asked: Gram) -> None:
        self.pair = PairCollector(CrossGram(asked.patches, asked.patches, asked.rows))

    def update(self, seen: Seen) -> None:
        self.pair.update(seen, seen)

    def result(self) -> Grams:
        found = self.pair.result()
        return Grams(found.products, found.first, found.count)


class PairCollector:
    """Takes what is seen of two values in the same runs."""

    def __init__(self, asked: CrossGram) -> None:
        self.asked = asked
        self.random = np.random.default_rng(0)
        self.products: Array | float = 0.0
        self.first: Array | float = 0.0
        self.second: Array | float = 0.0
        self.count = 0

    def update(self, first: Seen, second: Seen) -> None:
        """Take the values of one run; the same one twice for its own second moments."""
        readers = [_reader(first, self.asked.first), _reader(second, self.asked.second)]
        assert readers[0].shape[:2] == readers[1].shape[:2], "the two values do not have the same rows"
        samples, positions = readers[0].shape[:2]
        every = step(positions, self.asked.rows or positions)
        start = int(self.random.integers(every)) if every > 1 else 0
        for part in _chunks(np.arange(start, positions, every), samples * max(reader.shape[2] for reader in readers)):
            x = readers[0].take(part)
            other = x if first is second else readers[1].take(part)
            self.products = self.products + every * np.matmul(x.swapaxes(1, 2), other).astype(np.float64)
            self.first = self.first + every * x.sum(axis=1, dtype=np.float64)
            self.second = self.second + every * other.sum(axis=1, dtype=np.float64)
            self.count += every * samples * len(part)

    def result(self) -> CrossGrams:
        """What all runs showed."""
        return CrossGrams(np.asarray(self.products), np.asarray(self.first), np.asarray(self.second), self.count)


# ------------------------------------------------------------------------------------------------------------------ rows


@dataclass(frozen=True)
class _Reader:
    """``shape``: samples, positions, elements of a position; ``take(positions)`` gives rows [group, samples positions, k]."""

    shape: tuple[int, int, int]
    take: Callable[[Array], Array]


def _reader(seen: Seen, asked: Patches | None) -> _Reader:
    return _dense(seen) if asked is None else _conv(seen.values, asked)


def _dense(seen: Seen) -> _Reader:
    rows = seen.rows.reshape(len(seen.rows), -1, seen.values.shape[-1])
    return _Reader(rows.shape, lambda positions: rows[:, positions].reshape(1, -1, rows.shape[2]))


def _conv(values: Array, asked: Patches) -> _Reader:
    samples, channels, *spatial = values.shape
    around = pads(asked, spatial)
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(asked.kernel, asked.dilations, strict=True)]
    out = [
        (size + sum(pad) - extent) // stride + 1
        for size, pad, extent, stride in zip(spatial, around, extents, asked.strides, strict=True)
    ]
    padded = np.pad(values, [(0, 0), (0, 0), *around]) if any(map(any, around)) else values
    axes = tuple(range(2, 2 + len(spatial)))
    steps = (slice(None), slice(None), *(slice(None, None, every) for every in (*asked.strides, *asked.dilations)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, tuple(extents), axis=axes)[steps]
    width = math.prod(asked.kernel)

    def take(positions: Array) -> Array:
        places: tuple[Any, ...] = (slice(None), slice(None), *np.unravel_index(positions, out))
        found: Array = windows[places]  # [samples, channels, positions, *kernel]
        grouped = found.reshape(samples, asked.group, channels // asked.group, len(positions), width)
        return grouped.transpose(1, 0, 3, 2, 4).reshape(asked.group, samples * len(positions), -1)

    return _Reader((samples, math.prod(out), channels * width), take)


def pads(asked: Patches, spatial: list[int]) -> list[tuple[int, int]]:
    """Zeros before and after each axis."""
    if asked.auto_pad == "NOTSET":
        return [*zip(asked.pads[: len(spatial)], asked.pads[len(spatial) :], strict=True)]
    found = []
    for size, kernel, stride, dilation in zip(spatial, asked.kernel, asked.strides, asked.dilations, strict=True):
        missing = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
        less = missing // 2
        pairs = {"SAME_UPPER": (less, missing - less), "SAME_LOWER": (missing - less, less), "VALID": (0, 0)}
        found.append(pairs[asked.auto_pad])
    return found


def _chunks(positions: Array, elements: int) -> Iterator[Array]:
    length = max(1, _CHUNK // elements)
    for start in range(0, len(positions), length):
        yield positions[start : start + length]
