"""Checks arrays against a model's inputs before any long work: names, shapes, types, values.

Casts that keep every value are made and told in a note; all others are refused.

    given                model takes          condition
    -------------------  -------------------  ---------------------------------------------------------
    a float              a float              nothing becomes infinite
    bool, an integer     an integer, a float  every value stays exactly what it is
    text                 strings
    raw 1 or 2 bytes     bfloat16, float8     the same width: NumPy saves these types as raw bytes

NaN and infinities are refused, after the cast, naming the sample.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import TypeGuard, TypeVar

import numpy as np

from graphopt.contracts import Array, TensorSpec
from graphopt.errors import DataError

LABELS = "labels"
Shape = tuple[int, ...]
Dim = int | str | None
Described = Mapping[str, tuple[Shape, np.dtype]]
"""Shapes and types of arrays by name."""
Value = TypeVar("Value")

EXTRA_AXIS = "Give every array one more axis in front: each sample is then a complete feed."

_ANONYMOUS = {"", "?", "-1", "None", "none", "unknown"}
"""Names that exporters give to dimensions about which they know nothing: two of the same name need not be equal."""
_CASTS = {
    ("float", "float"),
    ("integer", "integer"),
    ("integer", "float"),
    ("bool", "integer"),
    ("bool", "float"),
    ("bool", "bool"),
    ("text", "text"),
}
_CHUNK = 1 << 22  # elements looked at in one go, so that checking needs little memory


def symbol(dim: Dim) -> str | None:
    """The name of a dynamic dimension that is shared by name; None for a fixed or an anonymous one."""
    return dim if isinstance(dim, str) and dim not in _ANONYMOUS else None


def is_fixed(dim: Dim) -> TypeGuard[int]:
    """Whether the model fixes the size."""
    return isinstance(dim, int) and dim >= 0


def shape_text(shape: Sequence[Dim] | None) -> str:
    """A shape for people: ``[N, 3, ?, ?]``."""
    if shape is None:
        return "[any shape]"
    return f"[{', '.join(str(dim) if is_fixed(dim) or symbol(dim) else '?' for dim in shape)}]"


def match_names(
    given: Mapping[str, Value], specs: Sequence[TensorSpec], where: str
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """Order ``given`` as the model's inputs; one array for one input needs no matching name.

    Returns:
        Every input by name, and a note when an array with another name was used.

    Raises:
        DataError: A name is unknown or missing, with the nearest names.
    """
    names = [spec.name for spec in specs]
    if len(names) == len(given) == 1 and names[0] not in given:
        (used,) = given
        return {names[0]: given[used]}, (f"The array {used!r} was used for the input {names[0]!r}.",)
    inputs = ", ".join(f"{spec.name!r} {shape_text(spec.shape)}" for spec in specs)
    for name in given:
        if name not in names:
            near = _nearest(name, [*(n for n in names if n not in given), LABELS])
            raise DataError(f"no input of the model is called {name!r}", where=where, hint=f"{near}The inputs are {inputs}.")
    for name in names:
        if name not in given:
            raise DataError(f"the input {name!r} is missing", where=where, hint=f"The inputs are {inputs}.")
    return {name: given[name] for name in names}, ()


def check_shapes(shapes: Mapping[str, Shape], specs: Sequence[TensorSpec], where: str, *, samples_first: bool = False) -> None:
    """Check the shapes of one complete feed; with ``samples_first`` the first axis may have any length.

    Raises:
        DataError: A rank or a fixed dimension is wrong, or one symbol would have two sizes.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        shape = shapes[spec.name]
        if spec.shape is None:
            continue
        place = f"{where}, input {spec.name!r}"
        against = f"the array is {shape_text(shape)}, the model takes {shape_text(spec.shape)}"
        if len(shape) != len(spec.shape):
            raise DataError(f"{against}: {len(shape)} axes instead of {len(spec.shape)}", where=place)
        for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
            if axis == 0 and samples_first:
                continue
            if is_fixed(dim) and size != dim:
                raise DataError(
                    f"{against}: axis {axis} is {size} instead of {dim}", where=place, hint=_order(shape, spec.shape)
                )
            if (name := symbol(dim)) is not None:
                known, other = sizes.setdefault(name, (size, spec.name))
                if known != size:
                    raise DataError(f"{against}: {name} is {size} here and {known} in the input {other!r}", where=place)


def check_dtype(dtype: np.dtype, spec: TensorSpec, where: str) -> tuple[str, ...]:
    """Whether a cast to the input's type is allowed at all.

    Returns:
        A note if a cast is made that a reader should know about.

    Raises:
        DataError: No safe cast exists.
    """
    given, takes = _kind(dtype), "text" if spec.dtype.kind == "O" else _kind(spec.dtype)
    if (given, takes) in _CASTS:
        if given == takes and (takes in {"text", "bool"} or dtype.newbyteorder("=") == spec.dtype):
            return ()
        return (f"Input {spec.name!r}: {dtype} was cast to {spec.dtype}.",)
    if given == "raw" and takes == "float" and dtype.itemsize == spec.dtype.itemsize:
        return ()
    if given == "object" and takes == "text":
        return ()  # each element is looked at by `convert`
    place = f"{where}, input {spec.name!r}"
    if given == "object":
        raise DataError("the array holds Python objects, not numbers", where=place, hint="Save plain arrays of numbers.")
    kind = "strings" if takes == "text" else str(spec.dtype)
    raise DataError(f"the array is {dtype}, the model takes {kind}, and no cast is safe", where=place)


def convert(array: Array, spec: TensorSpec, where: str, *, samples_first: bool, first: int = 0) -> Array:
    """The array in the input's type, with every value checked; the same memory when nothing need be changed.

    Args:
        array: Of a type that ``check_dtype`` allows.
        spec: The input.
        where: The file.
        samples_first: Whether axis 0 counts samples, so that an error can name the sample.
        first: The number of the first sample.

    Raises:
        DataError: A value does not survive the cast, or is NaN or infinite.
    """
    place = f"{where}, input {spec.name!r}"
    if spec.dtype.kind == "O":
        return _strings(array, place)
    if _kind(array.dtype) == "raw":
        array = array.view(spec.dtype)
    result = array
    if array.dtype != spec.dtype:
        with np.errstate(all="ignore"):  # what overflows is found below
            result = array.astype(spec.dtype)
    exact = result is not array and _kind(array.dtype) == "integer"
    if not exact and _kind(spec.dtype) != "float":
        return result
    rows, given = (result, array) if samples_first else (result[np.newaxis], array[np.newaxis])
    step = max(1, _CHUNK // max(1, rows[:1].size))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        bad = rows[part] != given[part] if exact else ~np.isfinite(rows[part])
        if bad.any():
            index = np.unravel_index(int(np.argmax(bad)), bad.shape)
            value = given[part][index]
            here = f"{place}, sample {first + start + int(index[0])}" if samples_first else place
            if exact or np.isfinite(value):
                raise DataError(f"the value {value} does not fit the model's {spec.dtype}", where=here)
            raise DataError(
                f"a value is {'NaN' if np.isnan(value) else 'infinite'}", where=here, hint="Mend or drop the sample."
            )
    return result


def check_labels(labels: Array, samples: int, where: str) -> Array:
    """Labels are numbers, finite, and as many as there are samples.

    Raises:
        DataError: They are not.
    """
    place = f"{where}, {LABELS!r}"
    if labels.dtype.kind not in "biuf":
        hint = "Number the classes: names = sorted(set(labels)); np.searchsorted(names, labels)."
        raise DataError(f"the labels are {labels.dtype}, not numbers", where=place, hint=hint)
    if labels.ndim == 0 and samples == 1:
        labels = labels[np.newaxis]
    count = 1 if labels.ndim == 0 else len(labels)
    if count != samples:
        raise DataError(f"there are {count} labels for {samples} samples", where=place)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        row = int(np.argmin(np.isfinite(labels).reshape(samples, -1).all(axis=1)))
        raise DataError(f"the label of sample {row} is NaN or infinite", where=place)
    return labels.astype(np.int64) if labels.dtype.kind in "bu" else labels


def count_samples(shapes: Collection[Shape]) -> int:
    """Samples in a complete feed: the length of the first axis if all inputs but scalars share it, else one."""
    lengths = {shape[0] for shape in shapes if shape}
    return lengths.pop() if len(lengths) == 1 else 1


def _kind(dtype: np.dtype) -> str:
    """The family of a type; bfloat16, float8 and int4 are NumPy extension types known by their names only."""
    if dtype.kind in "UST":
        return "bytes" if dtype.kind == "S" else "text"
    if dtype.kind == "O":
        return "object"
    for family in ("float", "int", "bool"):
        if family in dtype.name:
            return "integer" if family == "int" else family
    return "raw" if dtype.kind == "V" and dtype.names is None else dtype.name


def _strings(array: Array, place: str) -> Array:
    result = array.astype(object)
    for index, element in np.ndenumerate(result):
        if not isinstance(element, str):
            raise DataError(f"element {list(index)} is {type(element).__name__}, not text", where=place)
    return result


def _order(shape: Shape, takes: Sequence[Dim]) -> str | None:
    fixed = sorted(dim for dim in takes[1:] if isinstance(dim, int))
    if len(fixed) == len(takes) - 1 and sorted(shape[1:]) == fixed:
        return "The sizes are right in another order: transpose the array."
    return None


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}? " if near else ""
