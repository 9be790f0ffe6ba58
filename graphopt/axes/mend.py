"""After a removal: the numbers that count what was removed.

    shape of a Reshape, sizes of a Split, places of a Slice, amounts of a Pad, ...    a list in an input (once an attribute)
    group, num_heads, hidden_size, ...                                                an attribute

A list may be shared with nodes that count something else, so each node gets one of its own; a list that is joined of constant
and computed parts is joined again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.graphs import constant, site
from graphopt.shapes import defined

from .analysis import Analysis, Kept, Where
from .ids import Ids

Numbers = npt.NDArray[np.int64]


@dataclass
class Mender:
    """Writes numbers into a model, under names that are not taken."""

    analysis: Analysis
    taken: set[str | None]

    def attribute(self, node: ir.Node, name: str, changed: dict[int, int]) -> None:
        """Numbers of an attribute; one that is not written down becomes so."""
        old = node.attributes.get(name)
        if old is not None and old.type == ir.AttributeType.INTS:
            numbers = [changed.get(place, number) for place, number in enumerate(old.as_ints())]
            node.attributes[name] = ir.AttrInt64s(name, numbers)
        else:
            node.attributes[name] = ir.AttrInt64(name, changed[0])

    def input(self, node: ir.Node, index: int, new: ir.Value) -> None:
        """Give an input of a node another value, and drop the constant that it had if nothing reads it now."""
        old = node.inputs[index] if index < len(node.inputs) else None
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, new)
        if (
            old is not None
            and old.is_initializer()
            and not old.uses()
            and not old.is_graph_input()
            and not old.is_graph_output()
        ):
            owner = old.graph
            if owner is not None and old.name:
                owner.initializers.pop(old.name, None)

    def list(self, node: ir.Node, value: ir.Value, changed: dict[int, int], name: str) -> ir.Value:
        """The list with some of its numbers changed, for ``node`` to read."""
        tensor = constant(value)
        if tensor is not None:
            numbers = np.array(tensor.numpy())
            for place, number in changed.items():
                numbers.reshape(-1)[place] = number
            return self.constant(node, numbers, tensor.dtype, name)
        join = value.producer()
        assert join is not None
        assert isinstance(node.graph, ir.Graph)
        parts, first = [], 0
        for part in join.inputs:
            assert part is not None
            length = len(self.analysis.listed(part) or ())
            inside = {place - first: number for place, number in changed.items() if first <= place < first + length}
            parts.append(self.list(node, part, inside, name) if inside else part)
            first += length
        joined = ir.node("Concat", parts, {"axis": 0}, name=self.unused(name))
        joined.outputs[0].name = self.unused(name)
        node.graph.insert_before(node, joined)
        return joined.outputs[0]

    def constant(self, node: ir.Node, numbers: npt.NDArray[np.generic], dtype: ir.DataType, name: str) -> ir.Value:
        """A new initializer in the graph of ``node``."""
        unused = self.unused(name)
        value = ir.Value(name=unused, const_value=ir.tensor(numbers, dtype=dtype, name=unused))
        value.shape, value.type = ir.Shape(numbers.shape), ir.TensorType(dtype)
        assert isinstance(node.graph, ir.Graph)
        node.graph.register_initializer(value)
        return value

    def unused(self, name: str) -> str:
        """A name like this one that is not taken yet; it is now."""
        number, candidate = 0, name
        while candidate in self.taken:
            number += 1
            candidate = f"{name}_{number}"
        self.taken.add(candidate)
        return candidate


def mend(model: ir.Model, analysis: Analysis, kept: Kept) -> None:
    """Write all numbers that change."""
    mender = Mender(analysis, {value.name for graph in model.graphs() for value in defined(graph)})
    for (node, where), counted in analysis.counts.items():
        changed = {place: int(kept(ids).sum()) for place, ids in counted.items() if not kept(ids).all()}
        if changed and isinstance(where, str):
            mender.attribute(node, where, changed)
        elif changed and isinstance(where, int):
            value = node.inputs[where]
            assert value is not None
            mender.input(node, where, mender.list(node, value, changed, _name(node, where)))
    for edit in analysis.edits:
        numbers = edit.compute(kept)
        if np.array_equal(numbers, edit.compute(_all)):
            continue
        if isinstance(edit.where, str):
            edit.node.attributes[edit.where] = ir.AttrInt64s(edit.where, numbers.tolist())
            continue
        old = constant(edit.node.inputs[edit.where]) if edit.where < len(edit.node.inputs) else None
        dtype = ir.DataType.INT64 if old is None else old.dtype
        typed = numbers.astype(dtype.numpy())
        mender.input(edit.node, edit.where, mender.constant(edit.node, typed, dtype, _name(edit.node, edit.where)))
        if edit.node.op_type == "Split":
            edit.node.attributes.pop("num_outputs", None)  # not beside sizes


def _all(ids: Ids) -> npt.NDArray[np.bool_]:
    return np.ones(ids.shape, np.bool_)


def _name(node: ir.Node, where: Where) -> str:
    return f"{site(node)}_{where}_kept"
