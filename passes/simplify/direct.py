"""The operators that models compute constants with most, in NumPy: the same lines as in ONNX's reference implementation.

That implementation takes longer to import than most models take to simplify, so it is left for the others. A rule here covers
the usual form of its operator and gives None for what it leaves to the reference, as types that NumPy would mix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array

_Rule = Callable[[ir.Node, Sequence[Array]], "Array | None"]


def compute(node: ir.Node, inputs: Sequence[Array | None]) -> Array | list[Array] | None:
    """The one output of a node, or those of a Split; None if there is no rule for it. What NumPy raises goes on."""
    given = [array for array in inputs if array is not None]
    if len(given) < len(inputs):
        return None
    if node.op_type == "Split":
        return _split(node, given)
    rule = _RULES.get(node.op_type)
    return rule(node, given) if rule is not None and len(node.outputs) == 1 else None


def _unary(function: Callable[[Array], Array], kinds: str) -> _Rule:
    return lambda _node, inputs: function(inputs[0]) if inputs[0].dtype.kind in kinds else None


def _binary(function: Callable[[Array, Array], Array], kinds: str) -> _Rule:
    def rule(_node: ir.Node, inputs: Sequence[Array]) -> Array | None:
        a, b = inputs
        return function(a, b) if a.dtype == b.dtype and a.dtype.kind in kinds else None

    return rule


def _cast(node: ir.Node, inputs: Sequence[Array]) -> Array:
    return inputs[0].astype(ir.DataType(node.attributes["to"].as_int()).numpy())


def _concat(node: ir.Node, inputs: Sequence[Array]) -> Array | None:
    same = all(array.ndim and array.dtype == inputs[0].dtype for array in inputs)
    return np.concatenate(inputs, node.attributes["axis"].as_int()) if same else None


def _constant_of_shape(node: ir.Node, inputs: Sequence[Array]) -> Array | None:
    value = node.attributes.get("value")
    number = np.float32(0) if value is None else value.as_tensor().numpy().reshape(())
    return np.full(tuple(inputs[0]), number)


def _expand(_node: ir.Node, inputs: Sequence[Array]) -> Array:
    data, shape = inputs
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape)))


def _gather(node: ir.Node, inputs: Sequence[Array]) -> Array:
    return np.take(inputs[0], inputs[1], node.attributes.get_int("axis", 0))


def _range(_node: ir.Node, inputs: Sequence[Array]) -> Array | None:
    start, end, step = inputs
    if start.dtype.itemsize < 4:
        return None
    return np.arange(start.item(), end.item(), step.item()).astype(start.dtype)


def _reshape(node: ir.Node, inputs: Sequence[Array]) -> Array | None:
    if len(inputs) != 2:
        return None
    data, shape = inputs
    if node.attributes.get_int("allowzero", 0) == 1:
        return data.reshape(shape)
    return data.reshape([data.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def _slice(_node: ir.Node, inputs: Sequence[Array]) -> Array | None:
    if len(inputs) < 3 or any(array.ndim != 1 for array in inputs[1:]):
        return None
    data, starts, ends, *rest = inputs
    axes = rest[0] if rest else range(len(starts))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    window = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        window[axis] = slice(start, end, step)
    return data[tuple(window)]


def _split(node: ir.Node, inputs: Sequence[Array]) -> list[Array] | None:
    axis = node.attributes.get_int("axis", 0)
    sizes = inputs[1] if len(inputs) > 1 else np.array(node.attributes.get_ints("split") or (), np.int64)
    if len(sizes) != len(node.outputs) or sizes.sum() != inputs[0].shape[axis]:
        return None
    return np.split(inputs[0], np.cumsum(sizes)[:-1], axis)


def _axes(node: ir.Node, inputs: Sequence[Array]) -> tuple[int, ...] | None:
    """Axes that an attribute gives in ascending order from the front, or an input; None if neither does."""
    attribute = node.attributes.get("axes")
    if attribute is None:
        return tuple(map(int, inputs[1].flat)) if len(inputs) > 1 else None
    axes = tuple(attribute.as_ints())
    return axes if all(axis >= 0 for axis in axes) and list(axes) == sorted(axes) else None


def _squeeze(node: ir.Node, inputs: Sequence[Array]) -> Array | None:
    axes = _axes(node, inputs)
    return None if axes is None else np.squeeze(inputs[0], axes)


def _transpose(node: ir.Node, inputs: Sequence[Array]) -> Array:
    return np.transpose(inputs[0], node.attributes.get_ints("perm") or None)


def _unsqueeze(node: ir.Node, inputs: Sequence[Array]) -> Array | None:
    axes = _axes(node, inputs)
    return None if axes is None else np.expand_dims(inputs[0], axes)


def _where(_node: ir.Node, inputs: Sequence[Array]) -> Array | None:
    condition, x, y = inputs
    return np.where(condition, x, y) if x.dtype == y.dtype else None


_NUMBERS = "fiu"
_RULES: Mapping[str, _Rule] = {
    "Add": _binary(np.add, _NUMBERS),
    "And": _binary(np.logical_and, "b"),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Cos": _unary(np.cos, "f"),
    "Div": _binary(np.divide, "f"),
    "Equal": _binary(np.equal, _NUMBERS),
    "Exp": _unary(np.exp, "f"),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _binary(np.greater, _NUMBERS),
    "GreaterOrEqual": _binary(np.greater_equal, _NUMBERS),
    "Identity": _unary(np.copy, "bfiu"),
    "Less": _binary(np.less, _NUMBERS),
    "LessOrEqual": _binary(np.less_equal, _NUMBERS),
    "Mul": _binary(np.multiply, _NUMBERS),
    "Neg": _unary(np.negative, "fi"),
    "Not": _unary(np.logical_not, "b"),
    "Or": _binary(np.logical_or, "b"),
    "Pow": _binary(np.power, "f"),
    "Range": _range,
    "Reshape": _reshape,
    "Sin": _unary(np.sin, "f"),
    "Slice": _slice,
    "Sqrt": _unary(np.sqrt, "f"),
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract, _NUMBERS),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
COVERED = frozenset({*_RULES, "Split"})
