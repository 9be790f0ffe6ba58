"""After pruning, the layers behind what went learn to give what the whole network gave (see ``graphopt.reconstruct``).

    model 0  --remove, fit to 0-->  model 1  --weigh again, remove, fit to 0-->  model 2 ...

In several rounds each model is still fitted to model 0, not to the one before it. So a round needs to know what became of model
0 by then: which channels of its values are left, and which values stand for a sum whose branch is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from graphopt import model as models
from graphopt.axes import Channels
from graphopt.axes.analysis import Kept
from graphopt.contracts import Array
from graphopt.graphs import constant
from graphopt.reconstruct import Step, affected

_AXES = (1, -1)
"""Where a layer has its channels: Conv, and all others."""


@dataclass(frozen=True)
class Past:
    """What became of the ``teacher``, model 0, so far; values and sites by name."""

    teacher: ir.Model
    weights: tuple[ir.TensorProtocol | None, ...]
    """Of the model that this is the past of: they tell it from others."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Units that a group had at first; 1 of a block."""
    kept: Mapping[tuple[str, int], Array] = field(default_factory=dict)
    """By value and axis: which of its channels are left; all where there is no entry."""
    learned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By value: the branches that it stands for as well."""

    @classmethod
    def none(cls, model: ir.Model, sizes: Mapping[str, int]) -> Past:
        """Of a model that nothing was removed from; it is copied."""
        return cls(models.clone(model), _weights(model), sizes)

    def of(self, model: ir.Model) -> Past:
        """The same as the past of another model."""
        return replace(self, weights=_weights(model))

    def is_of(self, model: ir.Model) -> bool:
        """Whether this is the past of a model."""
        return [*map(id, self.weights)] == [*map(id, _weights(model))]

    def without(self, channels: Channels, kept: Kept, stand_ins: Mapping[ir.Value, Sequence[str]]) -> Past:
        """With one more removal.

        Args:
            channels: Of the model before it.
            kept: What stays.
            stand_ins: Values that stand for sums whose blocks were left out, with what of the teacher they learn as well.
        """
        left, learned = {**self.kept}, {**self.learned}
        for value, axes in channels.analysis.axes.items():
            for axis in _AXES:
                ids = axes[axis] if axes and len(axes) > 1 else None
                if isinstance(ids, np.ndarray) and not (stays := kept(ids)).all():
                    name = value.name or ""
                    mask = left.get((name, axis), np.ones(len(ids), bool)).copy()
                    mask[mask] = stays
                    left[name, axis] = mask
        for value, names in stand_ins.items():
            learned[value.name or ""] = (*learned.get(value.name or "", ()), *names)
        return replace(self, kept=left, learned=learned)

    def steps(
        self, pruned: ir.Model, channels: Channels, kept: Kept, stand_ins: Mapping[ir.Value, Sequence[str]]
    ) -> list[Step]:
        """The layers of ``pruned`` whose input is not what it was, or has fewer channels; after ``without``, of the same."""
        cut = {one.node for one in channels.analysis.sums if not kept(one.ids).all()}
        found = []
        for step in affected(self.teacher, pruned, cut, stand_ins):
            name, axis = step.target.name or "", 1 if step.layer.patches else -1
            found.append(replace(step, plus=self.learned.get(name, ()), kept=self.kept.get((name, axis))))
        return found


@dataclass(frozen=True)
class Version:
    """A model on the way, and how it came to be."""

    model: ir.Model
    past: Past


def _weights(model: ir.Model) -> tuple[ir.TensorProtocol | None, ...]:
    """The constants of a model's main graph; clones share them."""
    made = [node.outputs[0] for node in model.graph if node.op_type == "Constant"]
    return tuple(constant(value) for value in (*model.graph.initializers.values(), *made))
