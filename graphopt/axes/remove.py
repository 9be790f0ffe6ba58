"""Removal: one generic step, whatever the operators are.

    kept(ids)                       which ids stay
    every weight, every axis        w  ->  w[.., kept(ids), ..]           (once, however many nodes read it)
    every number that counts ids    n  ->  sum(kept(ids))                 (Reshape, Split, Slice, Pad, group, num_heads, ...)

Weights that nothing is removed from are not read.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant
from graphopt.model.weights import Place

from .analysis import Analysis, Kept
from .channels import Channels
from .grouping import weight_axes
from .groups import Group
from .ids import Symbol
from .mend import mend

Removal = Mapping[Group, npt.NDArray[np.int64]]
"""Which units of which groups are removed, by number."""


def remove(model: ir.Model, channels: Channels, removal: Removal) -> list[Change]:
    """Remove units from a model in place; ``channels`` is of the model before, and says nothing of it afterwards.

    Inputs and outputs of the model stay as they are. Since the analysis weights may have got other numbers, but neither nodes
    nor shapes may have changed.

    Raises:
        ValueError: A group is not prunable, or all of its units would go.
    """
    changes = [_change(group, numbers) for group, numbers in removal.items() if len(numbers)]
    kept = keeping(channels, removal)
    mend(model, channels.analysis, kept)
    _cut_weights(channels.analysis, kept)
    _restate_shapes(channels.analysis, kept)
    return changes


def keeping(channels: Channels, removal: Removal) -> Kept:
    """Which ids are kept when these units go.

    Raises:
        ValueError: A group is not prunable, or all of its units would go.
    """
    gone = np.zeros(channels.analysis.union.count, np.bool_)
    for group, numbers in removal.items():
        distinct = np.unique(np.asarray(numbers, np.int64))
        if not len(distinct):
            continue
        if not group.prunable:
            raise ValueError(f"{group.name} cannot be pruned: {group.why or 'it has one unit only'}")
        if distinct[0] < 0 or distinct[-1] >= group.size:
            raise ValueError(f"{group.name} has units 0 to {group.size - 1}, not {distinct[0]} to {distinct[-1]}")
        if any(np.isin(part, distinct).all() for part in group.parts):
            raise ValueError(f"{group.name}: with these {len(distinct)} of {group.size} units an axis would be left empty")
        ids = np.concatenate([group.unit(int(number)) for number in distinct])
        gone[channels.tied.find(ids)] = True
    return lambda ids: ~gone[channels.tied.find(ids)]


def _change(group: Group, numbers: npt.NDArray[np.int64]) -> Change:
    removed = len(np.unique(numbers))
    where = ", ".join(dict.fromkeys(use.site for use in group.producers[:4]))
    more = f" and {len(group.producers) - 4} more" if len(group.producers) > 4 else ""
    return Change(
        group.name, f"{group.size - removed} of {group.size} units are left", f"they are made together by {where}{more}"
    )


def _cut_weights(analysis: Analysis, kept: Kept) -> None:
    for value, axes in list(weight_axes(analysis)):
        stay = [None if isinstance(ids, Symbol) else kept(ids) for ids in axes]
        if all(mask is None or mask.all() for mask in stay):
            continue
        producer = value.producer()
        tensor = value.const_value if value.is_initializer() else constant(value)
        assert tensor is not None
        array = tensor.numpy()
        for axis, mask in enumerate(stay):
            if mask is not None and not mask.all():
                array = np.compress(mask, array, axis=axis)
        place = Place(producer if producer is not None and not value.is_initializer() else value, tensor)
        if isinstance(place.owner, ir.Node):
            for name in [*place.owner.attributes]:
                place.owner.attributes.pop(name)
            place.owner.attributes["value"] = ir.AttrTensor("value", ir.tensor(array, dtype=tensor.dtype, name=tensor.name))
        else:
            place.put(ir.tensor(np.ascontiguousarray(array), dtype=tensor.dtype, name=tensor.name))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(tensor.dtype)


def _restate_shapes(analysis: Analysis, kept: Kept) -> None:
    """State the sizes that are left of all values between, where any size was stated."""
    for value, axes in analysis.axes.items():
        if axes is None or value.shape is None or len(value.shape) != len(axes) or value.is_initializer():
            continue
        sizes = [None if isinstance(ids, Symbol) else int(kept(ids).sum()) for ids in axes]
        if any(not isinstance(ids, Symbol) and size != len(ids) for size, ids in zip(sizes, axes, strict=True)):
            dims = [old if size is None else size for size, old in zip(sizes, value.shape, strict=True)]
            value.shape = ir.Shape(dims)
