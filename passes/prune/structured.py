"""The engine of ``prune.channels``, ``prune.heads`` and ``prune.layers``: what goes is removed, what is left is fitted to data.

    which channels go together (``graphopt.axes``)  ->  the order of each group's units by the error they leave (``selection``)
    which blocks can be left out (``blocks``)
    the core chooses how many of each, and which  ->  remove  ->  fit what is left to what the original gave (``refit``)

No labels and no training. What a choice costs is estimated (``damage``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from pydantic import Field, model_validator

from graphopt import axes, cost
from graphopt import model as models
from graphopt.axes import Group
from graphopt.contracts import Array, Change, Context, Figure, Grade, LossyPass, Need, PassOptions, Plan, Setting, Site
from graphopt.reconstruct import Step, refit

from . import criteria, damage, gradients, readers, selection, shares
from .parts import Parts, prepared
from .refit import Past, Version
from .selection import Reader, Selection

_STEPS = 16
"""Settings of a group: so many even steps from none of its units to all."""
_HARSHEST = 0.875
_ALIGNED = 4
"""On the clock numbers of units are multiples of it: onnxruntime convolves others without its fast layout, slower than more."""
_SAMPLES = 1000
_MOST_ROUNDS = 20
LEFT_OUT = Setting("left out", "left out")
"""The one setting of a block."""


class Goals(PassOptions):
    """What is to be saved, or as much as the budget of accuracy allows; and on what the rest is fitted."""

    macs: float | None = Field(None, gt=0, lt=1, description="the part of the model's multiply-accumulates that may remain")
    bytes: float | None = Field(None, gt=0, lt=1, description="the part of the file's bytes that may remain")
    latency: float | None = Field(None, gt=0, lt=1, description="the part of the model's time that may remain")
    reconstruct: bool = Field(True, description="whether the weights that are left are fitted to the original's values")
    samples: int = Field(_SAMPLES, ge=1, description="samples of the data that are used at most")
    rounds: int = Field(
        1, ge=1, le=_MOST_ROUNDS, description="the goal is reached in so many steps; in between what is left is weighed again"
    )

    @model_validator(mode="after")
    def _one_goal(self) -> Goals:
        goals = [name for name in ("ratio", "macs", "bytes", "latency") if getattr(self, name, None) is not None]
        if len(goals) > 1:
            raise ValueError(f"{' and '.join(goals)} exclude one another")
        return self


class UnitOptions(Goals):
    """Which units of a group go, and how many."""

    ratio: float | None = Field(None, gt=0, lt=1, description="the part of every group's units to remove")
    criterion: criteria.Criterion = Field("reconstruction", description="what decides which units of a group go")


@dataclass
class _Known:
    """What was found out about a model, by the names of its sites."""

    weights: tuple[ir.TensorProtocol, ...]
    """Held, so that their ids stay their own."""
    selections: dict[str, Selection] = field(default_factory=dict)
    times: dict[str, tuple[float, dict[Setting, float]]] = field(default_factory=dict)
    """By site: milliseconds of the layers that make or read it, and what of them each setting saves; where measured."""
    sizes: dict[str, int] = field(default_factory=dict)
    """By site: units, or 1 of a block; of declined ones too."""
    declined: frozenset[str] = frozenset()

    def offered(self) -> dict[str, int]:
        """The sizes of sites that are not declined."""
        return {name: size for name, size in self.sizes.items() if name not in self.declined}


class Structured(LossyPass):
    """Structured pruning; see the module. A pass says which groups it takes, and whether blocks.

    Raises (in ``sites``, ``grades`` and ``apply``):
        DataError, ModelError: As ``Context.observe``.
    """

    options: Goals
    needs = frozenset({Need.DATA})
    graded = True

    def __init__(self, options: PassOptions | None = None) -> None:
        super().__init__(options)
        self._known: _Known | None = None
        self._past: Past | None = None
        self._made: Past | None = None

    # ---------------------------------------------------------------------------------------------- what a pass decides

    def takes(self, group: Group) -> bool:
        """Whether units of this group are offered."""
        del group
        return True

    def takes_blocks(self) -> bool:
        """Whether whole blocks are offered."""
        return True

    @property
    def ratio(self) -> float | None:
        """The part of every group's units that goes, where it is fixed."""
        return self.options.ratio if isinstance(self.options, UnitOptions) else None

    @property
    def criterion(self) -> criteria.Criterion:
        """What decides which units go."""
        return self.options.criterion if isinstance(self.options, UnitOptions) else "reconstruction"

    def multiple(self, context: Context) -> int:
        """Of how many units a multiple stays: where time is to be saved, what the target computes at once."""
        timed = context.profile is not None and context.goal == "latency"
        return context.target.channels_at_once if self.options.latency or (timed and not self.decided()) else 1

    def least(self) -> int:
        """So many units of each group stay."""
        return 1

    # -------------------------------------------------------------------------------------------------------- for the core

    def decided(self) -> bool:
        """Whether the options say how much goes."""
        return self.remains() is not None or self.ratio is not None

    def rounds(self) -> int:
        """As the options say."""
        return self.options.rounds

    def sites(self, model: ir.Model, context: Context) -> Sequence[Site]:
        """Every group of units that go together, with the numbers that may go, and every block; declined ones with why."""
        self._recall(model)
        parts = self._parts(prepared(model), context)
        found = [self._site(name, group, context) for name, group in parts.groups.items()]
        for name, block in parts.blocks.items():
            nodes = tuple(node.name or "" for node in (block.join, *block.nodes))
            found.append(Site(name, block.join.op_type, (LEFT_OUT,), nodes=nodes))
        return found

    def grades(self, model: ir.Model, sites: Sequence[Site], context: Context) -> Mapping[tuple[Site, Setting], Grade]:
        """What each number of units, and each block, saves and costs, one by one."""
        self._recall(model)
        parts = self._parts(prepared(model), context)
        known = self._selected(parts, context)
        profile = context.profile(model) if context.profile is not None else ()
        times = shares.node_times(parts.model, profile)
        width = context.target.channels_at_once if self._on_the_clock(context) else 1
        scaling = self._scaling(model, parts, sites, times, context)
        whole = {site: parts.blocks[site.name] for site in sites if site.name in parts.blocks}
        left_out = {site: shares.left_out(block, parts.macs, times) for site, block in whole.items()}
        saved = {site: one.milliseconds if times else one.macs for site, one in left_out.items()}
        harm = self._damage(parts, sites, known, saved, context)
        grades: dict[tuple[Site, Setting], Grade] = {}
        for site in sites:
            if site in left_out:
                gone = left_out[site]
                grades[site, LEFT_OUT] = Grade(harm[site], round(gone.macs), round(gone.bytes), gone.milliseconds)
                continue
            chosen = known.selections[site.name]
            for setting in site.settings:
                count = _count(setting)
                gone = shares.saved(parts.groups[site.name], chosen.order[:count], parts.macs, scaling, width)
                error = harm[site] * chosen.error[count] if count < len(chosen.error) else np.inf
                grades[site, setting] = Grade(float(error), round(gone.macs), round(gone.bytes), gone.milliseconds)
        if times:
            for site in sites:
                group = parts.groups.get(site.name)
                nodes = parts.blocks[site.name].all if group is None else [u.node for u in (*group.producers, *group.consumers)]
                spent = sum(times.get(node, 0.0) for node in {*nodes})
                known.times[site.name] = spent, {setting: grades[site, setting].milliseconds for setting in site.settings}
        return grades

    def _scaling(
        self, model: ir.Model, parts: Parts, sites: Sequence[Site], times: Mapping[ir.Node, float], context: Context
    ) -> Mapping[ir.Node, float]:
        """Of each node's time what goes with its channels, by a second measurement with about half of them."""
        width = context.target.channels_at_once
        plan: dict[Site, Setting] = {}
        for site in sites:
            size = parts.groups[site.name].size if site.name in parts.groups else 0
            half = [s for s in site.settings if size >= 2 * width and 2 * _count(s) <= size and (size - _count(s)) % width == 0]
            if half:
                plan[site] = half[-1]
        if not times or not plan or context.profile is None or not self._on_the_clock(context):
            return times
        fewer = models.clone(model)
        self.apply(fewer, plan, replace(context, draft=True))
        found = shares.node_times(fewer, context.profile(fewer))
        dims = cost.dims_as_fed(fewer, context.data) if context.data is not None else {}
        macs = {node.name or "": count or 0 for node, count in cost.node_macs(fewer, dims).items()}
        return shares.in_proportion(times, parts.macs, {node.name or "": spent for node, spent in found.items()}, macs)

    def figures(self, plan: Plan) -> Sequence[Figure]:
        """What is left of each group and block, and the time of the layers that make or read it."""
        if self._known is None:
            return ()
        sizes, times = self._known.sizes, self._known.times
        whole = self._past.sizes if self._past else self._known.offered()
        settings = {site.name: setting for site, setting in plan.items()}

        def gone(name: str) -> int:
            value = settings[name].value if name in settings else 0
            return value if isinstance(value, int) else sizes[name]

        parts = [100 * (sizes.get(name, 0) - gone(name)) / size for name, size in whole.items()]
        found = [
            Figure("What is left of each group and block, in percent", "bars", _pair([100.0] * len(parts), parts), [*whole])
        ]
        if times:
            before = [1000 * spent for spent, _ in times.values()]
            after = [
                1000 * (spent - saved.get(settings[n], 0.0) if n in settings else spent) for n, (spent, saved) in times.items()
            ]
            title = "Microseconds of the layers that make or read a group: measured before, foreseen with it alone pruned"
            found.append(Figure(title, "bars", _pair(before, after), [*times]))
        return found

    def apply(self, model: ir.Model, plan: Plan, context: Context) -> Sequence[Change]:
        """Remove the planned numbers of units and the planned blocks, and fit what is left."""
        past = self._recall(model)
        changes = axes.prepare(model)
        parts = self._parts(model, context)
        known = self._selected(parts, context)
        gone = _gone(plan, known)
        changes += parts.told(*gone)
        past, steps = parts.remove(*gone, past or Past.none(model, known.offered()))
        if context.draft:
            return changes
        if self.options.reconstruct:
            assert context.data is not None, "the pass says that it needs data"
            changes += refit(past.teacher, model, steps, context, context.data.first(self.options.samples))
        self._made = past.of(model)
        return changes

    # ------------------------------------------------------------------------------------------------------------- parts

    def _recall(self, model: ir.Model) -> Past | None:
        """The past of a model that an earlier round made; None: there was none."""
        for past in (self._made, self._past):
            if past is not None and past.is_of(model):
                self._past = past
                return past
        self._past = None
        return None

    def _parts(self, prepared: ir.Model, context: Context) -> Parts:
        return Parts(prepared, context.data, self.takes, self.takes_blocks())

    def _site(self, name: str, group: Group, context: Context) -> Site:
        made = group.producers[0].node
        nodes = tuple(dict.fromkeys(use.node.name or "" for use in group.producers))
        if not group.prunable:
            return Site(name, made.op_type, (), why=group.why or "it has one unit only", nodes=nodes)
        most = len(group.choose(np.arange(group.size), group.size))
        counts = [count for count in self._counts(name, group.size, context) if count <= most]
        settings = tuple(Setting(f"{group.size - count} of {group.size}", count) for count in counts)
        multiple = self.multiple(context)
        why = "" if settings else f"none of its {group.size} units can go where a multiple of {multiple} is to stay"
        return Site(name, made.op_type, settings, why=why, nodes=nodes)

    def _on_the_clock(self, context: Context) -> bool:
        return context.profile is not None and context.goal == "latency"

    def _counts(self, name: str, size: int, context: Context) -> list[int]:
        """How many units may go, from few to many."""
        multiple = self.multiple(context)
        if self.ratio is not None:
            whole = self._past.sizes.get(name, size) if self._past else size
            wanted = [1 - (whole - int((1 - (1 - self.ratio) ** context.part) * whole + 0.5)) / size]
        else:
            wanted = [step / _STEPS for step in range(1, _STEPS) if step / _STEPS <= _HARSHEST]
        left = {max(size - int(part * size + 0.5), self.least(), 1) for part in wanted}
        if self._on_the_clock(context) and self.ratio is None and multiple == 1:
            multiple = _ALIGNED if size > _ALIGNED else 1
            width = context.target.channels_at_once  # what is as fast as it is small, too
            left |= {count for count in range(width, size, width) if count >= max(self.least(), (1 - _HARSHEST) * size)}
        counts = {size - -(-count // multiple) * multiple for count in left}
        return sorted(count for count in counts if count > 0)

    def _selected(self, parts: Parts, context: Context) -> _Known:
        """The order in which each group's units go; found once for each model."""
        groups = parts.groups
        held = tuple(w for group in groups.values() for use in group.producers if (w := use.value.const_value) is not None)
        if self._known is None or [*map(id, self._known.weights)] != [*map(id, held)]:
            known = _Known(held)
            free = {name: group for name, group in groups.items() if group.prunable}
            assert context.data is not None, "the pass says that it needs data"
            samples = damage.fitted_on(context.data, self.options.samples)
            given: dict[str, Array] = {}
            if self.criterion == "apoz":
                given = readers.active(parts.model, free, context, samples)
            elif self.criterion in criteria.BY_GRADIENTS:
                given = gradients.scores(parts.model, free, self.criterion, context, samples)
            with context.progress.stage("weighing channels", len(free)) as step:
                for pack in readers.packs(parts.model, free, context, samples):
                    for name, readings in pack.items():
                        group = free[name]
                        counts = self._counts(name, group.size, context) or [0]
                        asked = [reader for _, found in readings for reader in found]
                        known.selections[name] = self._select(group, asked, counts[-1], given.get(name))
                        step(1)
            known.sizes = {name: group.size for name, group in groups.items()} | dict.fromkeys(parts.blocks, 1)
            known.declined = frozenset(groups.keys() - free.keys())
            self._known = known
        return self._known

    def _select(self, group: Group, readers: Sequence[Reader], most: int, given: Array | None) -> Selection:
        """The order of a group's units, of ``most`` at least; ``given`` [size] are scores that decide, where there are."""
        criterion = self.criterion
        if criterion == "reconstruction" and readers:
            found = selection.surgeon(readers, group.size, most if len(group.parts) == 1 else group.size - 1)
        elif given is not None:
            found = selection.ranked(given, group.size)
        elif criterion in {"activation", "wanda"} and readers:
            found = selection.ranked(criteria.by_readers(readers, group.size, criterion), group.size)
        else:
            random = np.random.default_rng(0)
            found = selection.ranked(criteria.by_weights(group, criterion, random), group.size)
        allowed = group.choose(found.order, group.size)
        if len(allowed) < len(found.order):
            gone = np.concatenate([[0], np.flatnonzero(np.isin(found.order, allowed)) + 1])
            return Selection(allowed, found.error[gone])
        return found

    def _damage(
        self, parts: Parts, sites: Sequence[Site], known: _Known, saved: Mapping[Site, float], context: Context
    ) -> dict[Site, float]:
        """Of a block, what it is to the outputs to leave it out; of a group, what its error of 1 is.

        ``saved``: what each block saves, in any unit.
        """

        def removed(version: Version, site: Site, setting: Setting) -> tuple[Version, Sequence[Step]]:
            candidate = models.clone(version.model)
            past, steps = self._parts(candidate, context).remove(*_gone({site: setting}, known), version.past)
            return Version(candidate, past), steps if self.options.reconstruct else ()

        start = Version(parts.model, self._past or Past.none(parts.model, {}))
        found = damage.measured(start, sites, saved, removed, context)
        for site in sites:
            if site.name not in parts.blocks:
                count = _count(damage.middle(site.settings))
                found[site] /= max(float(known.selections[site.name].error[count]), 1e-12)
        return found


def _gone(plan: Plan, known: _Known) -> tuple[dict[str, Array], list[str]]:
    """By site the units that a plan removes, and the sites of the blocks that it leaves out."""
    blocks = [site.name for site, setting in plan.items() if setting == LEFT_OUT]
    counts = {site.name: _count(setting) for site, setting in plan.items() if setting != LEFT_OUT}
    return {name: known.selections[name].order[:count] for name, count in counts.items()}, blocks


def _pair(before: Sequence[float], after: Sequence[float]) -> dict[str, Sequence[float]]:
    return {"before": before, "after": after}


def _count(setting: Setting) -> int:
    assert isinstance(setting.value, int)
    return setting.value
