"""Observing what values a model computes on data: one streaming run for any number of observers, in memory of a fixed size.

A pass declares what it wants to know, by value and observer (``collectors``, ``channels``, ``gram``); ``collect`` makes these
values outputs of a clone of the model, streams the data through it (``sweeps``), and hands each run's values to all collectors
before the next run. What was found is kept for the next time it is asked (``cache``).

    ranges = context.observe(model, {"conv1_out": [MinMax(), ChannelMean()], "x": [Histogram()]})
    low, high = ranges["conv1_out"][0].low, ranges["conv1_out"][0].high
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Progress, Session, Silent
from graphopt.dataset import Dataset
from graphopt.errors import DataError

from . import nonfinite, sweeps
from .cache import Cache, cache_folder
from .channels import ChannelMean, ChannelMoments, ChannelRange, ChannelRanges, ChannelShares, ChannelZeros
from .collectors import (
    Collector,
    Counts,
    Histogram,
    Keep,
    Kept,
    MinMax,
    MovingAverage,
    Observer,
    Range,
    Result,
    Seen,
)
from .gram import CrossGram, CrossGrams, Gram, Grams, Patches, packs, patches
from .pairs import collect_pair

__all__ = [
    "Cache",
    "ChannelMean",
    "ChannelMoments",
    "ChannelRange",
    "ChannelRanges",
    "ChannelShares",
    "ChannelZeros",
    "Collector",
    "Counts",
    "CrossGram",
    "CrossGrams",
    "Gram",
    "Grams",
    "Histogram",
    "Keep",
    "Kept",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Patches",
    "Range",
    "Result",
    "Seen",
    "cache_folder",
    "collect",
    "collect_pair",
    "observable",
    "packs",
    "patches",
]


def observable(model: ir.Model) -> frozenset[str]:
    """Names of the values that can be observed: float tensors that are inputs or computed in the main graph.

    Values inside If, Loop and Scan and inside functions cannot become outputs, constants have nothing to observe, and a value
    whose type is not known is left out.
    """
    return frozenset(sweeps.observable(model))


def collect(
    model: ir.Model,
    wanted: Mapping[str, Sequence[Observer]],
    *,
    data: Dataset,
    open_session: Callable[[ir.Model], Session],
    progress: Progress | None = None,
    samples: int | None = None,
    cache: Cache | None = None,
) -> dict[str, tuple[Result, ...]]:
    """Run the model on the data and return what each observer found, by value, in the order of the observers.

    Args:
        model: The model; it stays as it is.
        wanted: Observers by name of an observable value.
        data: What to run on.
        open_session: Opens a model; called once a sweep.
        progress: Told each sample.
        samples: Only the first so many.
        cache: Where to look first, and to keep what is found.

    Raises:
        DataError: A sample is broken or holds NaN or infinity; a value is empty on all data.
        ModelError: A value becomes NaN or infinite (the first node where it does is named), or the runtime failed.
    """
    asked = {(name, observer) for name, observers in wanted.items() for observer in observers}
    whole, data = data, data if samples is None else data.first(samples)
    key = cache.key(model, whole, data.size) if cache and asked else ""
    found = cache.find(key, asked) if cache and asked else {}
    collectors = {(name, observer): observer.start() for name, observer in asked - found.keys()}
    if collectors:
        by_name: dict[str, list[Collector]] = {}
        for (name, _), collector in collectors.items():
            by_name.setdefault(name, []).append(collector)
        _stream(model, by_name, data, open_session, progress or Silent())
        made = {which: collector.result() for which, collector in collectors.items()}
        found |= made
        if cache:
            cache.add(key, made)
    return {name: tuple(found[name, observer] for observer in observers) for name, observers in wanted.items()}


def _stream(
    model: ir.Model,
    collectors: Mapping[str, Sequence[Collector]],
    data: Dataset,
    open_session: Callable[[ir.Model], Session],
    progress: Progress,
) -> None:
    planned = sweeps.plan(model, [*collectors], data)
    never_seen = set(collectors)
    with progress.stage("observing", total=data.size * len(planned.sweeps)) as step:
        for names in planned.sweeps:
            for start, batch, found in sweeps.run(model, names, planned, open_session):
                for name in [*found]:
                    array = found.pop(name)  # and let go of: the next run begins with nothing of this one in memory
                    if array.size == 0:
                        continue
                    never_seen.discard(name)
                    seen = Seen.of(array, batch)
                    if not (np.isfinite(seen.lows).all() and np.isfinite(seen.highs).all()):
                        raise nonfinite.explain(model, name, start, batch, data, open_session)
                    for collector in collectors[name]:
                        collector.update(seen)
                    del array, seen
                step(batch.samples)
    if never_seen:
        raise DataError(f"the value {min(never_seen)!r} has no elements on any sample, so it has no range", where=data.name)
