"""What is wrong with a feed, judged by the model's inputs: engines say it each in their own way, or convert it quietly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.contracts import Array, TensorSpec
from graphopt.errors import DataError


def feed_problem(feed: Mapping[str, Array], inputs: Sequence[TensorSpec]) -> DataError | None:
    """The first thing that is wrong; None when nothing is."""
    missing = [spec.name for spec in inputs if spec.name not in feed]
    extra = [name for name in feed if name not in {spec.name for spec in inputs}]
    if missing or extra:
        said = [f"misses {name!r}" for name in missing] + [f"has an unknown {name!r}" for name in extra]
        return DataError(f"the feed {', '.join(said)}", hint=f"The inputs are {', '.join(repr(s.name) for s in inputs)}.")
    for spec in inputs:
        if spec.dtype == object:
            continue
        array = np.asarray(feed[spec.name])
        where = f"input {spec.name!r}"
        if array.dtype != spec.dtype:
            return DataError(f"is {array.dtype} but the model takes {spec.dtype}", where=where)
        if spec.shape is None:
            continue
        fits = array.ndim == len(spec.shape) and all(
            not isinstance(size, int) or size == given for size, given in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            takes = ", ".join("?" if size is None else str(size) for size in spec.shape)
            return DataError(f"has shape {list(array.shape)} but the model takes [{takes}]", where=where)
    return None


class FeedCheck:
    """Refuses feeds that do not fit the inputs; one that is run again and again, as when timed, is judged once."""

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._inputs = inputs
        self._right: object = None

    def __call__(self, feed: Mapping[str, Array]) -> None:
        """Raise the DataError that ``feed_problem`` finds, if any."""
        if feed is not self._right:
            if (problem := feed_problem(feed, self._inputs)) is not None:
                raise problem
            self._right = feed
