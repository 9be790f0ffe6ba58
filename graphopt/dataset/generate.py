"""Inputs made up from the model when there is no data: they show agreement and speed, never accuracy.

Sizes of dynamic dimensions, one for each symbol: what the user says; else by the symbol's name or the axis' place

    batch (axis 0; axis 1 of a recurrent state)   1
    height and width of an image                  224
    length of a waveform (float [N, T])           512
    any other (tokens, frames, channels)          16

and, if the model does not run with these, the next ones of a short list. An expression such as ``past + 1`` follows its
symbols, and ``total_sequence_length`` is the past's and the new one's.

Values: floats are standard normal, bools random, anything called ``*mask*`` is ones. Integers stay within the tables that they
index (``integer_use.py`` follows them through the graph), else are the constants that they are compared with, else 0 or 1;
those of 8 bits take every value. One seed gives the same samples each time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array, Feed, TensorSpec
from graphopt.dataset import Batch, Dataset, Span, digest
from graphopt.errors import DataError, UsageError
from graphopt.model import input_specs
from graphopt.registry import unknown_name

from .integer_use import IntegerUse, integer_uses
from .preflight import Dim, count_samples, is_fixed, symbol

_SIZES: Mapping[str, Sequence[int]] = {
    "batch": (1,),
    "image": (224, 256, 320, 640, 512, 416, 128, 64, 32, 384, 299, 1024),
    "wave": (512, 16000, 1024, 256, 160, 400, 4096, 32000, 128, 64, 16, 1536),
    "other": (16, 128, 1, 32, 64, 80, 256, 512, 77, 8, 1024, 3000),
}
"""Sizes by kind of dimension, in the order in which they are tried."""
_TRIES = max(map(len, _SIZES.values()))
_NAMES = {
    "batch": re.compile(r"batch|^(n|b|bs|bsz)$", re.IGNORECASE),
    "image": re.compile(r"height|width|^[hw]$", re.IGNORECASE),
    "other": re.compile(r"seq|len|token|time|frame|past|cache|^[tls]$", re.IGNORECASE),
}
_GIVE = "Give --data with real samples"


def generate(
    model: ir.Model,
    *,
    dims: Mapping[str, int] = {},
    samples: int = 8,
    seed: int = 0,
    runs: Callable[[Feed], bool] | None = None,
) -> Dataset:
    """Make up samples that the model can be run on.

    Args:
        model: Whose inputs to make.
        dims: Sizes of dynamic dimensions, by symbol or ``input:axis``.
        samples: How many; rounded up to whole batches if the model fixes the batch size.
        seed: Decides all values.
        runs: Tells whether a feed can be run; without it the first sizes are taken.

    Raises:
        UsageError: ``dims`` names no dynamic dimension, or gives a size below 0.
        DataError: An input cannot be made (text), or the model runs with none of the sizes that were tried.
    """
    specs = input_specs(model)
    for spec in specs:
        if spec.dtype.kind not in "biuf" and not re.search("float|int", spec.dtype.name):
            kind = "text" if spec.dtype.kind == "O" else str(spec.dtype)
            raise DataError(f"it takes {kind}, which cannot be made up", where=f"input {spec.name!r}", hint=f"{_GIVE}.")
    sizes, feed = _first_that_runs(model, specs, _given(dims, specs), seed, runs)
    uses = _uses(model, specs, sizes)
    per_feed = max(1, count_samples([array.shape for array in feed.values()]))
    spans = tuple((start, start + per_feed) for start in range(0, max(1, samples), per_feed))

    def stream(wanted: Sequence[Span]) -> Iterator[Batch]:
        for index, (start, stop) in enumerate(wanted):
            yield Batch(_feed(specs, sizes, uses, (seed, index)), None, stop - start)

    def content() -> str:
        return "".join(digest(batch.feed) for batch in stream(spans))

    shown = ", ".join(f"{key} = {size}" for key, size in sizes.items())
    notes = (f"Sizes of generated inputs: {shown}.",) if shown else ()
    return Dataset("generated inputs", spans, stream, content, notes=notes, generated=True)


# ---------------------------------------------------------------------------------------------------------------- sizes


def _key(spec: TensorSpec, axis: int, dim: Dim) -> str | None:
    """What names the size of a dynamic dimension: its symbol, or ``input:axis``; None if it is fixed."""
    return None if is_fixed(dim) else symbol(dim) or f"{spec.name}:{axis}"


def _dynamic(specs: Sequence[TensorSpec]) -> Iterator[tuple[TensorSpec, int, str]]:
    """Every dynamic axis of every input with its key."""
    for spec in specs:
        for axis, dim in enumerate(spec.shape or ()):
            if (key := _key(spec, axis, dim)) is not None:
                yield spec, axis, key


def _given(dims: Mapping[str, int], specs: Sequence[TensorSpec]) -> dict[str, int]:
    """The user's sizes by key."""
    keys = {f"{spec.name}:{axis}": key for spec, axis, key in _dynamic(specs)}
    keys |= {key: key for key in list(keys.values())}
    found: dict[str, int] = {}
    for name, size in dims.items():
        if name not in keys:
            raise unknown_name("dynamic dimension", name, keys)
        if size < 0:
            raise UsageError(f"{size} is no size", where=f"--dim {name}")
        if found.setdefault(keys[name], size) != size:
            raise UsageError(f"the dimension {keys[name]!r} is given two sizes", where=f"--dim {name}")
    return found


def _first_that_runs(
    model: ir.Model, specs: Sequence[TensorSpec], given: Mapping[str, int], seed: int, runs: Callable[[Feed], bool] | None
) -> tuple[dict[str, int], Feed]:
    """The first sizes with which the model runs, and the feed it was tried with."""
    tried: list[dict[str, int]] = []
    for attempt in range(_TRIES):
        sizes = _sizes(specs, given, attempt)
        if sizes in tried:
            continue
        tried.append(sizes)
        feed = _feed(specs, sizes, _uses(model, specs, sizes), (seed, 0))
        if runs is None or runs(feed):
            return sizes, feed
    if not tried[0].keys() - given:
        with_sizes = ", ".join(f"{key} = {size}" for key, size in tried[0].items())
        raise DataError(f"the model does not run on generated inputs{with_sizes and f' with {with_sizes}'}", hint=f"{_GIVE}.")
    shown = "; ".join(", ".join(f"{key} = {size}" for key, size in sizes.items()) for sizes in tried[:3])
    hint = f"{_GIVE}, or the sizes, such as --dim {next(iter(tried[0].keys() - given))}=64."
    raise DataError(f"the model runs with none of the {len(tried)} sizes that were tried: {shown}, ...", hint=hint)


def _sizes(specs: Sequence[TensorSpec], given: Mapping[str, int], attempt: int) -> dict[str, int]:
    """A size for each dynamic dimension: the user's, that of the kind of dimension, or what an expression comes to."""
    kinds: dict[str, set[str]] = {}
    for spec, axis, key in _dynamic(specs):
        kinds.setdefault(key, set()).add(_kind(spec, axis))
    sizes = {}
    for key, found in kinds.items():
        named = _kind_by_name(key) if ":" not in key else None
        by_place = next(kind for kind in _SIZES if kind in found)
        candidates = _SIZES[by_place if named is None or (named, by_place) == ("other", "wave") else named]
        sizes[key] = given.get(key, candidates[min(attempt, len(candidates) - 1)])
    return sizes | {key: size for key in sizes.keys() - given if (size := _evaluated(key, sizes)) is not None}


def _kind_by_name(name: str) -> str | None:
    return next((kind for kind, pattern in _NAMES.items() if pattern.search(name)), None)


def _kind(spec: TensorSpec, axis: int) -> str:
    """What an axis probably is, from its place."""
    shape = spec.shape or ()
    if axis == 0 or (axis == 1 and len(shape) >= 3 and is_fixed(shape[0]) and shape[0] != 1):
        return "batch"
    image = len(shape) == 4 and ((shape[1] in (1, 3) and axis > 1) or (shape[3] in (1, 3) and axis < 3))
    if image:
        return "image"
    return "wave" if len(shape) == 2 and "float" in spec.dtype.name else "other"


def _evaluated(key: str, sizes: Mapping[str, int]) -> int | None:
    """The value of a symbol that is an expression of others; None for a plain symbol."""
    if "total" in key.lower():
        parts = [size for other, size in sizes.items() if "seq" in other.lower() and "total" not in other.lower()]
        return sum(parts) if len(parts) == 2 else None
    if key.isidentifier():
        return None
    try:
        dim = ir.SymbolicDim(key)
        if key in dim.free_symbols() or not dim.free_symbols() <= sizes.keys():
            return None
        value = dim.evaluate(sizes)
    except ValueError:  # a name that is no expression, such as "batch size"
        return None
    return value if isinstance(value, int) and value >= 0 else None


# --------------------------------------------------------------------------------------------------------------- values


def _uses(model: ir.Model, specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> dict[str, IntegerUse]:
    """How the graph uses each integer input."""
    return integer_uses(model, [spec.name for spec in specs if "int" in spec.dtype.name], sizes)


def _feed(specs: Sequence[TensorSpec], sizes: Mapping[str, int], uses: Mapping[str, IntegerUse], seed: Sequence[int]) -> Feed:
    rng = np.random.default_rng(seed)
    feed: Feed = {}
    for spec in specs:
        keys = (dim if is_fixed(dim) else _key(spec, axis, dim) for axis, dim in enumerate(spec.shape or ()))
        shape = tuple(key if isinstance(key, int) else sizes[key or ""] for key in keys)
        feed[spec.name] = _values(spec, shape, uses.get(spec.name), rng)
    return feed


def _values(spec: TensorSpec, shape: tuple[int, ...], use: IntegerUse | None, rng: np.random.Generator) -> Array:
    if "mask" in spec.name.lower():
        return np.ones(shape, spec.dtype)
    if use is None:
        if spec.dtype.kind == "b":
            return rng.integers(0, 2, shape).astype(bool)
        return np.asarray(rng.standard_normal(shape, np.float32)).astype(spec.dtype)
    if use.choices:
        return np.asarray(rng.choice(use.choices, shape)).astype(spec.dtype)
    low, high = use.bounds or (0, 2)
    if use.bounds is None and spec.dtype in (np.int8, np.uint8):
        limits = np.iinfo(spec.dtype)
        low, high = limits.min, limits.max + 1
    return np.asarray(rng.integers(low, high, shape)).astype(spec.dtype)
