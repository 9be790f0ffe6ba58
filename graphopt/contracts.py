"""The blueprint: what a pass and a runtime must provide, and the values that travel between them and the core.

    Pass       rewrites a graph without changing what it computes
    LossyPass  offers Sites with settings from gentle to harsh; the core chooses, the pass applies
    Context    what a pass may use: sessions, data, target, random generator. It never opens files or prints
    Runtime    an engine that can run a model: opens a Session, profiles, says which nodes it takes

Passes and runtimes are found through the entry-point groups ``graphopt.passes`` and ``graphopt.runtimes``
(``registry.py``), so a third party adds one by installing a package that names a subclass there. CONTRIBUTING.md shows
both on a page each.
"""

from __future__ import annotations

import abc
import enum
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from graphopt.dataset import Dataset
    from graphopt.observe import Cache, Observer, Result
    from graphopt.partitions import Cut
    from graphopt.targets import Target

Array: TypeAlias = "np.ndarray"
Feed: TypeAlias = dict[str, Array]
"""One call's inputs by name: every input of the model, complete, batch axis included."""

# ---------------------------------------------------------------------------------------------------------------- values


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


# ---------------------------------------------------------------------------------------------------------------- passes


class PassOptions(BaseModel):
    """Base of a pass's options: each field has a type, a default and a description (with its unit)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _switch(cls, value: object, info: ValidationInfo) -> object:
        """YAML reads ``on`` and ``off`` as booleans; an option that takes these words gets them back."""
        field = cls.model_fields.get(info.field_name or "")
        if isinstance(value, bool) and field is not None and {"on", "off"} <= {*get_args(field.annotation)}:
            return "on" if value else "off"
        return value


@dataclass(frozen=True)
class Context:
    """What the core hands to a pass. A pass uses this and nothing else from outside."""

    target: Target
    open_session: Callable[[ir.Model], Session]
    """Opens any model where answers count: on onnxruntime's CPU provider if it is here, whatever the target is.
    The caller closes it (``with context.open_session(model) as session``)."""
    data: Dataset | None
    """The user's unlabelled data, else generated inputs (``data.generated``); None when the run opens no session."""
    rng: np.random.Generator
    progress: Progress
    profile: Callable[[ir.Model], Sequence[NodeTime]] | None = None
    """Times a model's nodes on the target, on the first sample of the data; None when nothing is timed."""
    partition: Callable[[ir.Model], Cut | None] | None = None
    """How the target's provider cuts a model into partitions; None: nothing is known of what it takes, or of this model."""
    goal: Literal["latency", "size"] = "latency"
    exclude: Sequence[str] = ()
    """Glob patterns of node or site names that must be left alone."""
    draft: bool = False
    """Whether the result is only timed, or used to rank sites: what serves accuracy alone and takes long may be left out."""
    growth_bytes: int | None = None
    """By how many bytes this pass may still make the weights grow; None: a pass decides (1 MB or 5 %)."""
    observed: Cache | None = None
    """What was observed so far; ``observe`` uses it."""

    def observe(
        self, model: ir.Model, wanted: Mapping[str, Sequence[Observer]], samples: int | None = None
    ) -> dict[str, tuple[Result, ...]]:
        """What observers find of values of ``model`` on the run's data; see ``graphopt.observe.collect``.

        Raises:
            DataError, ModelError: As ``collect``.
        """
        from graphopt import observe

        assert self.data is not None, "a pass that observes needs data"
        return observe.collect(
            model,
            wanted,
            data=self.data,
            open_session=self.open_session,
            progress=self.progress,
            samples=samples,
            cache=self.observed,
        )


class BasePass(abc.ABC):
    """What both kinds of pass share. Class variables describe the pass to ``graphopt passes`` and to the core."""

    name: ClassVar[str]
    """``family`` or ``family.kind``, the key in recipes and in ``--set name.option=value``."""
    summary: ClassVar[str]
    """One line for ``graphopt passes``."""
    Options: ClassVar[type[PassOptions]] = PassOptions
    needs: ClassVar[frozenset[Need]] = frozenset()
    added_by_set: ClassVar[bool] = False
    """Whether ``--set name.option=value`` is enough to ask for the pass: a recipe that lacks it gets it as its first step."""

    def __init__(self, options: PassOptions | None = None) -> None:
        self.options = self.Options() if options is None else options


class Pass(BasePass):
    """A lossless rewrite: the outputs stay equal within floating-point rounding, or the core undoes it.

    ========================  =================================================================
    the model that is given   may be changed in place; the core keeps its own clone
    inputs and outputs        names, types, order and dynamic dimensions stay (but see ``changes_signature``)
    metadata                  stays
    a place left alone        gets a Change with ``done=False`` if a user would ask "why not?"
    an exception              means a defect: the pass is undone and named in the report
    ========================  =================================================================
    """

    changes_signature: ClassVar[bool] = False
    """Whether the user asks, with the pass, that dynamic dimensions of inputs and outputs become fixed. Names, order, types,
    ranks and fixed dimensions stay. ``apply`` is then called once more, on a clone before the run, to learn which data fit
    both models: on these everything is compared and timed."""

    @abc.abstractmethod
    def apply(self, model: ir.Model, context: Context) -> Sequence[Change]:
        """Rewrite ``model`` in place and say what was done."""


class LossyPass(BasePass):
    """A rewrite that may cost accuracy. The core chooses a setting per site under the user's budget."""

    graded: ClassVar[bool] = False
    """Whether sites have many settings, chosen one by one: ``grades`` says what each one saves and costs."""
    per_site: ClassVar[bool] = False
    """Whether each site may be changed or left alone for itself, by measured time and accuracy; else all go together, from
    harsh to gentle. ``apply`` is then called for many plans on clones of one model: it ought to keep what it can use again."""

    @abc.abstractmethod
    def sites(self, model: ir.Model, context: Context) -> Sequence[Site]:
        """List every place where the pass could act, declined ones included; ``model`` stays as it is."""

    @abc.abstractmethod
    def apply(self, model: ir.Model, plan: Plan, context: Context) -> Sequence[Change]:
        """Rewrite ``model`` in place as planned; sites that are not in ``plan`` are left alone."""

    def grades(self, model: ir.Model, sites: Sequence[Site], context: Context) -> Mapping[tuple[Site, Setting], Grade]:
        """What each setting of each site alone would save, and what it would cost; only asked of a ``graded`` pass."""
        del model, sites, context
        return {}

    def remains(self) -> Remains | None:
        """What the user's options allow to remain of the whole model; None: save as much as the budget of accuracy allows.

        An option that states such a goal is called ``macs``, ``bytes`` or ``latency``, in every pass.
        """
        stated = ((of, getattr(self.options, of, None)) for of in GOALS)
        return next((Remains(of, part) for of, part in stated if part is not None), None)

    def decided(self) -> bool:
        """Whether the options say how much is to be saved: then no budget of accuracy is assumed where the user gives none."""
        return self.remains() is not None

    def figures(self, plan: Plan) -> Sequence[Figure]:
        """What of a plan for the model that was worked on last is worth a drawing in the report; nothing by default."""
        del plan
        return ()

    def borders(self, model: ir.Model, sites: Sequence[Site]) -> Sequence[Border]:
        """The values that pass between sites, where neighbours with different settings must convert them; none by default."""
        del model, sites
        return ()


# -------------------------------------------------------------------------------------------------------------- runtimes


@dataclass(frozen=True)
class Availability:
    """Whether a runtime can run a target here. When not: ``why``, and the line that would mend it (``hint``)."""

    ok: bool
    version: str = ""
    why: str = ""
    hint: str = ""
    timed: bool = True
    """Whether times mean anything: not in a simulator, or on another processor than the device's (``why`` says which)."""


@dataclass(frozen=True)
class NodeTime:
    """Median time of one node of the graph as the runtime executes it, per run of the model."""

    name: str
    op_type: str
    provider: str
    milliseconds: float
    origin: str = ""
    """Name of the model's node that it was made of, or of a value that this one computes; of several fused ones, the last."""
    integer: bool = False
    """Whether the kernel computes in integers."""


@dataclass(frozen=True)
class Partition:
    """Which provider takes how many nodes, and which nodes stay behind (name, operator, provider) on another one."""

    nodes: Mapping[str, int]
    left_behind: Sequence[tuple[str, str, str]] = ()
    parts: int | None = None
    """Into how many pieces the nodes fall that the provider takes, each with a hand-over before and after; None: not known."""


@dataclass(frozen=True)
class Example:
    """One call of a model: what it is given, and what it answers on onnxruntime's CPU provider."""

    feed: Feed
    outputs: Mapping[str, Array]


@dataclass(frozen=True)
class Packaged:
    """What a runtime put into a package besides the model, or in place of it."""

    outputs: Mapping[str, Array]
    """What the files in the folder, loaded as the device loads them, answer to the example."""
    readme: str
    """How to use them there, in Markdown; its headings are of the second level."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the manifest says of the choices that were made; JSON can hold it."""
    notes: Sequence[str] = ()
    """What the user should know, one sentence each."""


@dataclass(frozen=True)
class SessionOptions:
    """How a session runs. One thread is what timing by CPU time needs (``timing.py``)."""

    threads: int = 1
    optimize: bool = True
    """Whether the runtime may apply its own graph optimizations, as it would when deployed."""


class Session(abc.ABC):
    """A model that is loaded and can be run. A context manager; ``close`` frees its memory."""

    provider: str
    """The execution provider that really runs the model, read back after loading."""
    clock: Literal["cpu", "wall"] = "wall"
    """Which clock is trustworthy for this session: CPU time of the thread that computes, or wall time."""
    threads: int = 1
    load_seconds: float
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    partition: Partition | None = None
    """Which provider runs which nodes, read back after loading; None when the runtime does not tell."""

    @abc.abstractmethod
    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            ModelError: The runtime refused the feed or failed in a node (named in the message).
        """

    def time(self, feed: Mapping[str, Array], repeats: int) -> tuple[float, float]:
        """CPU seconds and wall seconds of one run: the mean of at least this many, one after the other.

        Here they are those of the calling thread. An engine in another process measures there, so that what it takes to reach
        it is not counted.

        Raises:
            ModelError, DataError: As ``run``.
        """
        wall, cpu = time.perf_counter(), time.thread_time()
        for _ in range(repeats):
            self.run(feed)
        return (time.thread_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats

    def accepts(self, feed: Mapping[str, Array]) -> bool:
        """Whether the feed can be run, found by running it."""
        from .errors import GraphoptError

        try:
            self.run(feed)
        except GraphoptError:
            return False
        return True

    def close(self) -> None:  # noqa: B027 - a runtime with nothing to free need not say so
        """Free what the session holds; it cannot run afterwards."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Runtime(abc.ABC):
    """An engine. One instance per process, created without arguments; heavy imports happen inside the methods."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abc.abstractmethod
    def availability(self, target: Target) -> Availability:
        """Whether the target really runs here: decided by running something, not by asking for a list."""

    def require(self, target: Target) -> None:
        """Refuse a target that does not run here.

        Raises:
            MissingError: With the reason, and the line that would mend it.
        """
        from .errors import MissingError

        available = self.availability(target)
        if not available.ok:
            raise MissingError(available.why, where=f"target {target.name}", hint=available.hint or None)

    @abc.abstractmethod
    def open(self, model: Path, target: Target, options: SessionOptions = SessionOptions()) -> Session:
        """Load the file on the target.

        Raises:
            ModelError: The runtime cannot load the model; the message names the node where it can.
            MissingError: The runtime or the provider is missing here, or another provider was used in its place.
        """

    @abc.abstractmethod
    def profile(self, model: Path, target: Target, feed: Feed, rounds: int = 10) -> Sequence[NodeTime]:
        """Time per node, in the graph that the runtime made of the model."""

    @abc.abstractmethod
    def partition(self, model: Path, target: Target) -> Partition:
        """Which nodes the target's provider takes."""

    def package(self, model: Path, target: Target, folder: Path, example: Example, progress: Progress) -> Packaged | None:
        """Make of the folder what the device needs: it holds the model (``model``) and nothing else so far.

        The model may be replaced by another form of it. None: the model is all that is needed.

        Raises:
            ModelError: The model cannot be brought into the form, or what came out cannot be run.
            MissingError: What makes the package is not here.
        """
        del model, target, folder, example, progress
        return None


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
