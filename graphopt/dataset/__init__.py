"""Where samples come from: one ``Dataset`` for every form of data, streamed in batches and checked when it is opened.

    source                             what it holds
    ---------------------------------  -------------------------------------------------------------------------------
    ``data.npz``                       arrays named as the inputs, samples along the first axis, and ``labels`` if known
    folder of ``.npz``                 each file a complete feed (batch axis included), and ``labels`` if known
    folder of ``test_data_set_N``      ONNX test data: ``input_K.pb`` in the order of the inputs; outputs are ignored
    folder of images                   see ``images.py``
    ``module:function``                yields complete feeds, dicts by input name, or pairs (feed, labels)

An array of a single ``.npz`` that has the rank of its input counts samples on the batch axis: they are fed in batches if the
model leaves that dimension open, else in the model's own number (one by one where it is 1). With one axis more than the input,
each sample is a complete feed; models with state inputs need this form. A scalar input may also be one scalar for all samples.

With one input and one array beside ``labels`` the names need not match. Pickled objects are never loaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from graphopt.callables import is_callable_name
from graphopt.contracts import Array, Feed, TensorSpec
from graphopt.errors import DataError

from .preflight import EXTRA_AXIS, LABELS, is_fixed, shape_text

Span = tuple[int, int]
Source = str | Path | Mapping[str, Array] | Callable[[], Iterable[object]]
"""A path, ``module:function``, or, from Python, the arrays or the function themselves."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
FORMS = "Data is an .npz file, a folder of .npz files, of ONNX test_data_set_N or of images, or module:function."


@dataclass(frozen=True)
class Batch:
    """One call's inputs, with the labels of its samples if they are known."""

    feed: Feed
    labels: Array | None
    samples: int


@dataclass(frozen=True)
class Dataset:
    """Samples in a fixed order, cut into batches. Streaming holds one batch, whatever the number of samples."""

    name: str
    """For people: the path or the function."""
    spans: tuple[Span, ...]
    """First and last-plus-one sample of each batch."""
    stream: Callable[[Sequence[Span]], Iterator[Batch]]
    """Yields the batches of the given spans, which are the first ones of ``spans``."""
    content: Callable[[], str]
    """Returns a digest of all samples and labels."""
    labels_dtype: np.dtype | None = None
    """Whether labels are classes (int64 and the like) or numbers (floats); None without labels."""
    notes: tuple[str, ...] = ()
    """What was assumed or changed, one sentence each."""
    splittable: bool = False
    """Whether a batch may be cut at any sample."""
    generated: bool = False
    """Whether the samples are made up, so that they say nothing about accuracy."""

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.spans[-1][1]

    @property
    def batch(self) -> int:
        """Samples of the largest batch."""
        return max(stop - start for start, stop in self.spans)

    @property
    def labelled(self) -> bool:
        """Whether each sample has a label."""
        return self.labels_dtype is not None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content and the number of samples."""
        return hashlib.sha256(f"{self.content()} {self.size}".encode()).hexdigest()

    def first(self, samples: int) -> Dataset:
        """The first ``samples`` samples; whole batches only, and one at least, where batches cannot be cut."""
        kept = [span for span in self.spans if span[1] <= samples]
        if self.splittable and len(kept) < len(self.spans) and self.spans[len(kept)][0] < samples:
            kept.append((self.spans[len(kept)][0], samples))
        return replace(self, spans=tuple(kept) or self.spans[:1])

    def batched(self, size: int) -> Dataset:
        """The same samples in batches of ``size``; as it is where batches cannot be cut."""
        if not self.splittable:
            return self
        return replace(self, spans=tuple((start, min(start + size, self.size)) for start in range(0, self.size, size)))

    def batches(self, limit: int | None = None) -> Iterator[Batch]:
        """Yield batches in order, of the first ``limit`` samples only if that is given.

        Raises:
            DataError: A sample that could not be checked before (images, folders, functions) is broken.
        """
        return self.stream((self if limit is None else self.first(limit)).spans)


def open_dataset(source: Source, specs: Sequence[TensorSpec], *, images: str | None = None, batch_size: int = 32) -> Dataset:
    """Open data for a model and check that it fits.

    Args:
        source: A path, ``module:function``, arrays by name as in an ``.npz``, or a function that yields feeds.
        specs: The model's inputs.
        images: How images become arrays, as ``--images`` says it (``images.py``).
        batch_size: Samples a batch where the model leaves it open.

    Raises:
        DataError: The data cannot be read or does not fit the model.
        UsageError: ``images`` is wrong.
        MissingError: Images cannot be read here, because pillow is missing.
    """
    from .feeds import open_function
    from .npz import open_arrays, open_npz

    if isinstance(source, Mapping):
        return _without_images(open_arrays(source, specs, batch_size), images)
    if callable(source):
        return _without_images(open_function(source, specs), images)
    if not isinstance(source, str | Path):
        raise DataError(f"data cannot be a {type(source).__name__}", hint="Give {'input name': array}, a function, or a path.")
    path = Path(source)
    if path.is_dir():
        try:
            return _open_folder(path, specs, images, batch_size)
        except OSError as error:
            raise DataError(f"the folder cannot be read: {error.strerror}", where=str(error.filename or path)) from error
    if path.is_file():
        found = open_npz(path, specs, batch_size)
    elif is_callable_name(str(source)):
        found = open_function(str(source), specs)
    else:
        raise DataError("there is no such file or folder", where=str(source), hint=FORMS)
    return _without_images(found, images)


def _open_folder(path: Path, specs: Sequence[TensorSpec], images: str | None, batch_size: int) -> Dataset:
    """Find out which form of data the folder holds, and open it."""
    from .feeds import open_npz_folder, open_test_data
    from .images import open_images

    visible = sorted(item for item in path.iterdir() if not item.name.startswith("."))
    archives = [item for item in visible if item.suffix == ".npz"]
    sets = [item for item in visible if item.is_dir() and item.name.startswith("test_data_set")]
    if (path / "input_0.pb").is_file():
        sets = [path]
    has_images = any(item.suffix.lower() in IMAGE_SUFFIXES for item in path.rglob("*"))
    present = [form for form, there in ((".npz files", archives), ("ONNX test data", sets), ("images", has_images)) if there]
    if len(present) > 1:
        raise DataError(f"the folder holds {' and '.join(present)}", where=str(path), hint="Keep one form of data a folder.")
    if has_images:
        return open_images(path, specs, images, batch_size)
    if archives:
        return _without_images(open_npz_folder(path, archives, specs), images)
    if sets:
        return _without_images(open_test_data(path, sorted(sets, key=_by_number), specs), images)
    raise DataError("the folder holds no data", where=str(path), hint=FORMS)


def _without_images(found: Dataset, images: str | None) -> Dataset:
    """Say that ``--images`` had no effect: one option serves ``--data`` and ``--eval``, which may differ in form."""
    note = f"--images was not used for {found.name}, which is no folder of images."
    return found if images is None else replace(found, notes=(*found.notes, note))


def _by_number(path: Path) -> list[int | str]:
    """Sorts test_data_set_10 after test_data_set_9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def batch_spans(
    samples: int, specs: Sequence[TensorSpec], batch_size: int, where: str
) -> tuple[tuple[Span, ...], bool, tuple[str, ...]]:
    """Cut samples into batches as the model takes them.

    Returns:
        The spans; whether a batch may be cut further; a note if samples at the end do not fill a batch of a fixed size.

    Raises:
        DataError: The inputs have different fixed batch sizes, or there are fewer samples than one batch takes.
    """
    fixed = {dim for dim in (spec.shape[0] for spec in specs if spec.shape) if is_fixed(dim)}
    if len(fixed) > 1:
        first = ", ".join(f"{spec.name!r} {shape_text(spec.shape)}" for spec in specs)
        raise DataError(
            f"the first axes of the inputs differ ({first}), so they do not count samples", where=where, hint=EXTRA_AXIS
        )
    size = next(iter(fixed), batch_size)
    whole = samples - samples % size if fixed else samples
    if whole == 0:
        raise DataError(f"{samples} samples do not fill one batch: the model takes {size} at a time", where=where)
    spans = tuple((start, min(start + size, whole)) for start in range(0, whole, size))
    left_out = f"The last {samples - whole} of {samples} samples were left out: the model takes {size} at a time."
    return spans, not fixed, (left_out,) if whole < samples else ()


def digest(feed: Mapping[str, Array], labels: Array | None = None) -> str:
    """SHA-256 over names, types, shapes and values."""
    found = hashlib.sha256()
    for name, array in [*feed.items(), *(() if labels is None else ((LABELS, labels),))]:
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        if array.dtype.kind == "O":
            found.update("\0".join(map(str, array.ravel())).encode())
        else:
            found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()
