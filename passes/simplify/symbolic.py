"""Symbolic evaluation: the dimensions of every value, and the contents of small integer tensors, as polynomials (``dims.py``).

    dims(v)      one polynomial for each axis; an axis that nothing is known of is an atom of its own
    numbers(v)   the contents of an integer or bool tensor of up to 64 elements, where known

Dimensions come from ONNX's inference where that knows them, else from ``follow.py``; numbers from the rules here. Both hold for
every size of a dynamic dimension from 1 up: a Reshape is taken to give the dimensions that it asks for, though a 0 among them
would mean "as the input". A symbol of the inputs is the same size wherever it stands.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array
from graphopt.graphs import constant
from graphopt.shapes import is_known

from .dims import (
    UNKNOWN,
    Dim,
    Poly,
    TooLongError,
    are_equal,
    is_nonnegative,
    larger,
    product,
    quotient,
    remainder,
    smaller,
    symbol,
)
from .graph import Root, Work

MOST_ELEMENTS = 64
"""Tensors up to this size are followed; shapes are never longer."""
INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})
_FOLLOWED = INTEGERS | {ir.DataType.BOOL}
_INFINITY = 1 << 31
"""A bound of a Slice from here on means "to the end"."""


class Symbolic:
    """What is known of the values of a root: found out when somebody asks, and kept until ``update`` says what changed."""

    def __init__(self, work: Work, root: Root, rules: Mapping[str, Follows]) -> None:
        self._work = work
        self.opset = root.opset
        self._rules = rules
        self._functions = work.model.functions
        self._symbols: dict[str, Poly] = {}
        self._dims: dict[ir.Value, tuple[Dim, ...] | None] = {}
        self._numbers: dict[ir.Value, Array | None] = {}
        self._followed: set[ir.Value] = set()
        """Of these the rules say what they can; of others, what inference and constants say is all that was asked."""
        self._atoms = 0
        self._unknown: set[Dim] = set()
        """How the rule that is being asked says that it knows nothing of a dimension."""
        self._earlier: dict[ir.Value, tuple[Dim, ...]] = {}
        """What was known of the dimensions of values before what they follow from changed: as true as ever."""

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """The dimensions of a value; None if not even their number is known."""
        if value is None:
            return None
        if value not in self._dims:
            known = self._inferred(value)
            if known is None or None in known:
                self._follow(value)
            if value not in self._dims:
                self._dims[value] = self._named(value, known)
        return self._dims[value]

    def numbers(self, value: ir.Value | None) -> Array | None:
        """The contents: an array of objects, each a dimension, or None where it is not known; None if nothing is known."""
        if value is None:
            return None
        if value not in self._numbers:
            if self._may_be_numbered(value):
                self._follow(value)
            if value not in self._numbers:
                self._numbers[value] = self._constant_numbers(value)
        return self._numbers[value]

    def known_numbers(self, value: ir.Value | None) -> list[Dim] | None:
        """The contents of a vector (of a scalar: the one number), if all of it is known."""
        numbers = self.numbers(value)
        if numbers is None or any(number is None for number in numbers.flat):
            return None
        return [*numbers.flat]

    def fixed(self, value: ir.Value | None) -> list[int] | None:
        """The contents of a vector or a scalar, if all of it is the same for all sizes."""
        numbers = self.known_numbers(value)
        if numbers is None or any(isinstance(number, Poly) for number in numbers):
            return None
        return [number for number in numbers if isinstance(number, int)]

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type, where it is known for certain."""
        tensor = constant(value)
        return self._work.dtype(value) if tensor is None else tensor.dtype

    def tell(self, new: ir.Value, old: ir.Value) -> None:
        """Take over what is known of ``old`` for a value that has the same contents."""
        self._dims[new], self._numbers[new] = self.dims(old), self.numbers(old)
        self._followed.add(new)

    def tell_dims(self, new: ir.Value, dims: tuple[Dim, ...]) -> None:
        """Take note of the dimensions of a value that is new."""
        self._dims[new], self._numbers[new] = dims, None
        self._followed.add(new)

    def update(self, nodes: Iterable[ir.Node], changed: Iterable[ir.Node]) -> set[ir.Node]:
        """Find out anew what is known of what has changed, and of what depends on that if something else is known now.

        Args:
            nodes: All nodes, in order.
            changed: Those that are new, read something else than before, or of whose outputs inference knows something else.

        Returns:
            The nodes that give a value of which something else is known now.
        """
        due, found = {*changed}, set()
        for node in nodes if due else ():
            renewed = [output for output in node.outputs if self._is_renewed(output)] if node in due else []
            if renewed:
                found.add(node)
                due.update(use.node for output in renewed for use in output.uses())
        return found

    def _is_renewed(self, value: ir.Value) -> bool:
        """Whether something else is known of a value, now that it is found out anew; not if nobody has asked yet."""
        asked_dims, asked_numbers = value in self._dims, value in self._numbers
        dims, numbers = self._dims.pop(value, None), self._numbers.pop(value, None)
        self._followed.discard(value)
        if dims is not None:
            self._earlier[value] = dims
        return (asked_dims and self.dims(value) != dims) or (asked_numbers and not _is_same(self.numbers(value), numbers))

    def axes(self, node: ir.Node, index: int = 1, name: str = "axes") -> list[int] | None:
        """Axes given by an attribute or a constant input; None if they are not given, or not constant."""
        attribute = node.attributes.get(name)
        if attribute is not None:
            return None if attribute.is_ref() else [*attribute.as_ints()]
        return self.fixed(node.inputs[index]) if len(node.inputs) > index else None

    def _may_be_numbered(self, value: ir.Value) -> bool:
        """Whether a rule may give the contents of a value: not those of floats, nor of what is too large."""
        node = value.producer()
        if node is None or node.op_type not in _NUMBERS:
            return False
        known = self._work.facts.get(value)
        if known is None:
            return True
        if not isinstance(known.type, ir.TensorType) or known.type.dtype not in _FOLLOWED:
            return False
        return known.shape is None or not known.shape.is_static() or math.prod(known.shape.numpy()) <= MOST_ELEMENTS

    def _unfollowed(self, value: ir.Value | None) -> ir.Node | None:
        """The node that gives a value, if rules may say more of it than is known."""
        if value is None or value in self._followed:
            return None
        node = value.producer()
        if node is None or node.graph is None or node.op_type == "Constant":
            return None
        return None if is_known(self._work.facts.get(value)) and not self._may_be_numbered(value) else node

    def _follow(self, value: ir.Value) -> None:
        """Evaluate the node that gives a value, after those that it depends on, however many they are."""
        node = self._unfollowed(value)
        waiting = [] if node is None else [node]
        while waiting:
            before = [first for v in waiting[-1].inputs if (first := self._unfollowed(v)) is not None]
            if before:
                waiting += before
                continue
            node = waiting.pop()
            if any(output not in self._followed for output in node.outputs):
                self._evaluate(node)

    def _evaluate(self, node: ir.Node) -> None:
        op_type, functions = node.op_type, self._functions
        standard = node.domain == "" and not (functions and node.op_identifier() in functions)
        self._unknown = set()
        inferred = [self._fact(output) for output in node.outputs]
        followed: list[tuple[Dim, ...] | None] = [None] * len(node.outputs)
        try:
            if standard and op_type in self._rules and any(known is None or None in known for known in inferred):
                found = self._rules[op_type](self, node)
                followed[: len(found)] = found[: len(followed)]
            numbers = _NUMBERS[op_type](self, node) if standard and op_type in _NUMBERS else None
        except TooLongError:
            numbers = None
        for output, first, second in zip(node.outputs, inferred, followed, strict=True):
            self._dims[output] = self._named(output, _merged(first, second))
            self._numbers[output] = None
        if numbers is not None and numbers.size <= MOST_ELEMENTS:
            self._numbers[node.outputs[0]] = numbers
        self._followed.update(node.outputs)

    def _inferred(self, value: ir.Value) -> tuple[Dim | None, ...] | None:
        tensor = constant(value)
        return self._fact(value) if tensor is None else tuple(tensor.shape.numpy())

    def _fact(self, value: ir.Value) -> tuple[Dim | None, ...] | None:
        known = self._work.facts.get(value)
        if known is None or known.shape is None or not isinstance(known.type, ir.TensorType):
            return None
        return tuple([dim if isinstance(dim, int) else self._symbol(dim) for dim in known.shape.dims])

    def _symbol(self, dim: ir.SymbolicDim) -> Poly | None:
        name = dim.value
        if not name:
            return None
        if name not in self._symbols:
            self._symbols[name] = symbol(f"${name}")
        return self._symbols[name]

    def _named(self, value: ir.Value, dims: Sequence[Dim | None] | None) -> tuple[Dim, ...] | None:
        """Dimensions of a value, with what was known earlier for those that nothing is known of now."""
        if dims is None:
            return None
        known = [None if dim is None or (self._unknown and dim in self._unknown) else dim for dim in dims]
        earlier = self._earlier.get(value, ()) if None in known else ()
        if len(earlier) == len(known):
            known = [old if dim is None else dim for dim, old in zip(known, earlier, strict=True)]
        return tuple([self._atom() if dim is None else dim for dim in known])

    def unknown(self) -> Poly:
        """A dimension that nothing is known of; for rules to say so."""
        atom = self._atom()
        self._unknown.add(atom)
        return atom

    def _atom(self) -> Poly:
        self._atoms += 1
        return symbol(f"{UNKNOWN}{self._atoms}")

    def _constant_numbers(self, value: ir.Value) -> Array | None:
        tensor = constant(value)
        if tensor is None or tensor.dtype not in _FOLLOWED or tensor.size > MOST_ELEMENTS:
            return None
        array = tensor.numpy()
        objects = np.empty(array.shape, object)
        objects[...] = array.astype(np.int64).tolist() if array.ndim else int(array)
        return objects


def _merged(a: Sequence[Dim | None] | None, b: Sequence[Dim] | None) -> Sequence[Dim | None] | None:
    if a is None or b is None or len(a) != len(b):
        return b if a is None else a
    return [y if x is None else x for x, y in zip(a, b, strict=True)]


def _is_same(a: Array | None, b: Array | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


Follows = Callable[[Symbolic, ir.Node], "list[tuple[Dim, ...] | None]"]
"""The dimensions of an operator's outputs; None where they cannot be told."""
_Rule = Callable[[Symbolic, ir.Node], "Array | None"]


def _vector(numbers: Sequence[Dim | None]) -> Array:
    objects = np.empty(len(numbers), object)
    objects[:] = numbers
    return objects


def _objects(rule: Callable[..., Dim | None], shape: tuple[int, ...], *operands: Array) -> Array:
    """The rule applied to each element of the operands, which broadcast to ``shape``."""
    result = np.empty(shape, object)
    for index, numbers in enumerate(zip(*(np.broadcast_to(array, shape).flat for array in operands), strict=True)):
        result.flat[index] = rule(*numbers)
    return result


def _shape(known: Symbolic, node: ir.Node) -> Array | None:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    return _vector(dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))])


def _size(known: Symbolic, node: ir.Node) -> Array | None:
    dims = known.dims(node.inputs[0])
    return None if dims is None else _vector([product(dims)]).reshape(())


def _gather(known: Symbolic, node: ir.Node) -> Array | None:
    data, indices = known.numbers(node.inputs[0]), known.numbers(node.inputs[1])
    axis = node.attributes.get_int("axis", 0)
    if data is None or indices is None or known.fixed(node.inputs[1]) is None or not -data.ndim <= axis < data.ndim:
        return None
    length, positions = data.shape[axis], indices.astype(np.int64)
    if positions.size * data.size > MOST_ELEMENTS**2 or np.any((positions < -length) | (positions >= length)):
        return None
    taken = np.empty(data.shape[: axis % data.ndim] + positions.shape + data.shape[axis % data.ndim + 1 :], object)
    taken[...] = np.take(data, positions, axis)
    return taken


def _slice(known: Symbolic, node: ir.Node) -> Array | None:
    data, window = known.numbers(node.inputs[0]), slice_of(known, node)
    if data is None or window is None:
        return None
    index = [slice(None)] * data.ndim
    for axis, (start, end, step) in window.items():
        if not (isinstance(start, int) and isinstance(end, int) and axis < data.ndim):
            return None
        index[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return data[tuple(index)]


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


def _concat(known: Symbolic, node: ir.Node) -> Array | None:
    parts = []
    for value in node.inputs:
        part, dims = known.numbers(value), known.dims(value)
        if part is None:
            if dims is None or len(dims) != 1 or not isinstance(dims[0], int) or dims[0] > MOST_ELEMENTS:
                return None
            part = np.full(dims[0], None, object)
        parts.append(part)
    if sum(part.size for part in parts) > MOST_ELEMENTS or known.dtype(node.inputs[0]) not in _FOLLOWED:
        return None
    return np.concatenate(parts, axis=node.attributes.get_int("axis", 0))


def _reshape(known: Symbolic, node: ir.Node) -> Array | None:
    data, target = known.numbers(node.inputs[0]), known.fixed(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if data is None or target is None or 0 in target else data.reshape(target)


def _squeeze(known: Symbolic, node: ir.Node) -> Array | None:
    data, axes = known.numbers(node.inputs[0]), known.axes(node)
    if data is None or (axes is None and len(node.inputs) > 1 and node.inputs[1] is not None):
        return None
    return data.squeeze(None if axes is None else tuple(axes))


def _unsqueeze(known: Symbolic, node: ir.Node) -> Array | None:
    data, axes = known.numbers(node.inputs[0]), known.axes(node)
    return None if data is None or axes is None else np.expand_dims(data, tuple(axes))


def _transpose(known: Symbolic, node: ir.Node) -> Array | None:
    data, perm = known.numbers(node.inputs[0]), node.attributes.get_ints("perm")
    return None if data is None else data.transpose(perm)


def _cast(known: Symbolic, node: ir.Node) -> Array | None:
    if known.dtype(node.inputs[0]) not in _FOLLOWED or node.attributes.get_int("to", 0) not in {d.value for d in INTEGERS}:
        return None
    data = known.numbers(node.inputs[0])
    if data is not None and any(isinstance(number, int) and not -_INFINITY <= number < _INFINITY for number in data.flat):
        return None  # what is left of it in 32 bits is another number
    return data


def _copy(known: Symbolic, node: ir.Node) -> Array | None:
    return known.numbers(node.inputs[0])


def _elementwise(rule: Callable[..., Dim | bool | None], types: frozenset[ir.DataType] = INTEGERS) -> _Rule:
    def number(*operands: Dim | None) -> Dim | None:
        found = None if None in operands else rule(*operands)
        return int(found) if isinstance(found, bool) else found

    def apply(known: Symbolic, node: ir.Node) -> Array | None:
        data = [known.numbers(value) for value in node.inputs]
        if known.dtype(node.inputs[0]) not in types or not data or any(array is None for array in data):
            return None
        operands = [array for array in data if array is not None]
        try:
            shape = np.broadcast_shapes(*(array.shape for array in operands))
        except ValueError:
            return None
        if np.prod(shape) > MOST_ELEMENTS:
            return None
        if len(operands) > 2:  # Min, Max of more
            return functools.reduce(lambda a, b: _objects(number, shape, a, b), operands)
        return _objects(number, shape, *operands)

    return apply


def _where(known: Symbolic, node: ir.Node) -> Array | None:
    """Each element is decided if the condition is, or if both choices are the same."""
    data = [known.numbers(value) for value in node.inputs]
    if data[0] is None or data[1] is None or data[2] is None or known.dtype(node.inputs[1]) not in _FOLLOWED:
        return None

    def choose(condition: Dim | None, a: Dim | None, b: Dim | None) -> Dim | None:
        if isinstance(condition, int):
            return a if condition else b
        return a if a == b else None

    shape = np.broadcast_shapes(*(array.shape for array in data if array is not None))
    return None if np.prod(shape) > MOST_ELEMENTS else _objects(choose, shape, data[0], data[1], data[2])


def _reduce(rule: Callable[[list[Dim]], Dim | None]) -> _Rule:
    def apply(known: Symbolic, node: ir.Node) -> Array | None:
        data, numbers = known.numbers(node.inputs[0]), known.known_numbers(node.inputs[0])
        if data is None or numbers is None or data.ndim != 1 or known.dtype(node.inputs[0]) not in INTEGERS:
            return None
        axes, keeps = known.axes(node), node.attributes.get_int("noop_with_empty_axes", 0) != 0
        everything = len(node.inputs) == 1 and "axes" not in node.attributes and not keeps
        if axes not in ([0], [-1]) and not everything:
            return None
        found = rule(numbers)
        return None if found is None else _vector([found]).reshape((1,) * node.attributes.get_int("keepdims", 1))

    return apply


def _constant_of_shape(known: Symbolic, node: ir.Node) -> Array | None:
    shape = known.fixed(node.inputs[0])
    value = node.attributes.get("value")
    if shape is None or value is None or value.is_ref() or np.prod(shape) > MOST_ELEMENTS:
        return None
    tensor = value.value
    if tensor.dtype not in _FOLLOWED:
        return None
    objects = np.empty(tuple(shape), object)
    objects[...] = int(tensor.numpy().item())
    return objects


def _expand(known: Symbolic, node: ir.Node) -> Array | None:
    data, shape = known.numbers(node.inputs[0]), known.fixed(node.inputs[1])
    if data is None or shape is None or np.prod(shape) > MOST_ELEMENTS:
        return None
    try:
        return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape)))
    except ValueError:
        return None


def _range(known: Symbolic, node: ir.Node) -> Array | None:
    ends = [known.fixed(value) for value in node.inputs]
    if ends[0] is None or ends[1] is None or ends[2] is None or ends[2] == [0] or known.dtype(node.inputs[0]) not in INTEGERS:
        return None
    numbers = range(ends[0][0], ends[1][0], ends[2][0])
    return _vector([*numbers]) if len(numbers) <= MOST_ELEMENTS else None


def _mod(known: Symbolic, node: ir.Node) -> Array | None:
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


_NUMBERS: dict[str, _Rule] = {
    "Abs": _elementwise(lambda a: a if is_nonnegative(a) else None),
    "Add": _elementwise(lambda a, b: a + b),
    "And": _elementwise(lambda a, b: a * b, _FOLLOWED),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _elementwise(quotient),
    "Equal": _elementwise(are_equal, _FOLLOWED),
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
    "Not": _elementwise(lambda a: 1 - a, _FOLLOWED),
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
NUMBERED = frozenset(_NUMBERS)
"""The operators whose contents are followed."""
