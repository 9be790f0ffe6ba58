"""The values that travel between passes, runtimes and the core."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, get_args

if TYPE_CHECKING:
    import numpy as np

Array: TypeAlias = "np.ndarray"
Feed: TypeAlias = dict[str, Array]
"""One call's inputs by name: every input of the model, complete, batch axis included."""


@dataclass(frozen=True)
class TensorSpec:
    """A model input or output as the user sees it.

    ``shape`` is None when the rank is unknown; a dimension is an int, a symbol (dynamic, shared by name) or None (dynamic).
    ``dtype`` is numpy's; strings are ``object``.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Change:
    """What a pass did at one place, or why it declined to (``done=False``)."""

    site: str
    what: str
    why: str
    done: bool = True


@dataclass(frozen=True)
class Setting:
    """One thing that a LossyPass could do at a site: ``label`` is for people, ``value`` for the pass."""

    label: str
    value: object = None


@dataclass(frozen=True)
class Site:
    """A place where a LossyPass can act, with the settings that it offers there, from gentle to harsh.

    A site with no settings is declined, and ``why`` says for which reason.
    """

    name: str
    op_type: str
    settings: tuple[Setting, ...]
    why: str = ""
    nodes: tuple[str, ...] = ()
    """Names of the model's nodes that the site covers; measured times are attributed by them."""


Plan: TypeAlias = Mapping[Site, Setting]


@dataclass(frozen=True)
class Figure:
    """Numbers that a pass has drawn in the report.

    ``bars``: for each of ``labels`` a bar of each series, the first series being before and the second after.
    ``curves``: each series is a small curve of its own, over 0, 1, 2, ...; ``marks``: how many of its values were taken.
    """

    title: str
    kind: Literal["bars", "curves"]
    series: Mapping[str, Sequence[float]]
    labels: Sequence[str] = ()
    marks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Grade:
    """What one setting of a site would do, by the pass's own estimate from data."""

    damage: float
    """Noise-to-signal ratio that the setting alone adds to the model's outputs, or anything proportional to it."""
    macs: int = 0
    """Multiply-accumulates per sample that it saves."""
    bytes: int = 0
    """Bytes of weights that it saves."""
    milliseconds: float = 0.0
    """Time per run that it saves on the target."""


Goal: TypeAlias = Literal["macs", "bytes", "latency"]
GOALS: tuple[Goal, ...] = get_args(Goal)


@dataclass(frozen=True)
class Remains:
    """A user's goal for the whole model: at most this part of it may remain."""

    of: Goal
    part: float


@dataclass(frozen=True)
class Border:
    """A value of ``elements`` numbers per run passes from ``a``'s operator to ``b``'s (None: something that is no site).

    Where the two have different settings the value must be converted, which costs time.
    """

    a: Site | None
    b: Site | None
    elements: int


class Need(enum.Enum):
    """What a pass cannot do without; the core refuses to start when the user did not give it."""

    DATA = "data"
    LABELS = "labels"


class Progress(Protocol):
    """Tells somebody what is being done and how much is left; the core never prints."""

    def stage(self, what: str, total: float | None = None) -> AbstractContextManager[Callable[[float], None]]:
        """Open a stage of ``total`` steps; the function that it yields is called with the steps just done."""
        ...


@dataclass(frozen=True)
class Budget:
    """What the user allows and wants."""

    max_drop: float | None = None
    """How far the metric may fall, absolute; None: not checked for lossless passes, 0.01 for lossy ones."""
    goal: Literal["latency", "size"] = "latency"


@dataclass
class Silent:
    """A Progress that tells nobody."""

    said: list[str] = field(default_factory=list)

    def stage(self, what: str, total: float | None = None) -> AbstractContextManager[Callable[[float], None]]:
        """Remember the stage's name and ignore its steps."""
        from contextlib import nullcontext

        del total
        self.said.append(what)
        return nullcontext(lambda _steps: None)
