"""From tied ids to groups of units.

unit     the ids that stand for one another and are made by a weight
group    units that are made by the same axes of weights; such sets are compared by a sum of random numbers, one an axis
part     units of a group that fill an axis by themselves
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.graphs import constant

from .analysis import Analysis, Axes, Role
from .groups import Group, Member, Units, Use
from .ids import FREE, Ids, Symbol, UnionFind

_NONE = -1


@dataclass(frozen=True)
class _Numbers:
    """Which group and which of its units each tied id is."""

    tied: UnionFind
    roots: Ids
    """The id that stands for each unit."""
    place: npt.NDArray[np.int64]
    """Of each id that stands for others, its index among ``roots``, or none."""
    group: npt.NDArray[np.int64]
    unit: npt.NDArray[np.int64]
    """Of each of ``roots``: its group, and its number in there."""

    @property
    def count(self) -> int:
        """How many groups."""
        return int(self.group.max()) + 1

    def along(self, ids: Ids) -> list[tuple[int, Units]]:
        """The groups on an axis, each with its unit at every index."""
        found = self.place[self.tied.find(ids)]
        at = np.where(found == _NONE, _NONE, self.group[found])
        return [(int(one), np.where(at == one, self.unit[found], _NONE)) for one in np.unique(at[at != _NONE])]


def groups(analysis: Analysis, same: UnionFind, tied: UnionFind) -> list[Group]:
    """All groups, in the order in which their first channels are made."""
    if not analysis.giving:
        return []
    numbers = _numbered(analysis.giving, tied)
    producers, consumers = _uses(numbers, analysis.giving), _uses(numbers, analysis.taking)
    members, parts, ids = _members(numbers, analysis), _parts(numbers, analysis), _ids_of_units(numbers, same)
    result, names = [], set[str]()
    for group in range(numbers.count):
        units = np.flatnonzero(numbers.group == group)
        units = units[np.argsort(numbers.unit[units])]
        least = int(tied.why(numbers.roots[units]).min())
        result.append(
            Group(
                name=_name(producers[group][0].site, names),
                units=tuple(ids[unit] for unit in units),
                producers=tuple(producers[group]),
                consumers=tuple(consumers[group]),
                members=tuple(members[group]),
                parts=parts[group],
                why="" if least == FREE else analysis.name(least),
            )
        )
    return result


def _numbered(giving: Sequence[Role], tied: UnionFind) -> _Numbers:
    roots, first = np.unique(tied.find(np.concatenate([role.ids for role in giving])), return_index=True)
    place = np.full(tied.count, _NONE)
    place[roots] = np.arange(len(roots))

    made = {(role.value, role.axis): role.ids for role in giving}
    keys = np.random.default_rng(0).integers(0, 2**63, size=len(made), dtype=np.uint64) * np.uint64(2)
    signature = (tied.why(roots) == FREE).astype(np.uint64)  # what is forbidden is a group of its own
    for ids, key in zip(made.values(), keys, strict=True):
        signature[np.unique(place[tied.find(ids)])] += key

    _, start, alike = np.unique(signature[np.argsort(first)], return_index=True, return_inverse=True)
    group = np.empty(len(roots), np.int64)
    group[np.argsort(first)] = np.argsort(np.argsort(start))[alike]
    order = np.lexsort((first, group))
    ahead = np.searchsorted(group[order], group[order])  # units of earlier groups
    unit = np.empty(len(roots), np.int64)
    unit[order] = np.arange(len(roots)) - ahead
    return _Numbers(tied, roots, place, group, unit)


def _uses(numbers: _Numbers, roles: Iterable[Role]) -> list[list[Use]]:
    uses: list[list[Use]] = [[] for _ in range(numbers.count)]
    for role in roles:
        for group, units in numbers.along(role.ids):
            uses[group].append(Use(role.node, role.value, role.axis, units))
    return uses


def _members(numbers: _Numbers, analysis: Analysis) -> list[list[Member]]:
    members: list[list[Member]] = [[] for _ in range(numbers.count)]
    for value, axes in weight_axes(analysis):
        for axis, ids in enumerate(axes):
            for group, units in () if isinstance(ids, Symbol) else numbers.along(ids):
                members[group].append(Member(value, axis, units))
    return members


def weight_axes(analysis: Analysis) -> Iterator[tuple[ir.Value, Axes]]:
    """Initializers and outputs of Constant nodes, with their ids."""
    for value, axes in analysis.axes.items():
        if axes and ((value.is_initializer() and value.const_value is not None) or constant(value) is not None):
            yield value, axes


def _ids_of_units(numbers: _Numbers, same: UnionFind) -> list[Ids]:
    """Canonical channel ids of each unit."""
    channels = np.unique(same.find(np.arange(same.count)))
    place = numbers.place[numbers.tied.find(channels)]
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(len(numbers.roots) + 1))
    return np.split(channels[order], bounds)[1:-1]


def _parts(numbers: _Numbers, analysis: Analysis) -> list[tuple[npt.NDArray[np.int64], ...]]:
    """For each group the smallest sets of its units that fill an axis. Of several groups on one axis, one answers for it."""
    sizes = np.bincount(numbers.group)
    found = [{whole.tobytes(): whole} for whole in map(np.arange, sizes)]
    arrays = {id(ids): ids for axes in analysis.axes.values() for ids in axes or () if not isinstance(ids, Symbol) and len(ids)}
    for ids in arrays.values():
        units = numbers.place[numbers.tied.find(ids)]
        if (units == _NONE).any() or (numbers.tied.why(ids) < FREE).any():
            continue  # something else on this axis stays
        at = numbers.group[units]
        most = int(np.bincount(at).argmax())
        alone = np.unique(numbers.unit[units[at == most]])
        if len(alone) < sizes[most]:
            found[most].setdefault(alone.tobytes(), alone)
    return [_smallest([*sets.values()]) for sets in found]


def _smallest(sets: Sequence[npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], ...]:
    """Without those that contain another one."""
    kept: list[npt.NDArray[np.int64]] = []
    for one in sorted(sets, key=len):
        if not any(np.isin(other, one).all() for other in kept):
            kept.append(one)
    return tuple(kept)


def _name(name: str, taken: set[str]) -> str:
    """The name, with a number where one node makes channels of several groups."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name} ({number})"
    taken.add(candidate)
    return candidate
