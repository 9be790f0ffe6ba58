"""Take a tensor apart without a sequence in between.

    SequenceAt(SplitToSequence(x, sizes, axis), i), for each i   ->   y_0, y_1, ... = Split(x, sizes, axis)

Sequences copy what they hold, and few runtimes have them. Conditions: all sizes and positions are known ahead of time, and
the sequence serves nothing else. Without sizes each part has one slice; with keepdims = 0 its axis is gone, and it stays.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, site

from .graph import Work, attribute, declined, ints

_SIZES_ARE_INPUTS = 13


def split_without_sequence(work: Work, node: ir.Node) -> Change | None:
    """Make a Split of a SplitToSequence and the SequenceAt behind it."""
    readers = [use.node for use in node.outputs[0].uses()]
    if node.outputs[0].is_graph_output() or not readers or work.opset < _SIZES_ARE_INPUTS:
        return None
    if any(not work.is_operator(reader, "SequenceAt") or reader.graph is not node.graph for reader in readers):
        return None
    what = "made a Split of SplitToSequence and SequenceAt"
    sizes, places = _sizes(work, node), [_place(reader) for reader in readers]
    if sizes is None or any(place is None or not -len(sizes) <= place < len(sizes) for place in places):
        return declined(node, what, "how many parts there are, or which is read, is only known when the model runs")
    outputs = [reader.outputs[0] for reader in readers]
    if not all(work.can_replace(output) for output in outputs):
        return None
    positions = [int(place or 0) % len(sizes) for place in places]
    at_outputs = [position for position, output in zip(positions, outputs, strict=True) if output.is_graph_output()]
    if len(at_outputs) != len({*at_outputs}):
        return None  # one part cannot be two outputs
    change = Change(site(node), what, "it gives the parts as tensors")
    split, work.tells_more = _split(work, node, sizes), True
    for reader, position in zip(readers, positions, strict=True):
        part, old = split.outputs[position], reader.outputs[0]
        name = old.name
        work.replace(old, part)
        if part.name is None:
            old.name, part.name = None, name
        work.remove_dead(reader)
    for part in split.outputs:
        part.name = part.name or work.new_name(f"{split.name or 'split'}_part")
    return change


def _split(work: Work, node: ir.Node, sizes: list[int]) -> ir.Node:
    assert node.graph is not None
    split_sizes = work.constant(node, np.array(sizes, np.int64), f"{node.outputs[0].name}_sizes")
    axis = [node.attributes["axis"]] if "axis" in node.attributes else []
    split = ir.Node("", "Split", [node.inputs[0], split_sizes], axis, num_outputs=len(sizes), name=node.name)
    split.metadata_props.update(node.metadata_props)
    node.graph.insert_before(node, split)
    return split


def _place(reader: ir.Node) -> int | None:
    found = ints(reader.inputs[1])
    return found[0] if found is not None and len(found) == 1 else None


def _sizes(work: Work, node: ir.Node) -> list[int] | None:
    """The size of each part along the axis."""
    axis, shape = attribute(node, "axis", 0), work.shape(node.inputs[0])
    if not isinstance(axis, int) or shape is None or attribute(node, "axis", 0) is None:
        return None
    whole = shape[axis]
    split = node.inputs[1] if len(node.inputs) > 1 else None
    if split is None:
        keeps = attribute(node, "keepdims", 1) == 1
        return [1] * whole if keeps and isinstance(whole, int) and 0 < whole <= 1024 else None
    given, tensor = ints(split), constant(split)
    if given is None or tensor is None or not given:
        return None
    if len(tensor.shape):
        return given
    size = given[0]
    if not isinstance(whole, int) or size <= 0:
        return None
    return [min(size, whole - start) for start in range(0, whole, size)] if math.ceil(whole / size) <= 1024 else None
