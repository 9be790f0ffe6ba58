"""Sources whose items are complete feeds: a folder of ``.npz``, ONNX ``test_data_set_N``, a Python function.

Names, shapes and types of every feed are checked when the source is opened. So are the values of what a function yields, which
has to be run through to be counted, and of a folder's first feed; those of its other feeds are checked as they stream.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt.callables import call, load_callable
from graphopt.contracts import Array, Feed, TensorSpec
from graphopt.dataset import Batch, Dataset, Span, digest
from graphopt.errors import DataError

from .npz import describe_npz, read_npz
from .preflight import LABELS, Described, check_dtype, check_labels, check_shapes, convert, count_samples, match_names

_MOST_FEEDS = 1_000_000
"""A function that has yielded this many feeds is taken to have no end."""


class _Survey:
    """What is known after a look at each feed: where its samples are, the type of the labels, and notes."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.specs = specs
        self.spans: list[Span] = []
        self.labels_dtype: np.dtype | None = None
        self.notes: dict[str, None] = {}

    def add(self, place: str, described: Described, labels_dtype: np.dtype | None) -> int:
        """Check names, shapes and types of the next feed; returns how many samples it holds."""
        matched, notes = match_names(described, self.specs, place)
        shapes = {name: shape for name, (shape, _) in matched.items()}
        check_shapes(shapes, self.specs, place)
        for spec in self.specs:
            notes += check_dtype(matched[spec.name][1], spec, place)
        self.notes |= dict.fromkeys(notes)
        samples = count_samples(shapes.values())
        if samples == 0:
            raise DataError("there are no samples", where=place)
        if self.spans and (labels_dtype is None) != (self.labels_dtype is None):
            raise DataError("some feeds have labels and some have none", where=place)
        if labels_dtype is not None:
            plain = check_labels(np.zeros(1, labels_dtype), 1, place).dtype
            self.labels_dtype = np.result_type(plain, self.labels_dtype or plain)
        start = self.spans[-1][1] if self.spans else 0
        self.spans.append((start, start + samples))
        return samples

    def batch(self, place: str, feed: Mapping[str, Array], labels: Array | None, samples: int) -> Batch:
        """The feed with all of its values checked."""
        matched, _ = match_names(feed, self.specs, place)
        checked: Feed = {}
        for spec in self.specs:
            array = matched[spec.name]
            checked[spec.name] = convert(array, spec, place, samples_first=samples > 1 and array.ndim > 0)
        return Batch(checked, None if labels is None else check_labels(labels, samples, place), samples)

    def dataset(self, name: str, stream: Callable[[Sequence[Span]], Iterator[Batch]], content: Callable[[], str]) -> Dataset:
        """The finished dataset; its batches are never cut."""
        return Dataset(name, tuple(self.spans), stream, content, self.labels_dtype, tuple(self.notes))


# --------------------------------------------------------------------------------------------------------------- folders


def open_npz_folder(folder: Path, files: Sequence[Path], specs: Sequence[TensorSpec]) -> Dataset:
    """Each file is a complete feed, with ``labels`` if they are known.

    Raises:
        DataError: A file cannot be read or does not fit the model.
    """
    return _open_places(folder, files, describe_npz, read_npz, specs)


def open_test_data(folder: Path, sets: Sequence[Path], specs: Sequence[TensorSpec]) -> Dataset:
    """Each folder is a complete feed: ``input_K.pb`` is the model's K-th input. Outputs are ignored.

    Raises:
        DataError: A file cannot be read, is not a tensor or does not fit the model.
    """

    def read(place: Path) -> dict[str, Array]:
        there = len(list(place.glob("input_*.pb")))
        if there != len(specs):
            names = ", ".join(repr(spec.name) for spec in specs)
            raise DataError(f"there are {there} files input_K.pb for {len(specs)} inputs: {names}", where=str(place))
        return {spec.name: _read_tensor(place / f"input_{index}.pb") for index, spec in enumerate(specs)}

    return _open_places(folder, sets, lambda place: _describe(read(place)), read, specs)


def _open_places(
    folder: Path,
    places: Sequence[Path],
    describe: Callable[[Path], Described],
    read: Callable[[Path], dict[str, Array]],
    specs: Sequence[TensorSpec],
) -> Dataset:
    survey = _Survey(specs)
    labelled = all(spec.name != LABELS for spec in specs)
    for place in places:
        described = dict(describe(place))
        label = described.pop(LABELS, None) if labelled else None
        survey.add(str(place), described, label and label[1])

    def stream(wanted: Sequence[Span]) -> Iterator[Batch]:
        for place, (start, stop) in zip(places, wanted, strict=False):
            feed = read(place)
            labels = feed.pop(LABELS, None) if labelled else None
            yield survey.batch(str(place), feed, labels, stop - start)

    def content() -> str:
        return _joined(digest(batch.feed, batch.labels) for batch in stream(survey.spans))

    next(stream(survey.spans[:1]))
    return survey.dataset(str(folder), stream, content)


def _describe(arrays: Mapping[str, Array]) -> Described:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def _read_tensor(path: Path) -> Array:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path)) from error
    sequence, tensor = onnx.SequenceProto(), onnx.TensorProto()
    with contextlib.suppress(Exception):  # protobuf has several error types; this only finds out what the file is not
        sequence.ParseFromString(content)
    if sequence.tensor_values or sequence.sequence_values or sequence.map_values:
        raise DataError("the input is a sequence or an optional, not a tensor", where=str(path))
    try:
        tensor.ParseFromString(content)
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise DataError(f"this is not a tensor: {error}", where=str(path)) from error


# ------------------------------------------------------------------------------------------------------------- functions


def open_function(source: str | Callable[[], Any], specs: Sequence[TensorSpec]) -> Dataset:
    """What a function, or ``module:function``, yields. One full run checks and counts it; each later run must yield the same.

    Raises:
        DataError: The function cannot be found, raises, yields what does not fit the model, nothing, or without an end.
    """
    function = load_callable(source, DataError) if isinstance(source, str) else source
    name = source if isinstance(source, str) else getattr(source, "__name__", "the function")
    survey = _Survey(specs)
    digests: list[str] = []
    for place, feed, labels in _yielded(function, name):
        samples = survey.add(place, _describe(feed), None if labels is None else labels.dtype)
        batch = survey.batch(place, feed, labels, samples)
        digests.append(digest(batch.feed, batch.labels))
    if not digests:
        raise DataError("nothing was yielded", where=name)

    def stream(wanted: Sequence[Span]) -> Iterator[Batch]:
        done = 0
        for (place, feed, labels), (start, stop), expected in zip(_yielded(function, name), wanted, digests, strict=False):
            batch = survey.batch(place, feed, labels, stop - start)
            if digest(batch.feed, batch.labels) != expected:
                raise DataError(
                    "another feed than the first time; the function must yield the same each time it is called",
                    where=place,
                    hint="Seed its random generator inside the function.",
                )
            done += 1
            yield batch
        if done < len(wanted):
            raise DataError(f"{done} feeds instead of {len(digests)} when it was called again", where=name)

    return survey.dataset(name, stream, lambda: _joined(digests))


def _yielded(function: Callable[[], Any], name: str) -> Iterator[tuple[str, dict[str, Array], Array | None]]:
    """What the function yields, as arrays, with a name for each feed."""
    items = call(lambda: iter(function()), name, DataError)
    end = object()
    for index in range(_MOST_FEEDS):
        place = f"{name}, feed {index}"
        item = call(next, place, DataError, items, end)
        if item is end:
            return
        feed, labels = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        if not isinstance(feed, Mapping):
            hint = "Yield {'input name': array}, or a pair of that and labels."
            raise DataError(f"the feed is {type(feed).__name__}, not a dict", where=place, hint=hint)
        arrays = {str(key): call(np.asarray, f"{place}, input {key!r}", DataError, value) for key, value in feed.items()}
        yield place, arrays, None if labels is None else call(np.asarray, f"{place}, labels", DataError, labels)
    raise DataError(f"{_MOST_FEEDS:,} feeds were yielded and there is no end", where=name)


def _joined(digests: Any) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()
