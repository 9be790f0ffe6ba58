"""The result of the analysis: ids per axis, what is tied together, and the groups."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt import shapes

from .analysis import Analysis
from .grouping import groups
from .groups import Group
from .ids import Ids, Symbol, UnionFind
from .resolve import identify, resolve
from .rules import RULES


class Channels:
    """Which channels of which values are the same channel, and which can be removed together. Of one model as it is now."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        identify(analysis.union, analysis.products)
        self._same = analysis.union
        self.tied = _tied(analysis)
        """The same, and here ids that are removed together stand for one another too: the channels of a head, of a group."""
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
            self._groups = groups(self.analysis, self._same, self.tied)
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


def _tied(analysis: Analysis) -> UnionFind:
    union = analysis.union.copy()

    def locked(why: str) -> int:
        analysis.reasons.append((None, why))
        return len(analysis.reasons) - 1

    resolve(union, analysis.products, analysis.paired, locked)
    return union
