"""What a model is worth on data: one number, accumulated batch by batch.

    name             what                                                                          needs      better
    ---------------  ----------------------------------------------------------------------------  ---------  ------
    top1, top5       part of the labels that have the highest score, or one of the five highest    labels     higher
    f1               F1 of class 1 if there are two classes, else the mean over all classes        labels     higher
    perplexity       exp of the mean negative log-likelihood; the output is logits [N, T, V]       see below  lower
    mse              mean squared error against float labels, else against the original            -          lower
    agreement        part of the samples on which the model agrees with the original               -          higher
    cosine           mean cosine similarity to the original's output, sample by sample             -          higher
    module:function  called with (outputs by name, labels or None), samples concatenated           -          higher

``NAME@OUTPUT`` measures that output; otherwise it is the first one.

What a class, a score and a label are: ``labels.py``.

*Agreement* is the same highest class for scores [N, C] with C >= 2, and the share of equal elements for integers, bools and
text. Other outputs have no classes: there a sample agrees if every output (or the one that is named) has a cosine similarity of
at least 0.99 to the original's.

*Perplexity* takes labels [N, T]: the token that each position should predict. Without labels the model must have one integer
input [N, T], whose next token each position should predict.

A function with the attribute ``higher_is_better = False`` is a loss. It gets all outputs at once: memory grows with samples.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .callables import call, is_callable_name, load_callable
from .contracts import Array, Feed, TensorSpec
from .errors import DataError, UsageError
from .labels import IGNORED, NO_CLASS, are_classes, flat, in_range, plain, scored, winners
from .registry import unknown_name

Outputs = Mapping[str, Array]
SIMILAR = 0.99
"""Cosine similarity from which outputs without classes agree."""


@dataclass(frozen=True)
class Call:
    """What a metric sees of one batch."""

    outputs: Outputs
    reference: Outputs
    labels: Array | None
    feed: Feed
    output: str
    """The name of the output that is measured."""
    named: bool
    """Whether the user named it."""

    @property
    def scores(self) -> Array:
        """The output that is measured."""
        return self.outputs[self.output]

    def targets(self) -> Array:
        """The labels; metrics that need them are not chosen without."""
        assert self.labels is not None
        return self.labels


class Metric(abc.ABC):
    """Accumulates over batches."""

    @abc.abstractmethod
    def add(self, batch: Call) -> None:
        """Take in one batch.

        Raises:
            DataError: Outputs and labels do not fit the metric.
        """

    @abc.abstractmethod
    def value(self) -> float:
        """The metric over all batches so far; NaN if nothing was counted."""


@dataclass(frozen=True)
class MetricFactory:
    """A metric that was chosen: makes one ``Meter`` a model."""

    name: str
    higher_is_better: bool
    output: str
    named: bool
    make: Callable[[], Metric]

    def __call__(self) -> Meter:
        """A fresh accumulator."""
        return Meter(self, self.make())

    def drop(self, before: float, after: float) -> float:
        """How much worse ``after`` is; negative if it is better."""
        return before - after if self.higher_is_better else after - before


@dataclass(frozen=True)
class Meter:
    """One metric of one model."""

    factory: MetricFactory
    metric: Metric

    def update(self, outputs: Outputs, reference: Outputs, labels: Array | None, feed: Feed) -> None:
        """Take in the outputs of one batch, the original's, the labels and the inputs.

        Raises:
            DataError: They do not fit the metric.
        """
        self.metric.add(Call(_readable(outputs), _readable(reference), labels, feed, self.factory.output, self.factory.named))

    def value(self) -> float:
        """The metric over all batches so far."""
        return self.metric.value()


def choose(
    name: str | None, outputs: Sequence[TensorSpec], labelled: bool, *, labels_dtype: np.dtype | None = None
) -> MetricFactory:
    """The metric that is called ``name``, or the one that suits the data: see the table above.

    Without a name: ``agreement`` if there are no labels; ``mse`` for float labels; ``f1`` for classes if the first output is a
    single score; ``top1`` otherwise.

    Args:
        name: ``METRIC``, ``METRIC@OUTPUT``, or None.
        outputs: The model's outputs.
        labelled: Whether the data has labels.
        labels_dtype: Their type, if known; classes are assumed otherwise.

    Raises:
        UsageError: The metric or the output does not exist (with the nearest names).
        DataError: The metric needs labels and there are none.
    """
    metric, _, output = (name or "").partition("@")
    known = [spec.name for spec in outputs]
    if output and output not in known:
        raise unknown_name("output", output, known)
    measured = output or known[0]
    if not metric:
        metric = _suitable(outputs[known.index(measured)], labelled, labels_dtype)
    shown = f"{metric}@{output}" if output else metric
    if is_callable_name(metric):
        function = load_callable(metric)
        better = bool(getattr(function, "higher_is_better", True))
        return MetricFactory(shown, better, measured, bool(output), lambda: _Collected(function, metric))
    if metric not in _METRICS:
        raise unknown_name("metric", metric, [*_METRICS, "module:function"])
    make, higher_is_better, needs_labels = _METRICS[metric]
    if needs_labels and not labelled:
        hint = f"Give --eval with an array {'labels'!r}, or use --metric agreement."
        raise DataError(f"the metric {metric!r} needs labels and the data has none", hint=hint)
    return MetricFactory(shown, higher_is_better, measured, bool(output), make)


def _suitable(output: TensorSpec, labelled: bool, labels_dtype: np.dtype | None) -> str:
    if not labelled:
        return "agreement"
    if labels_dtype is not None and labels_dtype.kind == "f":
        return "mse"
    shape = output.shape
    single = shape is not None and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1))
    return "f1" if single and "float" in output.dtype.name else "top1"


# ---------------------------------------------------------------------------------------------------------------- means


class _Mean(Metric):
    """A mean of something: ``part`` returns its sum over one batch, and how many there were."""

    def __init__(self, part: Callable[[Call], tuple[float, int]], finish: Callable[[float], float] = float) -> None:
        self.part = part
        self.finish = finish
        self.total = 0.0
        self.count = 0

    def add(self, batch: Call) -> None:
        total, count = self.part(batch)
        self.total += total
        self.count += count

    def value(self) -> float:
        return self.finish(self.total / self.count) if self.count else math.nan


def _top(k: int) -> Callable[[Call], tuple[float, int]]:
    def hits(batch: Call) -> tuple[float, int]:
        classes = batch.targets()
        if are_classes(batch.scores, classes):
            found, classes = flat(batch.scores, classes)
            counted = classes != IGNORED
            return float(np.sum(found[counted] == classes[counted])), int(np.sum(counted))
        scores, classes = scored(batch.scores, classes, batch.output)
        own = np.take_along_axis(scores, classes[:, np.newaxis], axis=1)
        # among equal scores the first class wins, as with argmax
        earlier = np.arange(scores.shape[1]) < classes[:, np.newaxis]
        rank = np.sum((scores > own) | ((scores == own) & earlier), axis=1)
        return float(np.sum((rank < k) & ~np.isnan(scores).any(axis=1))), len(classes)

    return hits


def _log_loss(batch: Call) -> tuple[float, int]:
    """Sum of -log softmax(logits)[token] over all tokens, a sample at a time: logits are large."""
    logits, tokens = batch.scores, batch.labels
    if logits.ndim != 3 or "float" not in logits.dtype.name:
        raise DataError(
            f"perplexity needs logits [N, T, V], the output is {list(logits.shape)}", where=f"output {batch.output!r}"
        )
    if tokens is None:
        ids = [array for array in batch.feed.values() if array.dtype.kind in "iu" and array.shape == logits.shape[:2]]
        if len(ids) != 1:
            hint = f"Without them exactly one integer input must have the shape {list(logits.shape[:2])}, there are {len(ids)}."
            raise DataError("perplexity needs labels", hint=hint)
        logits, tokens = logits[:, :-1], ids[0][:, 1:]
    if tokens.shape != logits.shape[:2]:
        raise DataError(f"the labels are {list(tokens.shape)}, the logits {list(logits.shape)}", hint="Labels must be [N, T].")
    total, count = 0.0, 0
    for each, expected in zip(logits, tokens, strict=True):
        kept = expected != IGNORED
        rows, classes = each[kept].astype(np.float64), in_range(expected[kept], each.shape[-1], batch.output)
        peak = rows.max(axis=-1, initial=-np.inf)
        own = rows[np.arange(len(rows)), classes]
        total += float(np.sum(np.log(np.sum(np.exp(rows - peak[:, np.newaxis]), axis=-1)) + peak - own))
        count += len(rows)
    return total, count


def _exp(mean: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(mean))


def _squared_error(batch: Call) -> tuple[float, int]:
    expected = batch.reference[batch.output] if batch.labels is None else batch.labels
    actual = batch.scores
    if actual.size != expected.size or len(actual) != len(expected):
        what = f"the labels are {list(expected.shape)}, the output is {list(actual.shape)}"
        raise DataError(f"mse compares number by number, and {what}", where=f"output {batch.output!r}")
    difference = actual.astype(np.float64).reshape(-1) - expected.astype(np.float64).reshape(-1)
    return float(difference @ difference), difference.size


def _similarity(batch: Call) -> tuple[float, int]:
    found = _cosines(batch.scores, batch.reference[batch.output])
    return float(found.sum()), len(found)


def _agreement(batch: Call) -> tuple[float, int]:
    actual, expected = batch.scores, batch.reference[batch.output]
    if actual.shape != expected.shape:
        return 0.0, len(expected) if expected.ndim else 1
    if "float" not in expected.dtype.name:
        return float(np.sum(actual == expected)), expected.size
    scores = plain(actual)
    if scores.ndim == 2 and scores.shape[1] >= 2:
        return float(np.sum(winners(scores) == winners(plain(expected)))), len(scores)
    names = [batch.output] if batch.named else list(batch.reference)
    pairs = [(batch.outputs[name], batch.reference[name]) for name in names]
    pairs = [(one, other) for one, other in pairs if "float" in other.dtype.name]
    lengths = {other.shape[:1] for _, other in pairs}
    if len(lengths) > 1 or () in lengths:  # the first axes count different things: the batch is one sample
        pairs = [(one[np.newaxis], other[np.newaxis]) for one, other in pairs]
    alike = np.min([_cosines(one, other) for one, other in pairs], axis=0) >= SIMILAR
    return float(alike.sum()), len(alike)


def _cosines(actual: Array, expected: Array) -> Array:
    """Cosine similarity of each row; 1 for two rows of zeros, 0 if only one is or a value is not finite."""
    if actual.shape != expected.shape:
        return np.zeros(len(expected) if expected.ndim else 1)
    rows = max(1, len(expected)) if expected.ndim else 1
    a, b = (array.astype(np.float64).reshape(rows, -1) for array in (actual, expected))
    norms = np.sqrt(np.sum(a * a, axis=1) * np.sum(b * b, axis=1))
    same = np.all(a == b, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.clip(np.sum(a * b, axis=1) / norms, -1.0, 1.0)
    return np.where(same, 1.0, np.nan_to_num(found, nan=0.0))


# -------------------------------------------------------------------------------------------------------------- classes


class _F1(Metric):
    """Counts of (label, prediction) pairs. A single score keeps both thresholds until its range is known."""

    def __init__(self) -> None:
        self.counts: dict[float, dict[tuple[int, int], int]] = {}
        self.probabilities = True

    def add(self, batch: Call) -> None:
        classes, scores = batch.targets(), batch.scores
        if are_classes(scores, classes):
            found, classes = flat(scores, classes)
            self._count(0.0, classes, found)
        elif scores.size == classes.size and scores.shape[:1] == classes.shape[:1]:
            self.probabilities &= bool(np.all((scores >= 0) & (scores <= 1)))
            for threshold in (0.0, 0.5):
                self._count(threshold, classes.reshape(-1), (scores.reshape(-1) > threshold).astype(np.int64))
        else:
            rows, classes = scored(scores, classes, batch.output)
            self._count(0.0, classes, winners(rows))

    def _count(self, threshold: float, classes: Array, found: Array) -> None:
        counts = self.counts.setdefault(threshold, {})
        kept = classes != IGNORED
        pairs, numbers = np.unique(np.stack([classes[kept], found[kept]]), axis=1, return_counts=True)
        for (label, prediction), number in zip(pairs.T.tolist(), numbers.tolist(), strict=True):
            counts[label, prediction] = counts.get((label, prediction), 0) + number

    def value(self) -> float:
        counts = self.counts.get(0.5 if self.probabilities and 0.5 in self.counts else 0.0, {})
        classes = sorted({each for pair in counts for each in pair} - {NO_CLASS})
        if not classes:
            return math.nan
        if set(classes) <= {0, 1}:
            classes = [1]
        scores = []
        for each in classes:
            hit = counts.get((each, each), 0)
            wrong = sum(number for (label, found), number in counts.items() if (label == each) != (found == each))
            scores.append(2 * hit / (2 * hit + wrong) if hit + wrong else 0.0)
        return sum(scores) / len(scores)


def _readable(outputs: Outputs) -> Outputs:
    """With types that NumPy does not compute with (bfloat16, float8) as float32."""
    return {name: array.astype(np.float32) if array.dtype.kind == "V" else array for name, array in outputs.items()}


# ------------------------------------------------------------------------------------------------------------ functions


class _Collected(Metric):
    """Keeps everything, for a user's function."""

    def __init__(self, function: Callable[..., object], where: str) -> None:
        self.function = function
        self.where = where
        self.outputs: dict[str, list[Array]] = {}
        self.labels: list[Array] = []

    def add(self, batch: Call) -> None:
        for name, array in batch.outputs.items():
            self.outputs.setdefault(name, []).append(np.atleast_1d(array))
        if batch.labels is not None:
            self.labels.append(batch.labels)

    def value(self) -> float:
        outputs = {name: self._joined(parts) for name, parts in self.outputs.items()}
        labels = self._joined(self.labels) if self.labels else None
        found = call(self.function, self.where, UsageError, outputs, labels)
        try:
            number = float(found)
        except (TypeError, ValueError):
            number = math.nan
        if math.isnan(number):
            raise UsageError(f"returned {found!r}, not a number", where=self.where)
        return number

    def _joined(self, parts: list[Array]) -> Array:
        try:
            return np.concatenate(parts)
        except ValueError as error:
            hint = "Samples of one size can be joined; or use a metric that goes sample by sample."
            raise DataError(f"what the samples give cannot be joined: {error}", where=self.where, hint=hint) from None


_METRICS: Mapping[str, tuple[Callable[[], Metric], bool, bool]] = {
    "agreement": (lambda: _Mean(_agreement), True, False),
    "cosine": (lambda: _Mean(_similarity), True, False),
    "f1": (_F1, True, True),
    "mse": (lambda: _Mean(_squared_error), False, False),
    "perplexity": (lambda: _Mean(_log_loss, _exp), False, False),
    "top1": (lambda: _Mean(_top(1)), True, True),
    "top5": (lambda: _Mean(_top(5)), True, True),
}
"""Name: how it is made, whether higher is better, whether it needs labels."""
