"""Does a candidate compute what the original computes, and is it worth as much? One streaming pass answers both.

Both sessions run each batch; per output, with a the original's values and b the candidate's, over all samples:

    max_abs  max |a - b|
    max_rel  max |a - b| / max |a|
    cosine   a.b / (|a| |b|)
    sqnr_db  10 log10(|a|^2 / |a - b|^2), infinite if equal

They are sums and maxima in float64, so memory does not grow with the samples. Where a or b is NaN or infinite, both must be the
same; these positions are left out of the figures. Bools count as 0 and 1; text counts as 1, and 0 where it differs.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .contracts import Array, Progress, Session, Silent, TensorSpec
from .dataset import Batch, Dataset
from .errors import DataError
from .metrics import MetricFactory

Outputs = dict[str, Array]

TOLERANCES: Mapping[str, float] = {
    "float64": 1e-7,
    "float32": 1e-4,
    "float16": 5e-3,
    "bfloat16": 4e-2,
}
"""The largest ``max_rel`` of an output that counts as equal, by its type: some 10 to 1000 roundings. Others must be equal."""
FILE_BYTES = 8 << 30
"""How much room a reference may take in files."""
_FILED = "biufc"  # kinds of numpy dtypes that a .npy file keeps without pickling
_CHUNK = 1 << 20  # elements of an output that are turned into float64 at a time


@dataclass(frozen=True)
class Divergence:
    """How far one output of the candidate is from the original's, over all samples."""

    max_abs: float
    max_rel: float
    cosine: float
    sqnr_db: float
    equal_nonfinite: bool = True
    """Whether NaN and infinities are at the same places and the same."""


@dataclass(frozen=True)
class MetricResult:
    """A metric of the original and of the candidate; a positive drop is worse."""

    name: str
    before: float
    after: float
    drop: float


@dataclass(frozen=True)
class Evaluation:
    """What one pass over the data showed."""

    samples: int
    outputs: dict[str, Divergence]
    metric: MetricResult | None
    """None if none was asked for, or ``mismatches`` made it meaningless."""
    mismatches: Mapping[str, str] = field(default_factory=dict)

    def mismatched(self) -> list[str]:
        """What cannot be compared at all, in words: an output that is missing, or of another shape or kind."""
        return [f"output {name!r} {problem}" for name, problem in self.mismatches.items()]

    """Outputs that cannot be compared, each with what is wrong with it."""


class Reference:
    """The original's outputs on a dataset, computed once: kept in memory, and what does not fit there in files.

    Args:
        original: The original's session, or what opens it when outputs are asked for that are not kept: then it is closed
            again after each comparison, since a session may hold more memory than its outputs.
        data: What it is run on; ``compare`` takes this dataset or a first part of it.
        limit_bytes: How much memory the outputs may take.
        folder: Where further outputs go, up to ``FILE_BYTES``; None: they are computed again each time.
    """

    def __init__(
        self,
        original: Session | Callable[[], Session],
        data: Dataset,
        limit_bytes: int = 256 << 20,
        folder: Path | None = None,
    ) -> None:
        self.data = data
        self._session = original if isinstance(original, Session) else None
        self._open = None if isinstance(original, Session) else original
        self._room, self._file_room = limit_bytes, FILE_BYTES if folder is not None else 0
        self._folder = folder
        self._kept: dict[tuple[int, int], Outputs] = {}

    def outputs(self, start: int, batch: Batch) -> Outputs:
        """The original's outputs of the batch that begins with sample ``start``, in the model's order."""
        key = (start, batch.samples)
        if key in self._kept:
            return self._kept[key]
        if self._session is None:
            assert self._open is not None
            self._session = self._open()
        outputs = self._session.run(batch.feed)
        size = sum(array.nbytes for array in outputs.values())
        if size <= self._room:
            self._room -= size
            self._kept[key] = outputs
        elif size <= self._file_room and all(array.dtype.kind in _FILED for array in outputs.values()):
            self._file_room -= size
            self._kept[key] = {name: self._filed(array) for name, array in outputs.items()}
        return outputs

    def start(self, session: Session, samples: int) -> None:
        """Compute the outputs on the first samples in a session of the original that is open anyway."""
        own, self._session = self._session, session
        begin = 0
        for batch in self.data.batches(samples):
            self.outputs(begin, batch)
            begin += batch.samples
        self._session = own

    def rest(self) -> None:
        """Close the session until outputs are asked for that are not kept, if it was opened here."""
        if self._open is not None and self._session is not None:
            self._session.close()
            self._session = None

    def _filed(self, array: Array) -> Array:
        assert self._folder is not None
        handle, path = tempfile.mkstemp(dir=self._folder, suffix=".npy")
        with os.fdopen(handle, "wb") as file:
            np.save(file, array)
        mapped: Array = np.load(path, mmap_mode="r")
        return mapped


def compare(
    reference: Session | Reference,
    candidate: Session,
    data: Dataset,
    metric: MetricFactory | None = None,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run both on the data.

    Args:
        reference: The original, or its outputs on this data.
        candidate: The model to judge.
        data: What to run on.
        metric: To measure on both; see ``metrics.choose``.
        limit: Only this many samples.
        progress: Told each sample.

    Raises:
        DataError: The data is broken, or does not fit the metric.
        ModelError: One of the models failed on it.
    """
    kept = reference if isinstance(reference, Reference) else Reference(reference, data, limit_bytes=0)
    assert kept.data.stream is data.stream, "the reference was made for other data"
    data = data if limit is None else data.first(limit)
    differences = Differences()
    meters = (metric(), metric()) if metric is not None else None
    samples = 0
    with (progress or Silent()).stage("comparing with the original", total=data.size) as step:
        for batch in data.batches():
            before, after = kept.outputs(samples, batch), candidate.run(batch.feed)
            differences.update(before, after)
            if meters is not None and not differences.mismatches:
                meters[0].update(before, before, batch.labels, batch.feed)
                meters[1].update(after, before, batch.labels, batch.feed)
            samples += batch.samples
            step(batch.samples)
    kept.rest()
    result = None
    if metric is not None and meters is not None and not differences.mismatches:
        values = meters[0].value(), meters[1].value()
        if math.isnan(values[0]):
            raise DataError(f"the metric {metric.name!r} of the original is not a number on this data", where=data.name)
        result = MetricResult(metric.name, *values, drop=metric.drop(*values))
    return Evaluation(samples, differences.result(), result, differences.mismatches)


def problems(evaluation: Evaluation, outputs: Sequence[TensorSpec], tolerances: Mapping[str, float] | None = None) -> list[str]:
    """Why the candidate is not equal to the original within rounding; empty if it is.

    Args:
        evaluation: What ``compare`` found.
        outputs: The model's outputs, for their types: ``TOLERANCES`` says how large max_rel may be; integers, bools and text
            must be equal.
        tolerances: Other ones, by the output's name.
    """
    found = evaluation.mismatched()
    for spec in outputs:
        divergence = evaluation.outputs.get(spec.name)
        if divergence is None or spec.name in evaluation.mismatches:
            continue
        tolerance = (tolerances or {}).get(spec.name, TOLERANCES.get(spec.dtype.name, 0.0))
        if not divergence.equal_nonfinite:
            found.append(f"output {spec.name!r} has NaN or infinities where the original has none, or the other way round")
        if not divergence.max_rel <= tolerance:
            size = f"{divergence.max_rel:.3g} of its largest value (at most {tolerance:g} for {spec.dtype.name})"
            found.append(
                f"output {spec.name!r} differs by {size if tolerance else f'{divergence.max_abs:g}; it must be equal'}"
            )
    return found


class Differences:
    """What tells the outputs of two models apart, batch by batch."""

    def __init__(self) -> None:
        self.mismatches: dict[str, str] = {}
        """Outputs that cannot be compared, each with what is wrong with it."""
        self._found: dict[str, _Difference] = {}

    def update(self, before: Mapping[str, Array], after: Mapping[str, Array]) -> None:
        """Take the outputs of one batch."""
        for name, expected in before.items():
            found = self._found.setdefault(name, _Difference())
            if (problem := _mismatch(expected, after.get(name))) is not None:
                self.mismatches.setdefault(name, problem)
            else:
                found.update(expected, after[name])

    def result(self) -> dict[str, Divergence]:
        """How far each output is from what it was, in the order of the first model."""
        outputs = {name: found.result() for name, found in self._found.items() if name not in self.mismatches}
        return outputs | {name: Divergence(math.inf, math.inf, 0.0, -math.inf) for name in self.mismatches}


class _Difference:
    """Sums and maxima over all values of one output."""

    def __init__(self) -> None:
        self.largest = self.largest_difference = 0.0
        self.aa = self.bb = self.ab = self.dd = 0.0
        self.equal_nonfinite = True

    def update(self, expected: Array, actual: Array) -> None:
        for a, b, difference in self._chunks(expected, actual):
            self.largest = max(self.largest, float(np.max(np.abs(a), initial=0.0)))
            self.largest_difference = max(self.largest_difference, float(np.max(np.abs(difference), initial=0.0)))
            self.aa += float(a @ a)
            self.bb += float(b @ b)
            self.ab += float(a @ b)
            self.dd += float(difference @ difference)

    def result(self) -> Divergence:
        if self.dd == 0:
            relative, cosine, sqnr = 0.0, 1.0, math.inf
        else:
            relative = self.largest_difference / self.largest if self.largest else math.inf
            norms = math.sqrt(self.aa) * math.sqrt(self.bb)
            cosine = max(-1.0, min(1.0, self.ab / norms)) if norms else 0.0
            sqnr = 10 * math.log10(self.aa / self.dd) if self.aa else -math.inf
        return Divergence(self.largest_difference, relative, cosine, sqnr, self.equal_nonfinite)

    def _chunks(self, expected: Array, actual: Array) -> Iterator[tuple[Array, Array, Array]]:
        """Pieces of both as float64, and their difference, where both are finite."""
        flat_expected, flat_actual = expected.reshape(-1), actual.reshape(-1)
        for start in range(0, flat_expected.size, _CHUNK):
            part_a, part_b = flat_expected[start : start + _CHUNK], flat_actual[start : start + _CHUNK]
            if part_a.dtype.kind in "OUT":
                equal = part_a == part_b
                a, b = np.ones(len(equal)), np.asarray(equal, np.float64)
                yield a, b, a - b
                continue
            a, b = part_a.astype(np.float64), part_b.astype(np.float64)
            finite = np.isfinite(a) & np.isfinite(b)
            if not finite.all():
                self.equal_nonfinite &= np.array_equal(a[~finite], b[~finite], equal_nan=True)
                a, b = a[finite], b[finite]
            difference = a - b
            if part_a.dtype.kind in "iu":  # large integers can differ and be the same in float64
                difference = np.where((difference == 0) & (part_a != part_b), 1.0, difference)
            yield a, b, difference


def _mismatch(expected: Array, actual: Array | None) -> str | None:
    """Why two outputs cannot be compared; None if they can."""
    if actual is None:
        return "is missing"
    if expected.shape != actual.shape:
        return f"has the shape {list(actual.shape)} instead of {list(expected.shape)}"
    if (expected.dtype.kind in "OUT") != (actual.dtype.kind in "OUT"):
        return f"is {actual.dtype} instead of {expected.dtype}"
    return None
