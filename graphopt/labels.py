"""Scores, classes and labels in the shapes that models and data give them.

Scores are [N, C], also with axes of size 1 behind ([N, C, 1, 1]), and labels [N]. If labels have more axes, the axis
that they lack is the classes': the last one of [N, T, C] or axis 1 of [N, C, H, W]. An integer output as large as the labels
holds the classes themselves. A single score [N] or [N, 1] says class 1 when above 0, or above 0.5 if all are between 0 and 1.
Labels of -100 are left out. A row of scores with a NaN in it names no class.
"""

from __future__ import annotations

import numpy as np

from .contracts import Array
from .errors import DataError

IGNORED = -100
"""The label of what must not be counted, by convention."""
NO_CLASS = -1


def are_classes(output: Array, labels: Array) -> bool:
    """Whether the output holds classes rather than scores."""
    return output.dtype.kind in "iub" and output.size == labels.size


def winners(scores: Array) -> Array:
    """The class with the highest score in each row; ``NO_CLASS`` if one of the scores is NaN."""
    return np.where(np.isnan(scores).any(axis=1), NO_CLASS, scores.argmax(axis=1))


def plain(scores: Array) -> Array:
    """[N, C, 1, 1] as [N, C]."""
    return scores.reshape(scores.shape[:2]) if scores.ndim > 2 and set(scores.shape[2:]) == {1} else scores


def flat(found: Array, classes: Array) -> tuple[Array, Array]:
    """Classes that a model gives and labels, both flat and int64."""
    return found.reshape(-1).astype(np.int64), _integers(classes).reshape(-1)


def scored(scores: Array, classes: Array, output: str) -> tuple[Array, Array]:
    """Scores [K, C] and classes [K], int64, of everything that has a label.

    Raises:
        DataError: They do not belong together, or a label is no class.
    """
    scores, classes = plain(scores), _integers(classes)
    if classes.ndim > 1 and classes.size == len(classes) and scores.ndim == 2:
        classes = classes.reshape(-1)
    if scores.ndim > 2 and classes.shape != scores.shape[:-1]:
        scores = np.moveaxis(scores, 1, -1)
    if scores.ndim < 2 or classes.shape != scores.shape[:-1]:
        what = f"the labels are {list(classes.shape)}, the scores {list(scores.shape)}"
        raise DataError(f"{what}: they do not belong together", where=f"output {output!r}")
    scores, classes = scores.reshape(-1, scores.shape[-1]), classes.reshape(-1)
    kept = classes != IGNORED
    return scores[kept], in_range(classes[kept], scores.shape[-1], output)


def _integers(classes: Array) -> Array:
    if classes.dtype.kind == "f" and not np.all(classes == np.rint(classes)):
        raise DataError("the labels are fractions, not classes", hint="Use --metric mse, or a function of your own.")
    return classes.astype(np.int64)


def in_range(classes: Array, count: int, output: str) -> Array:
    """The classes, integers.

    Raises:
        DataError: One is below 0, or not below ``count``.
    """
    outside = classes[(classes < 0) | (classes >= count)]
    if outside.size:
        hint = "If the model has a class for background, shift the labels by one (--images label-offset=1)."
        what = f"the label {outside[0]} is none of the {count} classes (0 to {count - 1})"
        raise DataError(what, where=f"output {output!r}", hint=hint)
    return classes
