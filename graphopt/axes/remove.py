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
from graphopt.graphs import constant, site
from graphopt.model.weights import Place
from graphopt.shapes import defined

from .analysis import Analysis, Kept, Where
from .channels import Channels, weight_axes
from .groups import Group

Removal = Mapping[Group, npt.NDArray[np.int64]]
"""Which units of which groups are removed, by number."""


def remove(model: ir.Model, channels: Channels, removal: Removal) -> list[Change]:
    """Remove units from a model in place; ``channels`` is of the model before, and says nothing of it afterwards.

    Inputs and outputs of the model stay as they are.

    Raises:
        ValueError: A group is not prunable, or all of its units would go.
    """
    changes = [_change(group, numbers) for group, numbers in removal.items() if len(numbers)]
    kept = keeping(channels, removal)
    edits = _edits(channels.analysis, kept)
    _cut_weights(channels.analysis, kept)
    taken = {value.name for graph in model.graphs() for value in defined(graph)}
    for (node, where), numbers in edits.items():
        _put(node, where, numbers, taken)
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
        if distinct[0] < 0 or distinct[-1] >= group.size or len(distinct) == group.size:
            raise ValueError(f"{group.name}: {len(distinct)} units up to number {distinct[-1]} cannot go, it has {group.size}")
        ids = np.concatenate([group.unit(int(number)) for number in distinct])
        gone[channels.units.find(ids)] = True
    return lambda ids: ~gone[channels.units.find(ids)]


def _change(group: Group, numbers: npt.NDArray[np.int64]) -> Change:
    removed = len(np.unique(numbers))
    where = ", ".join(dict.fromkeys(site(use.node) for use in group.producers[:4]))
    more = f" and {len(group.producers) - 4} more" if len(group.producers) > 4 else ""
    return Change(
        group.name, f"{group.size - removed} of {group.size} units are left", f"they are made together by {where}{more}"
    )


def _cut_weights(analysis: Analysis, kept: Kept) -> None:
    for value, axes in list(weight_axes(analysis)):
        stay = [None if ids is None else kept(ids) for ids in axes]
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


def _edits(analysis: Analysis, kept: Kept) -> dict[tuple[ir.Node, Where], npt.NDArray[np.int64]]:
    """New numbers of all lists and attributes that count something that is removed."""
    edits: dict[tuple[ir.Node, Where], npt.NDArray[np.int64]] = {}
    for edit in analysis.edits:
        edits[edit.node, edit.where] = edit.compute(kept)
    for (node, where), counted in analysis.counts.items():
        new = {place: int(kept(ids).sum()) for place, ids in counted.items() if not kept(ids).all()}
        if new:
            old = edits.get((node, where), _numbers(node, where))
            if old is None:
                old = np.zeros(1, np.int64)
            numbers = old.copy()
            for place, number in new.items():
                numbers.reshape(-1)[place] = number
            edits[node, where] = numbers
    return {key: new for key, new in edits.items() if (old := _numbers(*key)) is None or not np.array_equal(old, new)}


def _numbers(node: ir.Node, where: Where) -> npt.NDArray[np.int64] | None:
    if isinstance(where, int):
        tensor = constant(node.inputs[where]) if where < len(node.inputs) else None
        return None if tensor is None else np.asarray(tensor.numpy(), np.int64)
    attribute = node.attributes.get(where)
    if attribute is None:
        return None
    return np.array(attribute.as_ints() if attribute.type == ir.AttributeType.INTS else [attribute.as_int()], np.int64)


def _put(node: ir.Node, where: Where, numbers: npt.NDArray[np.int64], taken: set[str | None]) -> None:
    """Give a node numbers of its own: a constant may be shared with nodes that count something else."""
    if isinstance(where, str):
        old = node.attributes.get(where)
        many = old is not None and old.type == ir.AttributeType.INTS or where == "split"
        node.attributes[where] = ir.AttrInt64s(where, numbers.tolist()) if many else ir.AttrInt64(where, int(numbers[0]))
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    old_value = node.inputs[where] if where < len(node.inputs) else None
    tensor = constant(old_value)
    kind = tensor.dtype if tensor is not None else ir.DataType.INT64
    name = unused(f"{site(node)}_{where}_kept", taken)
    value = ir.Value(name=name, const_value=ir.tensor(numbers, dtype=kind, name=name))
    value.shape, value.type = ir.Shape(numbers.shape), ir.TensorType(kind)
    graph.register_initializer(value)
    if where >= len(node.inputs):
        node.resize_inputs(where + 1)
    node.replace_input_with(where, value)
    if node.op_type == "Split":
        node.attributes.pop("num_outputs", None)
    if old_value is not None and old_value.is_initializer() and not old_value.uses() and not old_value.is_graph_input():
        owner = old_value.graph
        if owner is not None and not old_value.is_graph_output() and old_value.name:
            owner.initializers.pop(old_value.name, None)


def unused(name: str, taken: set[str | None]) -> str:
    """A name like this one that is not taken yet; it is now."""
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def _restate_shapes(analysis: Analysis, kept: Kept) -> None:
    """State the sizes that are left of all values between, where any size was stated."""
    for value, axes in analysis.axes.items():
        if axes is None or value.shape is None or len(value.shape) != len(axes) or value.is_initializer():
            continue
        sizes = [None if ids is None else int(kept(ids).sum()) for ids in axes]
        if any(size is not None and size != len(ids) for size, ids in zip(sizes, axes, strict=True) if ids is not None):
            dims = [old if size is None else size for size, old in zip(sizes, value.shape, strict=True)]
            value.shape = ir.Shape(dims)
