"""Let operators that only reshape, or transpose, move down past others, to where they meet and become one.

R stands for whatever keeps all elements in their order (``edit.py``), T for a Transpose, f for an elementwise operator
whose other operands have one element each, g for one that works along a single axis (Gather, Softmax):

    R2(f(R1(x)))                           ->   R(f(x)), R to the dimensions that R2 gives; f(x) if these are those of x
    R2(g(R1(x); k))                        ->   R(g(x; j))
    T2(f(T1(x), c))                        ->   T(f(x, c')), T = T2 after T1, a constant c transposed like x
    f(R1(x), R2(y)), x and y alike         ->   R(f(x, y))
    f(T(x), T(y)), the same T              ->   T(f(x, y))
    Concat(R1(x), R2(y), ...; k)           ->   R(Concat(x, y, ...; j)): a stack is one
    Concat(T(x), T(y), ...; k), the same T ->   T(Concat(x, y, ...; perm[k]))
    T(Concat(R1(x), R2(y), ...; k))        ->   R(Concat(x, y, ...; j)), if T keeps the order of the elements of each part; the
    T(R(Concat(x, y, ...; k)))                  same where R takes the parts apart again: how channels are shuffled

In memory a tensor is a sequence; for an axis k it is outer(k) blocks, one after the other, where outer(k) is the product of the
dimensions before k. g and Concat see nothing else of it. So axis j of x stands for axis k of R(x) where both have the same size
and the same outer; in a Concat, where outer is the same and all other dimensions of x, y, ... are.

Every rule takes one or more nodes away: it fires only where nothing else reads what is in between. So f, g and Concat stay the
nodes that they are, names and metadata included, and read something else. Not touched are operators that the user excluded,
elementwise operators of versions that do not broadcast (before opset 7), and quantizers.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graphs import constant

from .dims import Dim, TooLongError, product
from .edit import KEEP_ORDER, Edit, encode, is_only_for
from .follow import Dims
from .graph import remove

_FIRST_BROADCAST = 7
_FIRST_SOFTMAX_OF_ONE_AXIS = 13
_ONE_OPERAND = (
    "Abs Acos Asin Atan BitwiseNot Cast Ceil Celu Clip Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish IsInf IsNaN LeakyRelu"
    " Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_MORE_OPERANDS = (
    "Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu"
    " Pow Sub Sum Where Xor"
)
_SEVERAL = frozenset(_MORE_OPERANDS.split())
ONE_OPERAND = frozenset(_ONE_OPERAND.split())
"""Elementwise operators that keep the dimensions of their first input."""
_ELEMENTWISE = _SEVERAL | ONE_OPERAND
ALONG_AN_AXIS = frozenset({"Gather", "LogSoftmax", "Softmax"})
_PASSED = _ELEMENTWISE | ALONG_AN_AXIS
"""The operators that what moves elements can move past."""
_LOOKED_AT = _PASSED | KEEP_ORDER
_OVER_TRANSPOSES = _ELEMENTWISE | {"Transpose"}
_TAKING_APART = KEEP_ORDER | {"Concat"}
_LONGEST = 8
"""So many operators are looked past."""
_SMALL = 4096
"""Constants up to so many elements are transposed."""

_RESHAPED = "reshaped once instead", "the operators in between do not care for the shape"
_TRANSPOSED = "transposed once instead", "the operators in between do not care for the order of the axes"


def sink(edit: Edit, node: ir.Node) -> bool:
    """Apply the first rule that fits a node, and tell whether one did."""
    rule = _RULES.get(node.op_type)
    if rule is None or edit.root.opset < _FIRST_BROADCAST:
        return False
    try:
        return rule(edit, node)
    except TooLongError:
        return False


def _moved(edit: Edit, node: ir.Node) -> bool:
    """What may itself only reshape or transpose: what is before it decides which rule can fit."""
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    op_type = "" if producer is None else producer.op_type
    if op_type in _PASSED and edit.keeps_order(node):
        return _reshape_after_reshape(edit, node)
    if node.op_type != "Transpose" or not (op_type in _ELEMENTWISE or op_type in _TAKING_APART) or edit.keeps_order(node):
        return False
    return _transpose_after_transpose(edit, node) or _transpose_of_parts(edit, node)


def _only(edit: Edit, value: ir.Value | None, node: ir.Node, op_types: Container[str]) -> ir.Node | None:
    """What gives a value, if it is one of these operators that may be rewritten, and there for a node of its graph alone."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type not in op_types or len(producer.outputs) != 1 or not producer.inputs:
        return None
    if producer.graph is not node.graph or not is_only_for(value, node) or producer.inputs[0] is None:
        return None
    return producer if edit.work.is_operator(producer) else None


def _reshape_before(edit: Edit, value: ir.Value | None, node: ir.Node) -> ir.Node | None:
    before = _only(edit, value, node, KEEP_ORDER)
    return before if before is not None and edit.keeps_order(before) else None


def _transpose_before(edit: Edit, value: ir.Value | None, node: ir.Node) -> tuple[ir.Node, list[int]] | None:
    before = _only(edit, value, node, {"Transpose"})
    perm = None if before is None else edit.perm(before)
    return None if before is None or perm is None else (before, perm)


def _are_all_moved(node: ir.Node) -> bool:
    """Whether what gives each input of a node, and there are two at least, may only reshape or transpose."""
    inputs = node.inputs
    for value in inputs:
        producer = None if value is None else value.producer()
        if producer is None or producer.op_type not in KEEP_ORDER:
            return False
    return len({*inputs}) > 1


def _data(edit: Edit, node: ir.Node) -> int | None:
    """Which operand of an elementwise operator has all the elements; None if it is not known to be the only one that has."""
    dims = [edit.known.dims(value) for value in node.inputs if value is not None]
    if len(dims) < len(node.inputs) and node.op_type != "Clip":
        return None
    wide = [index for index, given in enumerate(dims) if given is None or any(dim != 1 for dim in given)] or [0]
    ranks = [len(given) for given in dims if given is not None]
    data = dims[wide[0]]
    return wide[0] if len(wide) == 1 and data is not None and len(data) == max(ranks) else None


# ---------------------------------------------------------------------------------------------- what is between two of a kind


def _reshape_after_reshape(edit: Edit, node: ir.Node) -> bool:
    wanted = edit.known.dims(node.outputs[0])
    chain: list[tuple[ir.Node, int]] = []
    value, reader = node.inputs[0], node
    while wanted is not None and len(chain) < _LONGEST and (middle := _only(edit, value, reader, _LOOKED_AT)) is not None:
        if chain and edit.keeps_order(middle):
            return _rebuild(edit, node, chain, middle, wanted)
        index = 0 if middle.op_type in ALONG_AN_AXIS else _data(edit, middle) if middle.op_type in _ELEMENTWISE else None
        if index is None:
            return False
        chain.append((middle, index))
        value, reader = middle.inputs[index], middle
    return False


def _rebuild(edit: Edit, node: ir.Node, chain: Sequence[tuple[ir.Node, int]], first: ir.Node, wanted: Dims) -> bool:
    """Apply the operators of a chain, which is given last first, to what ``first`` reshapes; then reshape."""
    value = first.inputs[0]
    dims, seen = edit.known.dims(value), edit.known.dims(first.outputs[0])
    steps: list[tuple[ir.Node, int, int | None, Dims]] = []
    for middle, index in reversed(chain):
        if dims is None or seen is None:
            return False
        axis = None
        if middle.op_type in ALONG_AN_AXIS:
            found = _along_axis(edit, middle, seen, dims)
            if found is None:
                return False
            axis, dims = found
        elif any(len(edit.known.dims(other) or ()) > len(dims) for other in middle.inputs if other is not middle.inputs[index]):
            return False
        steps.append((middle, index, axis, dims))
        seen = edit.known.dims(middle.outputs[0])
    if dims is None or value is None or not _can_reshape(dims, wanted):
        return False
    for middle, index, axis, between in steps:
        inputs = [value if i == index else other for i, other in enumerate(middle.inputs)]
        value = edit.rewire(middle, inputs, between, axis)
    return _reshape(edit, node, value, dims, wanted)


def _along_axis(edit: Edit, node: ir.Node, seen: Dims, dims: Dims) -> tuple[int, Dims] | None:
    """The axis of ``dims`` that stands for the one of ``seen`` that an operator works along, and the output's dimensions."""
    default = 0 if node.op_type == "Gather" else -1
    if node.op_type != "Gather" and edit.root.opset < _FIRST_SOFTMAX_OF_ONE_AXIS:
        return None
    axis = node.attributes.get_int("axis", default)
    if not -len(seen) <= axis < len(seen):
        return None
    axis %= len(seen)
    outer = product(seen[:axis])
    for j, dim in enumerate(dims):
        if dim == seen[axis] and product(dims[:j]) == outer:
            taken = edit.known.dims(node.inputs[1]) if node.op_type == "Gather" else (dim,)
            return None if taken is None else (j, (*dims[:j], *taken, *dims[j + 1 :]))
    return None


def _can_reshape(dims: Dims, wanted: Dims) -> bool:
    target = encode(wanted, dims)
    return dims == wanted or (target is not None and not (0 in target and -1 in target))


def _reshape(edit: Edit, node: ir.Node, value: ir.Value, dims: Dims, wanted: Dims) -> bool:
    """Let a value, reshaped, take the place of what a node gives. The caller has asked ``_can_reshape``."""
    target = encode(wanted, dims)
    if dims == wanted or target is None:
        return edit.put(node, value, *_RESHAPED)
    return edit.put_reshaped(node, value, target, *_RESHAPED)


def _transpose_after_transpose(edit: Edit, node: ir.Node) -> bool:
    chain: list[tuple[ir.Node, int]] = []
    value, reader = node.inputs[0], node
    while len(chain) < _LONGEST and (middle := _only(edit, value, reader, _OVER_TRANSPOSES)) is not None:
        if middle.op_type == "Transpose":
            return bool(chain) and _turn_back(edit, node, chain, middle)
        index = _moved_operand(edit, middle)
        if index is None:
            return False
        chain.append((middle, index))
        value, reader = middle.inputs[index], middle
    return False


def _moved_operand(edit: Edit, node: ir.Node) -> int | None:
    """The operand of an elementwise operator that has all the elements, where the others can be transposed ahead of time."""
    index = _data(edit, node)
    if index is not None:
        return index
    dims = edit.known.dims(node.outputs[0])
    varying = [index for index, value in enumerate(node.inputs) if not _can_be_turned(edit, value)]
    return varying[0] if dims and len(varying) == 1 and edit.known.dims(node.inputs[varying[0]]) == dims else None


def _can_be_turned(edit: Edit, value: ir.Value | None) -> bool:
    tensor = constant(value)
    return value is not None and tensor is not None and tensor.size <= _SMALL and not edit.work.excluded(value.name or "")


def _turn_back(edit: Edit, node: ir.Node, chain: Sequence[tuple[ir.Node, int]], first: ir.Node) -> bool:
    """Apply the operators of a chain, which is given last first, to what ``first`` transposes; then transpose."""
    second, perm = edit.perm(node), edit.perm(first)
    value = first.inputs[0]
    dims = edit.known.dims(value)
    if second is None or perm is None or dims is None or value is None:
        return False
    for middle, index in reversed(chain):
        inputs = [value if i == index else _turned(edit, middle, other, perm) for i, other in enumerate(middle.inputs)]
        value = edit.rewire(middle, inputs, dims)
    together = [perm[axis] for axis in second]
    if together == sorted(together):
        return edit.put(node, value, *_TRANSPOSED)
    node.replace_input_with(0, value)
    node.attributes.add(ir.AttrInt64s("perm", together))
    return edit.kept(node, *_TRANSPOSED)


def _turned(edit: Edit, node: ir.Node, value: ir.Value | None, perm: Sequence[int]) -> ir.Value | None:
    """A constant operand as it is before the Transpose; one of a single element serves either way."""
    tensor = constant(value)
    if tensor is None or tensor.size == 1:
        return value
    array = tensor.numpy()
    wide = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
    return edit.constant(node, np.ascontiguousarray(wide.transpose(np.argsort(perm))))


# ------------------------------------------------------------------------------------------------- what all operands come from


def _operands(edit: Edit, node: ir.Node) -> bool:
    """Reshape, or transpose, what an elementwise operator gives, not each of its operands."""
    if not _are_all_moved(node):
        return False
    before = [_reshape_before(edit, value, node) for value in node.inputs]
    sources = [first.inputs[0] for first in before if first is not None]
    wanted, perm = edit.known.dims(node.outputs[0]), None
    if len(sources) < len(before):
        perm, sources = _one_transpose(edit, node)
    own = edit.known.dims(sources[0]) if sources else None
    if own is None or wanted is None or any(edit.known.dims(value) != wanted for value in node.inputs):
        return False
    if any(edit.known.dims(source) != own for source in sources) or not (perm or _can_reshape(own, wanted)):
        return False
    return _transposed(edit, node, sources, own, perm) if perm else _reshaped(edit, node, sources, own, wanted)


def _reshaped(
    edit: Edit, node: ir.Node, sources: Sequence[ir.Value | None], own: Dims, wanted: Dims, axis: int | None = None
) -> bool:
    """Let a node read what is not yet reshaped, and reshape what it gives. The caller has asked ``_can_reshape``."""
    target = encode(wanted, own)
    if own != wanted and target is not None:
        edit.insert_behind(node, "Reshape", [edit.vector(node, target)], [])
    edit.rewire(node, sources, own, axis)
    return edit.kept(node, *_RESHAPED)


def _transposed(
    edit: Edit, node: ir.Node, sources: Sequence[ir.Value | None], own: Dims, perm: Sequence[int], axis: int | None = None
) -> bool:
    """Let a node read what is not yet transposed, and transpose what it gives."""
    edit.insert_behind(node, "Transpose", [], [ir.AttrInt64s("perm", perm)])
    edit.rewire(node, sources, own, axis)
    return edit.kept(node, *_TRANSPOSED)


def _one_transpose(edit: Edit, node: ir.Node) -> tuple[list[int], list[ir.Value | None]]:
    """The order of axes that all operands of a node are transposed to, and what they are before; nothing if it is not one."""
    found = [_transpose_before(edit, value, node) for value in node.inputs]
    moved = [pair for pair in found if pair is not None]
    if len(moved) < len(found) or any(perm != moved[0][1] for _, perm in moved):
        return [], []
    return moved[0][1], [first.inputs[0] for first, _ in moved]


def _concat(edit: Edit, node: ir.Node) -> bool:
    """Reshape, or transpose, the whole and not each part."""
    wanted = edit.known.dims(node.outputs[0]) if _are_all_moved(node) else None
    if not wanted:
        return False
    axis = node.attributes.get_int("axis", 0) % len(wanted)
    before = [_reshape_before(edit, value, node) for value in node.inputs]
    plain = [first.inputs[0] for first in before if first is not None]
    if len(plain) == len(before):
        return _stack(edit, node, node, plain, product(wanted[:axis]), wanted)
    perm, sources = _one_transpose(edit, node)
    if not perm:
        return False
    own = tuple(wanted[perm.index(i)] for i in range(len(perm)))
    return _transposed(edit, node, sources, own, perm, perm[axis])


def _stack(edit: Edit, node: ir.Node, whole: ir.Node, sources: Sequence[ir.Value | None], outer: Dim, wanted: Dims) -> bool:
    """Let a Concat put together what is not yet reshaped, along an axis with as many blocks, for what a node gives."""
    parts = [dims for source in sources if (dims := edit.known.dims(source)) is not None]
    if len(parts) < len(sources) or len({len(dims) for dims in parts}) != 1:
        return False
    for axis in reversed(range(len(parts[0]))):
        same = len({(*dims[:axis], *dims[axis + 1 :]) for dims in parts}) == 1
        if same and product(parts[0][:axis]) == outer:
            length: Dim = 0
            for dims in parts:
                length = dims[axis] + length
            own = (*parts[0][:axis], length, *parts[0][axis + 1 :])
            if not _can_reshape(own, wanted):
                return False
            if whole is node:
                return _reshaped(edit, node, sources, own, wanted, axis)
            return _reshape(edit, node, edit.rewire(whole, sources, own, axis), own, wanted)
    return False


def _transpose_of_parts(edit: Edit, node: ir.Node) -> bool:
    """Put parts together in the order in which a Transpose leaves them, where none of them is transposed in itself."""
    whole = _only(edit, node.inputs[0], node, _TAKING_APART)
    perm, wanted = edit.perm(node), edit.known.dims(node.outputs[0])
    if whole is None or not perm or not wanted:
        return False
    found = _stacked(edit, whole) if whole.op_type == "Concat" else _cut(edit, whole)
    if found is None:
        return False
    concat, axis, parts = found
    moved = [[i for i in perm if dims[i] != 1] for _, dims in parts]
    if any(order != sorted(order) for order in moved):
        return False
    if not _stack(edit, node, concat, [source for source, _ in parts], product(wanted[: perm.index(axis)]), wanted):
        return False
    if whole is not concat:
        remove([whole])  # what it takes apart has other dimensions now
    return True


_Parts = tuple[ir.Node, int, list[tuple[ir.Value | None, Dims]]]
"""A Concat, its axis, and what it puts together: each part before it is reshaped, and its dimensions when it is."""


def _stacked(edit: Edit, node: ir.Node) -> _Parts | None:
    """The parts of a Concat, some of which are reshaped for it."""
    before = [_reshape_before(edit, value, node) for value in node.inputs]
    sources = [value if first is None else first.inputs[0] for first, value in zip(before, node.inputs, strict=True)]
    dims = [found for value in node.inputs if (found := edit.known.dims(value))]
    if not any(before) or len(dims) < len(sources):
        return None
    return node, node.attributes.get_int("axis", 0) % len(dims[0]), [*zip(sources, dims, strict=True)]


def _cut(edit: Edit, node: ir.Node) -> _Parts | None:
    """The parts of a Concat that a Reshape takes apart again: [..., n m, ...] becomes [..., n, m, ...]."""
    whole = _only(edit, node.inputs[0], node, {"Concat"})
    cut = None if whole is None or not edit.keeps_order(node) else edit.known.dims(node.outputs[0])
    if whole is None or not cut:
        return None
    axis = whole.attributes.get_int("axis", 0) % (len(cut) - 1)
    dims = (*cut[:axis], 1, *cut[axis + 1 :])
    if cut[axis] != len(whole.inputs) or any(edit.known.dims(v) != (*cut[:axis], *cut[axis + 1 :]) for v in whole.inputs):
        return None
    return whole, axis, [(value, dims) for value in whole.inputs]


_RULES: dict[str, Callable[[Edit, ir.Node], bool]] = {
    **dict.fromkeys(_SEVERAL, _operands),
    **dict.fromkeys(KEEP_ORDER, _moved),
    "Concat": _concat,
}
SINKING = frozenset(_RULES)
"""The operators that ``sink`` has a rule for."""
