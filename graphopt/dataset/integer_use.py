"""Which values an integer input may take, from what the graph does with it.

The value is followed forward, through operators that only move it about, into the bodies of If and Loop (functions are inlined
first), to

    an index into a table      0 <= value < size of the table's indexed axis, the smallest table deciding
    Equal with a constant      the value is a switch: one of the constants (silero's sampling rate)

Adding or subtracting a constant on the way shifts the range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

_MOVED_ABOUT: Mapping[str, tuple[int, ...] | None] = {
    "Cast": (0,),
    "Concat": None,
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "Identity": (0,),
    "Reshape": (0,),
    "Slice": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}
"""Operators that keep values as they are, and which inputs of theirs come out again; None: all."""
_FEW = 16  # more constants than this are a table, not the positions of a switch
_MOST = 10_000  # values that are followed, in case a loop shifts one without end


@dataclass(frozen=True)
class IntegerUse:
    """What is known about an input's values; nothing if both are empty."""

    bounds: tuple[int, int] | None = None
    """Lowest value, and one above the highest."""
    choices: tuple[int, ...] = ()


def integer_uses(model: ir.Model, names: Iterable[str], sizes: Mapping[str, int]) -> dict[str, IntegerUse]:
    """Follow inputs through the graph.

    Args:
        model: Stays as it is.
        names: Of the inputs.
        sizes: Of symbolic dimensions, for tables that are not constants.
    """
    if model.functions:
        model = model.clone()
        InlinePass()(model)
    inputs = {value.name: value for value in model.graph.inputs}
    return {name: _integer_use(inputs[name], sizes) for name in names}


def _integer_use(value: ir.Value, sizes: Mapping[str, int]) -> IntegerUse:
    limits: list[tuple[int, int]] = []
    choices: set[int] = set()
    for node, index, offset in _uses(value):
        if (size := _table_size(node, index, sizes)) is not None and size > 0:
            limits.append((-offset, size - offset))
        elif node.op_type == "Equal" and (constants := _constants(node.inputs[1 - index])) is not None:
            choices |= {constant - offset for constant in constants}
    if limits:
        low, high = max(low for low, _ in limits), min(high for _, high in limits)
        return IntegerUse(bounds=(low, max(high, low + 1)))
    return IntegerUse(choices=tuple(sorted(choices)))


def _uses(value: ir.Value) -> Iterable[tuple[ir.Node, int, int]]:
    """Every node that takes the value, or the value plus an offset, with the input's position and the offset."""
    waiting, seen = [(value, 0)], {(value, 0)}
    while waiting:
        current, offset = waiting.pop()
        for node, index in current.uses():
            yield node, index, offset
            for target, shift in _comes_out(node, index):
                if (after := (target, offset + shift)) not in seen and len(seen) < _MOST:
                    seen.add(after)
                    waiting.append(after)


def _comes_out(node: ir.Node, index: int) -> Iterable[tuple[ir.Value, int]]:
    """Where a node's input comes out again unchanged, or shifted by a constant."""
    if node.op_type == "Loop" and index >= 2:
        return [(node.attributes["body"].as_graph().inputs[index], 0)]
    if node.op_type in _MOVED_ABOUT:
        positions = _MOVED_ABOUT[node.op_type]
        return [(output, 0) for output in node.outputs] if positions is None or index in positions else []
    if node.op_type == "Add" or (node.op_type == "Sub" and index == 0):
        constants = _constants(node.inputs[1 - index])
        if constants is not None and len(set(constants)) == 1:
            return [(node.outputs[0], constants[0] if node.op_type == "Add" else -constants[0])]
    return []


# --------------------------------------------------------------------------------------------------------------- tables


def _table_size(node: ir.Node, index: int, sizes: Mapping[str, int]) -> int | None:
    """The number of entries that this input of the node indexes; None if it is no index or the number is not known."""
    size = _TABLES.get((node.op_type, index))
    return None if size is None else size(node, sizes)


def _along_axis(attribute: str = "axis") -> Callable[[ir.Node, Mapping[str, int]], int | None]:
    def size(node: ir.Node, sizes: Mapping[str, int]) -> int | None:
        return _dim(node.inputs[0], node.attributes.get_int(attribute, 0), sizes)

    return size


def _first_axis_of(position: int) -> Callable[[ir.Node, Mapping[str, int]], int | None]:
    return lambda node, sizes: _dim(node.inputs[position], 0, sizes)


def _depth(node: ir.Node, sizes: Mapping[str, int]) -> int | None:
    del sizes
    constants = _constants(node.inputs[1])
    return constants[0] if constants else None


def _smallest(node: ir.Node, sizes: Mapping[str, int]) -> int | None:
    """GatherND: an index has one component for each of the first axes after the batch ones; the smallest axis is safe."""
    indices = node.inputs[1]
    components = None if indices is None or indices.shape is None else indices.shape[-1]
    if not isinstance(components, int):
        return None
    start = node.attributes.get_int("batch_dims", 0)
    found = [_dim(node.inputs[0], axis, sizes) for axis in range(start, start + components)]
    return None if not found or None in found else min(size for size in found if size is not None)


_TABLES: Mapping[tuple[str, int], Callable[[ir.Node, Mapping[str, int]], int | None]] = {
    ("Gather", 1): _along_axis(),
    ("GatherElements", 1): _along_axis(),
    ("ScatterElements", 1): _along_axis(),
    ("GatherND", 1): _smallest,
    ("ScatterND", 1): _smallest,
    ("OneHot", 0): _depth,
    ("GatherBlockQuantized", 1): _along_axis("gather_axis"),
    ("EmbedLayerNormalization", 0): _first_axis_of(2),
    ("EmbedLayerNormalization", 1): _first_axis_of(4),
}
"""Operator and position of an index, and how many entries there are to index."""


def _dim(value: ir.Value | None, axis: int, sizes: Mapping[str, int]) -> int | None:
    """The size of an axis, where it is known."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    shape = value.shape if tensor is None else tensor.shape
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    dim = shape[axis]
    return dim if isinstance(dim, int) else sizes.get(str(dim.value))


def _constants(value: ir.Value | None) -> list[int] | None:
    """The elements of a small integer constant."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > _FEW or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return [int(element) for element in tensor.numpy().reshape(-1)]
