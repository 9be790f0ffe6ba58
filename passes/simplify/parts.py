"""Take an axis apart once: Slices that together give all of it are a Split.

    x[0:a], x[a:b], ..., x[z:n] along one axis   ->   Split(x; a, b - a, ..., n - z)

The Slices are in one graph, take every element in steps of one, and no two of them the same; the size n is fixed. What else
reads x does so as before. Parts that leave something out stay Slices: a Split would copy the rest in vain.
"""

from __future__ import annotations

from itertools import pairwise

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import site

from .contents import slice_of
from .edit import Edit, has_one_place
from .graph import can_replace, remove, replace

_FIRST_SPLIT_WITH_INPUT = 13
_FIRST_SPLIT_WITH_SIZES = 2


def split_slices(edit: Edit, node: ir.Node) -> bool:
    """Let a Split take the place of a Slice and the others that take apart the same axis of the same value."""
    source = node.inputs[0]
    if source is None or len(source.uses()) < 2 or edit.root.opset < _FIRST_SPLIT_WITH_SIZES:
        return False
    own = _window(edit, node)
    if own is None or own[1] != 0:  # the first part of an axis speaks for all
        return False
    axis, _, _, length = own
    parts: list[tuple[int, int, ir.Node]] = []
    for use in source.uses():
        other = use.node
        if use.idx == 0 and other.op_type == "Slice" and other.graph is node.graph and edit.work.is_operator(other):
            found = _window(edit, other) if has_one_place(other) else None
            if found is not None and found[0] == axis:
                parts.append((found[1], found[2], other))
    parts.sort(key=lambda part: part[:2])
    bounds = [0, *(end for _, end, _ in parts)]
    if len(parts) < 2 or bounds[-1] != length or [begin for begin, _, _ in parts] != bounds[:-1]:
        return False
    outputs = _split(edit, source, axis, [end - begin for begin, end in pairwise(bounds)], [other for _, _, other in parts])
    for (_, _, other), new in zip(parts, outputs, strict=True):
        assert can_replace(other.outputs[0], new)
        replace(other.outputs[0], new)
        edit.changes.append(Change(site(other), "merged into one Split", "together the Slices take the axis apart"))
    remove([other for _, _, other in parts])
    return True


def _window(edit: Edit, node: ir.Node) -> tuple[int, int, int, int] | None:
    """Axis, begin, end, and size of the axis, of a Slice along one axis of a fixed size; None for others, and empty ones."""
    window, dims = slice_of(edit.known, node), edit.known.dims(node.inputs[0])
    if window is None or dims is None or len(window) != 1:
        return None
    ((axis, (start, end, step)),) = window.items()
    length = dims[axis]
    if step != 1 or not (isinstance(start, int) and isinstance(end, int) and isinstance(length, int)):
        return None
    taken = range(length)[start:end]
    return (axis, taken.start, taken.stop, length) if taken else None


def _split(edit: Edit, source: ir.Value, axis: int, sizes: list[int], slices: list[ir.Node]) -> list[ir.Value]:
    """The outputs of a new Split, right behind what gives its input: before all that reads one of them."""
    graph, producer = slices[0].graph, source.producer()
    assert graph is not None
    behind = producer if producer is not None and producer.graph is graph else None
    place = graph[0] if behind is None else behind
    inputs, attributes = [source], [ir.AttrInt64("axis", axis)]
    if edit.root.opset >= _FIRST_SPLIT_WITH_INPUT:
        inputs.append(edit.vector(place, sizes))
    else:
        attributes.append(ir.AttrInt64s("split", sizes))
    outputs = []
    for other in slices:
        old = other.outputs[0]
        known = edit.work.facts.get(old, ir.TypeAndShape(None, None))
        new = ir.Value(name=edit.root.new_name(old.name or "part"), type=known.type, shape=known.shape)
        edit.work.facts[new] = known
        edit.known.tell(new, old)
        outputs.append(new)
    node = ir.Node("", "Split", inputs, attributes, outputs=outputs, name=edit.root.new_node_name(site(slices[0])))
    if behind is None:
        graph.insert_before(place, node)
    else:
        graph.insert_after(behind, node)
    return outputs
