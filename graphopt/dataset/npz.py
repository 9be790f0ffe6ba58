"""One ``.npz`` file: where its samples are, and reading it without trusting it.

An array with the rank of its input counts samples on the batch axis; with one axis more, each sample is a complete feed. A
scalar for a scalar input belongs to every sample. Batches are views: each array is in memory once.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from graphopt.contracts import Array, TensorSpec
from graphopt.dataset import FORMS, Batch, Dataset, Span, batch_spans, digest
from graphopt.errors import DataError

from .preflight import (
    EXTRA_AXIS,
    LABELS,
    Described,
    check_dtype,
    check_labels,
    check_shapes,
    convert,
    count_samples,
    match_names,
    shape_text,
)

_BROKEN = (OSError, KeyError, EOFError, RuntimeError, MemoryError, zlib.error, zipfile.BadZipFile)
"""What NumPy and zipfile raise, beside ValueError, for files that are broken, encrypted or oddly compressed, or that hold, or
claim to hold, more than fits into memory."""


def open_npz(path: Path, specs: Sequence[TensorSpec], batch_size: int) -> Dataset:
    """The samples of one file; all of its values are checked now.

    Raises:
        DataError: The file cannot be read or does not fit the model.
    """
    return open_arrays(read_npz(path), specs, batch_size, str(path))


def open_arrays(given: Mapping[str, Array], specs: Sequence[TensorSpec], batch_size: int, where: str = "arrays") -> Dataset:
    """The samples of arrays by name, as a file holds them; all of their values are checked now.

    Raises:
        DataError: They do not fit the model.
    """
    arrays = {name: np.asarray(array) for name, array in given.items()}
    labels = None if any(spec.name == LABELS for spec in specs) else arrays.pop(LABELS, None)
    arrays, notes = match_names(arrays, specs, where)
    samples, complete = _sample_axis(arrays, specs, where)
    if samples == 0:
        raise DataError("there are no samples", where=where)
    shared = {spec.name for spec in specs if arrays[spec.name].ndim == 0}
    shapes = {name: array.shape[1:] if complete and array.ndim else array.shape for name, array in arrays.items()}
    check_shapes(shapes, specs, where, samples_first=not complete)
    for spec in specs:
        notes += check_dtype(arrays[spec.name].dtype, spec, where)
        arrays[spec.name] = convert(arrays[spec.name], spec, where, samples_first=spec.name not in shared)
    if labels is not None:
        labels = check_labels(labels, samples, where)
        if _one_hot(labels):
            labels = labels.argmax(axis=1)
            notes += ("The labels are one-hot: they are taken as classes.",)
    spans, splittable = tuple((i, i + 1) for i in range(samples)), False
    if not complete:
        spans, splittable, left_out = batch_spans(samples, [s for s in specs if s.name not in shared], batch_size, where)
        notes += left_out

    def stream(wanted: Sequence[Span]) -> Iterator[Batch]:
        for start, stop in wanted:
            part = start if complete else slice(start, stop)
            # asarray: a scalar that is taken out of an array is no array any more
            feed = {name: array if name in shared else np.asarray(array[part]) for name, array in arrays.items()}
            yield Batch(feed, None if labels is None else _labels_of(labels, start, stop, feed, complete), stop - start)

    labels_dtype = None if labels is None else labels.dtype
    return Dataset(where, spans, stream, lambda: digest(arrays, labels), labels_dtype, notes, splittable)


def _one_hot(labels: Array) -> bool:
    """Whether float labels [N, classes] mark one class each, as Keras has them."""
    table = labels.dtype.kind == "f" and labels.ndim == 2 and labels.shape[1] > 1
    return table and bool((np.sort(labels, axis=1) == np.eye(1, labels.shape[1], labels.shape[1] - 1)).all())


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of a file, by name.

    Raises:
        DataError: Not an ``.npz`` file, or broken, or with pickled objects in it.
    """
    with _told(path), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # NumPy returns other files in the archive as bytes
                raise ValueError(f"{name!r} in it is no array")
        return arrays


def describe_npz(path: Path) -> Described:
    """Shapes and types of a file's arrays from their headers; the values stay on disk.

    Raises:
        DataError: As ``read_npz``.
    """
    found = {}
    with _told(path), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            if dtype.hasobject:
                raise ValueError("pickled")
            found[member.removesuffix(".npy")] = (shape, dtype)
    return found


def _sample_axis(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], where: str) -> tuple[int, bool]:
    """The number of samples, and whether each sample is a complete feed (an axis in front of the model's own)."""
    extra: dict[str, int] = {}
    for spec in specs:
        array = arrays[spec.name]
        if array.ndim == 0 and not spec.shape:
            continue  # one scalar for all samples
        extra[spec.name] = 0 if spec.shape is None else array.ndim - len(spec.shape)
        if extra[spec.name] not in (0, 1):
            raise DataError(
                f"the array is {shape_text(array.shape)}, the model takes {shape_text(spec.shape)}",
                where=f"{where}, input {spec.name!r}",
                hint="Give it the rank of the input, with the samples along the first axis, or one more axis in front.",
            )
    lengths = {name: len(arrays[name]) for name in extra}
    if len(set(extra.values())) > 1:
        more = ", ".join(repr(name) for name, axes in extra.items() if axes)
        raise DataError(f"of the inputs only {more} have an axis in front of the model's own", where=where, hint=EXTRA_AXIS)
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        hint = None if any(extra.values()) else f"{EXTRA_AXIS} Or put one feed a file in a folder of .npz files."
        raise DataError(f"the inputs differ in the number of samples: {counts}", where=where, hint=hint)
    return next(iter(lengths.values()), 1), not extra or any(extra.values())


def _labels_of(labels: Array, start: int, stop: int, feed: Mapping[str, Array], complete: bool) -> Array:
    """The labels of one batch. A complete feed may have a label for each of its rows, or one for all."""
    if complete and labels.ndim > 1 and count_samples([array.shape for array in feed.values()]) == labels.shape[1]:
        return np.asarray(labels[start])
    return labels[start:stop]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what NumPy and zipfile raise for a bad file into a DataError that names it."""
    where = str(path)
    try:
        with path.open("rb") as file:
            start = file.read(6)
        if not start:
            raise DataError("the file is empty", where=where)
        if start.startswith(b"\x93NUMPY"):
            raise DataError("this is a single array", where=where, hint="Save it by name: np.savez(path, input=array).")
        if not start.startswith(b"PK"):
            raise DataError("this is not an .npz file", where=where, hint=FORMS)
        yield
    except ValueError as error:
        if "pickle" not in str(error):
            raise DataError(f"the file cannot be read: {error}", where=where) from error
        hint = "They can run code when loaded. Save plain arrays of numbers or of text instead."
        raise DataError("the file holds pickled Python objects", where=where, hint=hint) from None
    except _BROKEN as error:
        raise DataError(f"the file cannot be read: {type(error).__name__} {error}", where=where) from error
