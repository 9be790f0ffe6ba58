"""The contents of small integer tensors as operators give them, element by element (``symbolic.py``).

Shape(x) -> dims(x)    Gather, Slice, Concat, Reshape, ... pick and arrange    Add, Mul, Div, Min, ... compute with polynomials
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from .dims import Dim, are_equal, is_nonnegative, larger, product, quotient, remainder, smaller
from .numbers import MOST_ELEMENTS, Numbers, broadcast, concatenated, squeezed, unsqueezed, vector
from .symbolic import FOLLOWED, INTEGERS, Gives, Symbolic

_INFINITY = 1 << 31
"""A bound of a Slice from here on means "to the end"."""


def _shape(known: Symbolic, node: ir.Node) -> Numbers | None:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    return vector(dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))])


def _size(known: Symbolic, node: ir.Node) -> Numbers | None:
    dims = known.dims(node.inputs[0])
    return None if dims is None else Numbers((), (product(dims),))


def _gather(known: Symbolic, node: ir.Node) -> Numbers | None:
    data, indices, axis = known.numbers(node.inputs[0]), known.numbers(node.inputs[1]), node.attributes.get_int("axis", 0)
    positions = known.fixed(node.inputs[1])
    if data is None or indices is None or positions is None or not -len(data.shape) <= axis < len(data.shape):
        return None
    length = data.shape[axis]
    if not all(-length <= position < length for position in positions):
        return None
    if len(data.shape) == 1:
        return Numbers(indices.shape, tuple([data.items[position] for position in positions]))
    return data.picked(lambda places: np.take(places, np.reshape(positions, indices.shape), axis))


def _slice(known: Symbolic, node: ir.Node) -> Numbers | None:
    data, window = known.numbers(node.inputs[0]), slice_of(known, node)
    if data is None or window is None:
        return None
    index = [slice(None)] * len(data.shape)
    for axis, (start, end, step) in window.items():
        if not (isinstance(start, int) and isinstance(end, int) and axis < len(index)):
            return None
        index[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return vector(data.items[index[0]]) if len(index) == 1 else data.picked(lambda places: places[tuple(index)])


def slice_of(known: Symbolic, node: ir.Node) -> dict[int, tuple[Dim, Dim, int]] | None:
    """Start, end and step for each axis of a Slice, axes counted from 0; None if they are not known."""
    dims = known.dims(node.inputs[0])
    if "starts" in node.attributes:
        starts: list[Dim] | None = [*node.attributes["starts"].as_ints()]
        ends: list[Dim] | None = [*node.attributes["ends"].as_ints()]
        axes, steps = known.axes(node), None
    else:
        starts, ends = known.known_numbers(node.inputs[1]), known.known_numbers(node.inputs[2])
        given = [*node.inputs[3:], None, None]
        axes = known.fixed(given[0]) if given[0] is not None else None
        steps = known.fixed(given[1]) if given[1] is not None else None
        if (axes is None) != (given[0] is None) or (steps is None) != (given[1] is None):
            return None
    if starts is None or ends is None or dims is None:
        return None
    axes = [*range(len(starts))] if axes is None else [axis % len(dims) if dims else 0 for axis in axes]
    steps = [1] * len(starts) if steps is None else steps
    return {a: (start, end, step) for a, start, end, step in zip(axes, starts, ends, steps, strict=True)}


def _concat(known: Symbolic, node: ir.Node) -> Numbers | None:
    parts = []
    for value in node.inputs:
        part, dims = known.numbers(value), known.dims(value)
        if part is None:
            if dims is None or len(dims) != 1 or not isinstance(dims[0], int) or dims[0] > MOST_ELEMENTS:
                return None
            part = vector([None] * dims[0])
        parts.append(part)
    if sum(len(part.items) for part in parts) > MOST_ELEMENTS or known.dtype(node.inputs[0]) not in FOLLOWED:
        return None
    return concatenated(parts, node.attributes.get_int("axis", 0))


def _reshape(known: Symbolic, node: ir.Node) -> Numbers | None:
    data, target = known.numbers(node.inputs[0]), known.fixed(node.inputs[1]) if len(node.inputs) > 1 else None
    if data is None or target is None or 0 in target:
        return None
    rest = len(data.items) // abs(math.prod(target))
    return data.reshaped(tuple([rest if size == -1 else size for size in target]))


def _squeeze(known: Symbolic, node: ir.Node) -> Numbers | None:
    data, axes = known.numbers(node.inputs[0]), known.axes(node)
    if data is None or (axes is None and len(node.inputs) > 1 and node.inputs[1] is not None):
        return None
    return data.reshaped(squeezed(data.shape, axes))


def _unsqueeze(known: Symbolic, node: ir.Node) -> Numbers | None:
    data, axes = known.numbers(node.inputs[0]), known.axes(node)
    return None if data is None or axes is None else data.reshaped(unsqueezed(data.shape, axes))


def _transpose(known: Symbolic, node: ir.Node) -> Numbers | None:
    data, perm = known.numbers(node.inputs[0]), node.attributes.get_ints("perm")
    return None if data is None else data.picked(lambda places: places.transpose(perm))


def _cast(known: Symbolic, node: ir.Node) -> Numbers | None:
    if known.dtype(node.inputs[0]) not in FOLLOWED or node.attributes.get_int("to", 0) not in {d.value for d in INTEGERS}:
        return None
    data = known.numbers(node.inputs[0])
    if data is not None and any(isinstance(number, int) and not -_INFINITY <= number < _INFINITY for number in data.items):
        return None  # what is left of it in 32 bits is another number
    return data


def _copy(known: Symbolic, node: ir.Node) -> Numbers | None:
    return known.numbers(node.inputs[0])


def _elementwise(rule: Callable[..., Dim | bool | None], types: frozenset[ir.DataType] = INTEGERS) -> Gives:
    def number(*operands: Dim | None) -> Dim | None:
        found = None if None in operands else rule(*operands)
        return int(found) if isinstance(found, bool) else found

    def apply(known: Symbolic, node: ir.Node) -> Numbers | None:
        operands = _operands(known, node)
        if operands is None or known.dtype(node.inputs[0]) not in types:
            return None
        columns = zip(*(operand.items for operand in operands), strict=True)
        if len(operands) > 2:  # Min, Max of more
            return Numbers(operands[0].shape, tuple([functools.reduce(number, column) for column in columns]))
        return Numbers(operands[0].shape, tuple([number(*column) for column in columns]))

    return apply


def _operands(known: Symbolic, node: ir.Node) -> Sequence[Numbers] | None:
    """What an elementwise operator reads, all of one shape."""
    operands = []
    for value in node.inputs:
        operand = known.numbers(value)
        if operand is None:
            return None
        operands.append(operand)
    return broadcast(operands) if operands else None


def _where(known: Symbolic, node: ir.Node) -> Numbers | None:
    """Each element is decided if the condition is, or if both choices are the same."""
    operands = _operands(known, node)
    if operands is None or known.dtype(node.inputs[1]) not in FOLLOWED:
        return None

    def choose(condition: Dim | None, a: Dim | None, b: Dim | None) -> Dim | None:
        if isinstance(condition, int):
            return a if condition else b
        return a if a == b else None

    return Numbers(operands[0].shape, tuple(map(choose, *(operand.items for operand in operands))))


def _reduce(rule: Callable[[list[Dim]], Dim | None]) -> Gives:
    def apply(known: Symbolic, node: ir.Node) -> Numbers | None:
        data, numbers = known.numbers(node.inputs[0]), known.known_numbers(node.inputs[0])
        if data is None or numbers is None or len(data.shape) != 1 or known.dtype(node.inputs[0]) not in INTEGERS:
            return None
        axes, keeps = known.axes(node), node.attributes.get_int("noop_with_empty_axes", 0) != 0
        everything = len(node.inputs) == 1 and "axes" not in node.attributes and not keeps
        if axes not in ([0], [-1]) and not everything:
            return None
        found = rule(numbers)
        return None if found is None else Numbers((1,) * node.attributes.get_int("keepdims", 1), (found,))

    return apply


def _constant_of_shape(known: Symbolic, node: ir.Node) -> Numbers | None:
    shape = known.fixed(node.inputs[0])
    value = node.attributes.get("value")
    if shape is None or value is None or value.is_ref() or math.prod(shape) > MOST_ELEMENTS:
        return None
    tensor = value.value
    if tensor.dtype not in FOLLOWED:
        return None
    return Numbers(tuple(shape), (int(tensor.numpy().item()),) * math.prod(shape))


def _expand(known: Symbolic, node: ir.Node) -> Numbers | None:
    data, shape = known.numbers(node.inputs[0]), known.fixed(node.inputs[1])
    if data is None or shape is None or math.prod(shape) > MOST_ELEMENTS:
        return None
    expanded = broadcast([data, Numbers(tuple(shape), (None,) * math.prod(shape))])
    return None if expanded is None else expanded[0]


def _range(known: Symbolic, node: ir.Node) -> Numbers | None:
    ends = [known.fixed(value) for value in node.inputs]
    if ends[0] is None or ends[1] is None or ends[2] is None or ends[2] == [0] or known.dtype(node.inputs[0]) not in INTEGERS:
        return None
    numbers = range(ends[0][0], ends[1][0], ends[2][0])
    return vector(numbers) if len(numbers) <= MOST_ELEMENTS else None


def _mod(known: Symbolic, node: ir.Node) -> Numbers | None:
    """With ``fmod`` the sign is that of the dividend: only one that is not negative gives the same."""
    fmod = node.attributes.get_int("fmod", 0)
    return _elementwise(lambda a, b: remainder(a, b) if not fmod or is_nonnegative(a) else None)(known, node)


def _less(a: Dim, b: Dim) -> bool | None:
    if is_nonnegative(a - b):
        return False
    return True if is_nonnegative(b - a - 1) else None


def _or_equal(a: Dim, b: Dim) -> bool | None:
    greater = _less(b, a)
    return None if greater is None else not greater


CONTENTS: dict[str, Gives] = {
    "Abs": _elementwise(lambda a: a if is_nonnegative(a) else None),
    "Add": _elementwise(lambda a, b: a + b),
    "And": _elementwise(lambda a, b: a * b, FOLLOWED),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _elementwise(quotient),
    "Equal": _elementwise(are_equal, FOLLOWED),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _elementwise(lambda a, b: _less(b, a)),
    "GreaterOrEqual": _elementwise(lambda a, b: _or_equal(b, a)),
    "Identity": _copy,
    "Less": _elementwise(_less),
    "LessOrEqual": _elementwise(_or_equal),
    "Max": _elementwise(larger),
    "Min": _elementwise(smaller),
    "Mod": _mod,
    "Mul": _elementwise(lambda a, b: a * b),
    "Neg": _elementwise(lambda a: -a),
    "Not": _elementwise(lambda a: 1 - a, FOLLOWED),
    "Range": _range,
    "ReduceProd": _reduce(product),
    "ReduceSum": _reduce(lambda numbers: functools.reduce(lambda a, b: a + b, numbers)),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(lambda a, b: a - b),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""The contents of the first output."""
