"""The result of the analysis: ids per axis, and the groups of what must be removed together.

Units are made by the same axes of weights when the sets of axes are equal; sets are compared by a sum of random 64-bit numbers,
one for each axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt import shapes
from graphopt.graphs import constant, site

from .analysis import Analysis, Axes, Role
from .groups import Group, Member, Use
from .ids import FREE, Ids, Symbol, UnionFind
from .resolve import identify, resolve
from .rules import RULES


class Channels:
    """Which channels of which values are the same channel, and which can be removed together. Of one model as it is now."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        identify(analysis.union, analysis.products)
        self._same = analysis.union
        self.units = _units(analysis)
        """Ids that are removed together stand for one another here."""
        self._groups: list[Group] | None = None

    def ids(self, value: ir.Value) -> tuple[Ids | None, ...]:
        """Canonical channel ids per axis, int64 of the axis's size: equal where it is the same channel. None: a dynamic axis.

        A value whose rank is not known, or that is not in the model, has no axes: ().
        """
        axes = self.analysis.axes.get(value)
        return () if axes is None else tuple(None if isinstance(ids, Symbol) else self._same.find(ids) for ids in axes)

    def groups(self) -> Sequence[Group]:
        """All groups whose channels a weight makes, in the order of the nodes that make them; those that are forbidden too."""
        if self._groups is None:
            self._groups = _groups(self.analysis, self._same, self.units)
        return self._groups


def analyse(model: ir.Model) -> Channels:
    """Find the channels of a model: main graph and subgraphs. No weight is read, except small constants that are sizes.

    What is not known stays: an axis of dynamic size has no ids, and an operator without a rule forbids to remove anything that
    it reads (``Group.why`` names it). The ids of the model's inputs and outputs cannot be removed.
    """
    analysis = Analysis(model, shapes.infer(model))
    for value in model.graph.inputs:
        if not value.is_initializer():
            analysis.axes[value] = analysis.fixed(value, None, f"{value.name} is an input of the model")
    analysis.walk(model.graph, RULES)
    for value in model.graph.outputs:
        analysis.lock(analysis.axes_of(value), None, f"{value.name} is an output of the model")
    return Channels(analysis)


def _units(analysis: Analysis) -> UnionFind:
    union = analysis.union.copy()
    for one, other in analysis.ties:
        union.same(one, other)

    def locked(why: str) -> int:
        analysis.reasons.append((None, why))
        return len(analysis.reasons) - 1

    resolve(union, analysis.products, analysis.paired, locked)
    return union


def weight_axes(analysis: Analysis) -> Iterator[tuple[ir.Value, Axes]]:
    """Initializers and outputs of Constant nodes, with their ids."""
    for value, axes in analysis.axes.items():
        if axes and ((value.is_initializer() and value.const_value is not None) or constant(value) is not None):
            yield value, axes


def _groups(analysis: Analysis, same: UnionFind, units: UnionFind) -> list[Group]:
    if not analysis.giving:
        return []
    made = units.find(np.concatenate([role.ids for role in analysis.giving]))
    roots, first = np.unique(made, return_index=True)
    number = np.full(units.count, -1)
    number[roots] = np.arange(len(roots))

    free = units.why(roots) == FREE
    _, parallel = np.unique(_signatures(analysis.giving, units, number, len(roots)) + free, return_inverse=True)
    _, start = np.unique(parallel[np.argsort(first)], return_index=True)
    group = np.argsort(np.argsort(start))[parallel]  # groups in the order of their first channel
    order = np.lexsort((first, group))
    bounds = np.searchsorted(group[order], np.arange(len(start) + 1))
    unit = np.empty(len(roots), np.int64)
    unit[order] = np.arange(len(roots)) - np.repeat(bounds[:-1], np.diff(bounds))

    def placed(ids: Ids) -> list[tuple[int, npt.NDArray[np.int64]]]:
        """The groups on an axis, each with its unit at every index."""
        found = number[units.find(ids)]
        group_at = np.where(found < 0, -1, group[found])
        return [(int(one), np.where(group_at == one, unit[found], -1)) for one in np.unique(group_at[group_at >= 0])]

    def uses(roles: Iterable[Role]) -> list[list[Use]]:
        result: list[list[Use]] = [[] for _ in start]
        for role in roles:
            for one, along in placed(role.ids):
                result[one].append(Use(role.node, role.value, role.axis, along))
        return result

    members: list[list[Member]] = [[] for _ in start]
    for value, axes in weight_axes(analysis):
        for axis, ids in enumerate(axes):
            for one, along in () if isinstance(ids, Symbol) else placed(ids):
                members[one].append(Member(value, axis, along))

    channels = np.unique(same.find(np.arange(same.count)))
    of = number[units.find(channels)]
    channels, of = channels[of >= 0], of[of >= 0]
    by_unit = np.split(channels[np.argsort(of, kind="stable")], np.searchsorted(np.sort(of), np.arange(1, len(roots))))

    parts = _parts(analysis, units, number, group, unit)
    producers, consumers = uses(analysis.giving), uses(analysis.taking)
    result = []
    for one in range(len(start)):
        within = order[bounds[one] : bounds[one + 1]]
        least = int(units.why(roots[within]).min())
        result.append(
            Group(
                name=site(producers[one][0].node),
                units=tuple(by_unit[place] for place in within),
                producers=tuple(producers[one]),
                consumers=tuple(consumers[one]),
                members=tuple(members[one]),
                parts=parts[one],
                why="" if least == FREE else analysis.name(least),
            )
        )
    return result


def _signatures(roles: Iterable[Role], units: UnionFind, number: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.uint64]:
    """For each unit a number that stands for the set of axes that make it; even, so that one may be added."""
    made = {(role.value, role.axis): role.ids for role in roles}
    random = np.random.default_rng(0).integers(0, 2**63, size=len(made), dtype=np.uint64) * np.uint64(2)
    signature = np.zeros(size, np.uint64)
    for ids, key in zip(made.values(), random, strict=True):
        signature[np.unique(number[units.find(ids)])] += key
    return signature


def _parts(
    analysis: Analysis,
    units: UnionFind,
    number: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    unit: npt.NDArray[np.int64],
) -> list[tuple[npt.NDArray[np.int64], ...]]:
    """For each group the smallest sets of its units that fill an axis. Of several groups on one axis, one answers for it."""
    sizes = np.bincount(group)
    whole = [np.arange(size) for size in sizes]
    found: list[dict[bytes, npt.NDArray[np.int64]]] = [{one.tobytes(): one} for one in whole]
    arrays = {id(ids): ids for axes in analysis.axes.values() for ids in axes or () if not isinstance(ids, Symbol) and len(ids)}
    for ids in arrays.values():
        places = number[units.find(ids)]
        if (places < 0).any() or (units.why(ids) < FREE).any():
            continue  # something else on this axis stays
        groups = group[places]
        most = int(np.bincount(groups).argmax())
        alone = np.unique(unit[places[groups == most]])
        if len(alone) < sizes[most]:
            found[most].setdefault(alone.tobytes(), alone)
    return [_smallest([*sets.values()]) for sets in found]


def _smallest(sets: list[npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], ...]:
    """Without those that contain another one."""
    kept: list[npt.NDArray[np.int64]] = []
    for one in sorted(sets, key=len):
        if not any(np.isin(other, one).all() for other in kept):
            kept.append(one)
    return tuple(kept)
