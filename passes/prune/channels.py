"""``prune.channels``: channels, neurons and heads are really removed, and what is left is fitted to data.

    which channels go together (``graphopt.axes``)  ->  the order of each group's units by the error they leave (``selection``)
    the core chooses how many of each  ->  remove  ->  fit what is left to what the original gave (``refit``)

No labels and no training. What a choice costs is estimated: each group alone is pruned by about half, its readers' weights in
closed form, and the outputs are compared with the original's; the error of the group's other settings is in proportion.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir
from pydantic import Field, model_validator

from graphopt import axes, cost, sensitivity
from graphopt import model as models
from graphopt.axes import Channels, Group
from graphopt.axes.remove import keeping
from graphopt.contracts import Array, Change, Context, Grade, LossyPass, Need, PassOptions, Plan, Setting, Site
from graphopt.dataset import Batch, Dataset, Span

from . import criteria, readers, refit, selection, shares
from .layers import layers
from .selection import Reader, Selection

if TYPE_CHECKING:
    from graphopt.contracts import Session

_T = TypeVar("_T")
_STEPS = 16
"""Settings of a group: so many even steps from none of its units to all."""
_HARSHEST = 0.875
_SAMPLES = 1000
_GRADED_ON = 48
"""Samples on which the damage of each group is measured."""


class ChannelOptions(PassOptions):
    """What is to be saved, or as much as the budget of accuracy allows; and how."""

    ratio: float | None = Field(None, gt=0, lt=1, description="the part of every group's units to remove")
    macs: float | None = Field(None, gt=0, lt=1, description="the part of the model's multiply-accumulates that may remain")
    bytes: float | None = Field(None, gt=0, lt=1, description="the part of the file's bytes that may remain")
    latency: float | None = Field(None, gt=0, lt=1, description="the part of the model's time that may remain")
    criterion: criteria.Criterion = Field("reconstruction", description="what decides which units of a group go")
    reconstruct: bool = Field(True, description="whether the weights that are left are fitted to the original's values")
    samples: int = Field(_SAMPLES, ge=1, description="samples of the data that are used at most")
    multiple: int | None = Field(
        None, ge=1, description="numbers of units are rounded up to a multiple of it, if there are more"
    )
    min_channels: int = Field(1, ge=1, description="so many units of each group stay at least")

    @model_validator(mode="after")
    def _one_goal(self) -> ChannelOptions:
        goals = [name for name in ("ratio", "macs", "bytes", "latency") if getattr(self, name) is not None]
        if len(goals) > 1:
            raise ValueError(f"{' and '.join(goals)} exclude one another")
        return self


@dataclass
class _Known:
    """What was found out about a model, by the names of its sites."""

    weights: tuple[ir.TensorProtocol, ...]
    """Held, so that their ids stay their own."""
    selections: dict[str, Selection] = field(default_factory=dict)
    fitted: dict[str, dict[str, list[tuple[Array, Array]]]] = field(default_factory=dict)
    """By site and by weight, for the setting in the middle: the readers' weights and what is added to their biases."""


class PruneChannels(LossyPass):
    """Structured pruning; see the module.

    Raises (in ``sites``, ``grades`` and ``apply``):
        DataError, ModelError: As ``Context.observe``.
    """

    name = "prune.channels"
    summary = "remove channels, neurons and heads, and fit what is left to data; no labels, no training"
    Options = ChannelOptions
    options: ChannelOptions
    needs = frozenset({Need.DATA})
    graded = True

    def __init__(self, options: PassOptions | None = None) -> None:
        super().__init__(options)
        self._known: _Known | None = None

    def decided(self) -> bool:
        """Whether the options say how much goes."""
        return self.remains() is not None or self.options.ratio is not None

    def sites(self, model: ir.Model, context: Context) -> Sequence[Site]:
        """Every group of channels that are removed together, with the numbers of units that may go; declined ones with why."""
        prepared, found = _analysed(model)
        del prepared
        return [self._site(name, group, self._multiple(context)) for name, group in _groups(found).items()]

    def grades(self, model: ir.Model, sites: Sequence[Site], context: Context) -> Mapping[tuple[Site, Setting], Grade]:
        """What each number of units saves and costs, group by group."""
        prepared, found = _analysed(model)
        groups = _groups(found)
        known = self._selected(prepared, groups, context)
        macs = {node: count or 0 for node, count in cost.node_macs(prepared).items()}
        profile = context.profile(model) if context.profile is not None else ()
        times = shares.node_times(prepared, [(time.origin or time.name, time.milliseconds) for time in profile])
        damage = self._damage(prepared, sites, known, context)
        grades = {}
        for site in sites:
            chosen = known.selections[site.name]
            for setting in site.settings:
                count = _count(setting)
                gone = shares.saved(groups[site.name], chosen.order[:count], macs, times)
                harm = damage[site] * chosen.error[count] if count < len(chosen.error) else np.inf
                grades[site, setting] = Grade(float(harm), round(gone.macs), round(gone.bytes), gone.milliseconds)
        return grades

    def apply(self, model: ir.Model, plan: Plan, context: Context) -> Sequence[Change]:
        """Remove the planned numbers of units, and fit what is left."""
        changes = axes.prepare(model)
        found = axes.analyse(model)
        groups = _groups(found)
        known = self._selected(model, groups, context)
        removal = {
            groups[site.name]: known.selections[site.name].order[: _count(setting)]
            for site, setting in plan.items()
            if _count(setting)
        }
        original = models.clone(model)
        kept = keeping(found, removal)
        changes += self._told(model, groups, removal)
        axes.remove(model, found, removal)
        if self.options.reconstruct and not context.draft:
            assert context.data is not None, "the pass says that it needs data"
            data = context.data.first(self.options.samples)
            changes += refit.refit(original, model, found, kept, context, data)
        return changes

    # ------------------------------------------------------------------------------------------------------------- parts

    def _site(self, name: str, group: Group, multiple: int) -> Site:
        made = group.producers[0].node
        nodes = tuple(dict.fromkeys(use.node.name or "" for use in group.producers))
        if not group.prunable:
            return Site(name, made.op_type, (), why=group.why or "it has one unit only", nodes=nodes)
        most = len(group.choose(np.arange(group.size), group.size))
        counts = [count for count in self._counts(group.size, multiple) if count <= most]
        settings = tuple(Setting(f"{group.size - count} of {group.size}", count) for count in counts)
        why = "" if settings else f"none of its {group.size} units can go where a multiple of {multiple} is to stay"
        return Site(name, made.op_type, settings, why=why, nodes=nodes)

    def _multiple(self, context: Context) -> int:
        """Of how many units a multiple stays: where time is to be saved, what the target computes at once."""
        if self.options.multiple is not None:
            return self.options.multiple
        timed = context.profile is not None and context.goal == "latency"
        if self.options.latency is not None or (timed and not self.decided()):
            return context.target.vector_width
        return 1

    def _told(self, model: ir.Model, groups: Mapping[str, Group], removal: Mapping[Group, Array]) -> list[Change]:
        """What goes, group by group, and what that saves."""
        macs = {node: count or 0 for node, count in cost.node_macs(model).items()}
        whole = max(sum(macs.values()), 1)
        names = {group: name for name, group in groups.items()}
        changes = []
        for group, gone in removal.items():
            saved = shares.saved(group, gone, macs, {})
            what = f"{group.size - len(gone)} of {group.size} channels are left"
            why = f"alone it saves {saved.macs / whole:.1%} of the MACs and {saved.bytes / 1e3:.1f} kB"
            tied = len({use.node for use in group.producers}) - 1
            also = f"; tied to those of {tied} more" if tied else ""
            changes.append(Change(names[group], what, f"the layers that read it lose least without these: {why}{also}"))
        return changes

    def _weighed_on(self, context: Context) -> int:
        """Samples on which units are weighed: where there are enough, others are left to measure the damage on."""
        assert context.data is not None, "the pass says that it needs data"
        spare = _GRADED_ON if context.data.size >= 3 * _GRADED_ON else 0
        return min(self.options.samples, context.data.size - spare)

    def _counts(self, size: int, multiple: int) -> list[int]:
        """How many units may go, from few to many."""
        if self.options.ratio is not None:
            wanted = [self.options.ratio]
        else:
            wanted = [step / _STEPS for step in range(1, _STEPS) if step / _STEPS <= _HARSHEST]
        left = {max(size - int(part * size + 0.5), self.options.min_channels, 1) for part in wanted}
        counts = {size - -(-count // multiple) * multiple for count in left}
        return sorted(count for count in counts if count > 0)

    def _selected(self, model: ir.Model, groups: Mapping[str, Group], context: Context) -> _Known:
        """The order in which each group's units go; found once for each model."""
        held = tuple(w for group in groups.values() for use in group.producers if (w := use.value.const_value) is not None)
        multiple = self._multiple(context)
        if self._known is None or [*map(id, self._known.weights)] != [*map(id, held)]:
            known = _Known(held)
            free = {name: group for name, group in groups.items() if group.prunable}
            with context.progress.stage("weighing channels", len(free)) as step:
                for pack in readers.packs(model, free, context, self._weighed_on(context)):
                    for name, readings in pack.items():
                        group = free[name]
                        counts = self._counts(group.size, multiple) or [0]
                        known.selections[name] = self._select(group, [r for _, found in readings for r in found], counts[-1])
                        gone = known.selections[name].order[: _middle(counts)]
                        known.fitted[name] = {
                            reading.layer.weight.name or "": [r.without(gone) for r in found] for reading, found in readings
                        }
                        step(1)
            self._known = known
        return self._known

    def _select(self, group: Group, readers: Sequence[Reader], most: int) -> Selection:
        """The order of a group's units, of ``most`` at least."""
        criterion = self.options.criterion
        if criterion == "reconstruction" and readers:
            found = selection.surgeon(readers, group.size, most if len(group.parts) == 1 else group.size - 1)
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

    def _damage(self, model: ir.Model, sites: Sequence[Site], known: _Known, context: Context) -> dict[Site, float]:
        """What a site's error of 1 is to the model's outputs, from one setting in the middle."""
        assert context.data is not None
        middle = [(site, _middle(site.settings)) for site in sites]

        def open_with(site: Site, setting: Setting) -> Session:
            return context.open_session(self._alone(model, site.name, _count(setting), known))

        with context.open_session(model) as session:
            found = sensitivity.alone(middle, open_with, session, _last(context.data, _GRADED_ON), context.progress, _GRADED_ON)
        return {
            one.site: one.damage / max(float(known.selections[one.site.name].error[_count(one.setting)]), 1e-12)
            for one in found
        }

    def _alone(self, model: ir.Model, name: str, count: int, known: _Known) -> ir.Model:
        """The model without the first ``count`` units of one group, the middle setting; its readers' weights in closed form."""
        candidate = models.clone(model)
        found = axes.analyse(candidate)
        group = _groups(found)[name]
        gone = known.selections[name].order[:count]
        made = {use.value.name: ~np.isin(use.units, gone) for use in group.producers}
        axes.remove(candidate, found, {group: gone})
        for layer in layers(candidate).values() if self.options.reconstruct else ():
            parts = known.fitted[name].get(layer.weight.name or "")
            if not parts or (len(parts) > 1 and layer.weight.name in made):
                continue
            weights, shift = np.stack([one for one, _ in parts]), np.concatenate([added for _, added in parts])
            if len(shift) != len(layer.offset()):  # the layer makes units of the group too
                stay = made[layer.weight.name]
                weights, shift = weights[:, :, stay], shift[stay]
            layer.put(weights, layer.offset() + shift)
        return candidate


def _analysed(model: ir.Model) -> tuple[ir.Model, Channels]:
    prepared = models.clone(model)
    axes.prepare(prepared)
    return prepared, axes.analyse(prepared)


def _groups(channels: Channels) -> dict[str, Group]:
    """Groups by the names of their sites, each its own."""
    found: dict[str, Group] = {}
    for group in channels.groups():
        name, number = group.name, 1
        while name in found:
            number += 1
            name = f"{group.name} ({number})"
        found[name] = group
    return found


def _middle(values: Sequence[_T]) -> _T:
    """The one that is tried to see what a group is to the outputs."""
    return values[len(values) // 2]


def _last(data: Dataset, samples: int) -> Dataset:
    """The last batches, of so many samples at least: where there are enough data, nothing was fitted to them."""
    place = max((place for place, (start, _) in enumerate(data.spans) if data.size - start >= samples), default=0)
    skipped, offset = data.spans[:place], data.spans[place][0]
    spans = tuple((start - offset, end - offset) for start, end in data.spans[place:])

    def stream(wanted: Sequence[Span]) -> Iterator[Batch]:
        whole = (*skipped, *((start + offset, end + offset) for start, end in wanted))
        return itertools.islice(data.stream(whole), place, None)

    return dataclasses.replace(data, spans=spans, stream=stream)


def _count(setting: Setting) -> int:
    assert isinstance(setting.value, int)
    return setting.value
