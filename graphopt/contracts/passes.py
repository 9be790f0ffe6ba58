"""What a pass must provide, and what it is given."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from .values import GOALS, Border, Change, Figure, Grade, Need, Plan, Progress, Remains, Setting, Site

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from graphopt.dataset import Dataset
    from graphopt.observe import Cache, Observer, Result
    from graphopt.partitions import Cut
    from graphopt.targets import Target

    from .runtimes import Network, NodeTime, Session


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
    part: float = 1.0
    """The part of the way to its goal that a pass of several rounds goes up to this one."""
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

    def network(self, model: ir.Model) -> Network:
        """The model with gradients, which torch computes; its nodes and values must stay as they are.

        Raises:
            MissingError: Torch is not installed.
            ModelError: The model has operators that cannot be differentiated; all of them are named.
        """
        from graphopt import targets

        return targets.runtime(targets.load(targets.GRADIENTS)).network(model)


class BasePass(abc.ABC):
    """What both kinds of pass share. Class variables describe the pass to ``graphopt passes`` and to the core."""

    name: ClassVar[str]
    """``family`` or ``family.kind``, the key in recipes and in ``--set name.option=value``."""
    summary: ClassVar[str]
    """One line for ``graphopt passes``."""
    Options: ClassVar[type[PassOptions]] = PassOptions
    needs: ClassVar[frozenset[Need]] = frozenset()
    settles: ClassVar[bool] = False
    """Whether a second run would change nothing: a recipe that names the pass again runs it only if others changed something
    in between."""
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

    def rounds(self) -> int:
        """In how many steps a ``graded`` pass reaches its goal: after each, its sites are listed and graded again."""
        return 1

    def figures(self, plan: Plan) -> Sequence[Figure]:
        """What of a plan for the model that was worked on last is worth a drawing in the report; nothing by default."""
        del plan
        return ()

    def borders(self, model: ir.Model, sites: Sequence[Site]) -> Sequence[Border]:
        """The values that pass between sites, where neighbours with different settings must convert them; none by default."""
        del model, sites
        return ()
