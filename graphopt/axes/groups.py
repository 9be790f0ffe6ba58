"""Groups: what must be removed together, and how a person is told.

A unit is what goes at once: one channel and all that is tied to it, or a head with all its channels. Units that
are made by the same axes of weights are parallel, and make a group. Any of them may go, but not all; and where some of them are
alone on an axis (a half that was split off), not all of these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.graphs import site

from .ids import Ids

Units = npt.NDArray[np.int64]
"""The unit at each index of an axis; -1 where there is none of the group."""


@dataclass(frozen=True, eq=False)
class Use:
    """The axis of a weight (an initializer or the output of a Constant) that ``node`` reads, and the group's units along it."""

    node: ir.Node
    value: ir.Value
    axis: int
    units: Units

    @property
    def site(self) -> str:
        """What a user can find the node by."""
        return site(self.node)

    def index(self, unit: int) -> npt.NDArray[np.intp]:
        """Where on the axis the unit is; several places, where it is several channels."""
        return np.flatnonzero(self.units == unit)


@dataclass(frozen=True, eq=False)
class Member:
    """The axis of an initializer or a Constant, and the group's units along it."""

    value: ir.Value
    axis: int
    units: Units

    def index(self, unit: int) -> npt.NDArray[np.intp]:
        """Where on the axis the unit is."""
        return np.flatnonzero(self.units == unit)


@dataclass(frozen=True, eq=False)
class Group:
    """Parallel units that can be removed independently of one another, as far as ``prunable``."""

    name: str
    """Of the first node whose weight makes the channels, and a number where it makes several groups."""
    units: tuple[Ids, ...]
    """Channel ids of each unit, as ``Channels.ids`` has them."""
    producers: tuple[Use, ...]
    consumers: tuple[Use, ...]
    members: tuple[Member, ...]
    parts: tuple[npt.NDArray[np.int64], ...]
    """Units that lie on an axis by themselves: of each of these sets one has to stay. Mostly it is one set of all."""
    why: str = ""
    """What forbids to remove any; empty when nothing does."""

    @property
    def size(self) -> int:
        """How many units."""
        return len(self.units)

    @property
    def prunable(self) -> bool:
        """Whether units can be removed: nothing forbids it, and one would be left."""
        return not self.why and len(self.choose(np.arange(self.size), 1)) > 0

    def unit(self, number: int) -> Ids:
        """Channel ids that go together as one unit."""
        return self.units[number]

    def choose(self, order: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
        """The first ``count`` of ``order`` that may go; fewer where a part would be left empty.

        Args:
            order: Units, the least wanted first; int64 [at most ``size``].
            count: How many are to go.
        """
        left = np.array([len(part) for part in self.parts])
        within = np.zeros((len(self.parts), self.size), np.bool_)
        for place, part in enumerate(self.parts):
            within[place, part] = True
        chosen: list[int] = []
        for unit in order.tolist():
            if len(chosen) == count:
                break
            touched = within[:, unit]
            if (left[touched] > 1).all():
                left[touched] -= 1
                chosen.append(unit)
        return np.array(chosen, np.int64)

    def __str__(self) -> str:
        each = len(self.producers[0].index(0)) if self.producers else 1
        what = f"{self.size} units" + (f" of {each} channels" if each > 1 else "")
        lines = [f"{self.name}: {what}" + (f", cannot be removed: {self.why}" if self.why else "")]
        lines += [f"  made by    {_listed(self.producers)}"] if self.producers else []
        lines += [f"  used by    {_listed(self.consumers)}"] if self.consumers else []
        told = {(use.value, use.axis) for use in (*self.producers, *self.consumers)}
        along = [f"{one.value.name} axis {one.axis}" for one in self.members if (one.value, one.axis) not in told]
        lines += [f"  and along  {_short(along)}"] if along else []
        return "\n".join(lines)


def _listed(uses: tuple[Use, ...]) -> str:
    return _short([f"{use.node.op_type} {use.site!r} ({use.value.name} axis {use.axis})" for use in uses])


def _short(texts: list[str], limit: int = 6) -> str:
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more
