"""How each operator treats positive scales of channels: the table that ``scaling.py`` walks a graph with.

    f(x S) = f(x) S            the ids pass: Relu, LeakyRelu, pooling, Concat, Split, Reshape, Transpose, ...
    f(x S, y S) = f(x, y) S    both operands have the same ids: Add, Max, ...
    x S * y = (x y) S          the gated value's ids pass, the gate's scale is 1
    W x                        the input's ids end here, the output's begin

An operator that is not in the table (Sigmoid, Softmax, Clip at 6, ...) has inputs and outputs of scale 1. A rule returns the
ids of the node's outputs, first ones first; those it leaves out have the scale 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array
from graphopt.graphs import constant

from .scales import Scaling

Rule = Callable[[Scaling, ir.Node], list[Array]]


def rule_of(node: ir.Node) -> Rule | None:
    """The rule for a node; None if it has none, so that its inputs and outputs have the scale 1."""
    return _RULES.get(node.op_type) if node.domain == "" else None


def _array(value: ir.Value | None) -> Array | None:
    """What a constant holds."""
    tensor = constant(value)
    return None if tensor is None else tensor.numpy()


def _ints(node: ir.Node, name: str, index: int) -> list[int] | None:
    """Integers that are an attribute in old opsets and an input in new ones; None if they are not known or not given."""
    if name in node.attributes:
        return [*node.attributes[name].as_ints()]
    array = _array(node.inputs[index]) if index < len(node.inputs) else None
    return None if array is None else [int(i) for i in array.reshape(-1)]


def _is_given(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _give_up(scaling: Scaling, node: ir.Node) -> list[Array]:
    for value in node.inputs:
        scaling.fix(scaling.ids(value))
    return []


# ------------------------------------------------------------------------------------------------------------------ layers


def _conv(scaling: Scaling, node: ir.Node) -> list[Array]:
    """Weight [out, in / groups, *kernel]."""
    tensor, rank = constant(node.inputs[1]), scaling.ids(node.inputs[0]).ndim
    if tensor is None or rank < 3:
        return _give_up(scaling, node)
    out, per_group = tensor.shape.numpy()[:2]
    groups, ones = node.attributes.get_int("group", 1), [1] * (rank - 2)
    columns = scaling.along(scaling.ids(node.inputs[0]), 1, groups * per_group).reshape(groups, 1, per_group)
    columns = np.broadcast_to(columns, (groups, out // groups, per_group)).reshape(out, per_group, *ones)
    rows = scaling.fresh(out)
    scaling.factor(node, 1, columns, +1)
    scaling.factor(node, 1, rows.reshape(out, 1, *ones), -1)
    scaling.factor(node, 2, rows, -1)
    return [rows.reshape(1, out, *ones)]


def _conv_transpose(scaling: Scaling, node: ir.Node) -> list[Array]:
    """Weight [in, out / groups, *kernel]."""
    tensor, rank = constant(node.inputs[1]), scaling.ids(node.inputs[0]).ndim
    if tensor is None or rank < 3:
        return _give_up(scaling, node)
    size, per_group = tensor.shape.numpy()[:2]
    groups, ones = node.attributes.get_int("group", 1), [1] * (rank - 2)
    columns = scaling.along(scaling.ids(node.inputs[0]), 1, size)
    rows = scaling.fresh(groups * per_group)
    spread = np.broadcast_to(rows.reshape(groups, 1, per_group), (groups, size // groups, per_group))
    scaling.factor(node, 1, columns.reshape(size, 1, *ones), +1)
    scaling.factor(node, 1, spread.reshape(size, per_group, *ones), -1)
    scaling.factor(node, 2, rows, -1)
    return [rows.reshape(1, -1, *ones)]


def _gemm(scaling: Scaling, node: ir.Node) -> list[Array]:
    """Weight [in, out], or [out, in] with transB."""
    tensor = constant(node.inputs[1])
    if tensor is None:
        return _give_up(scaling, node)
    transposed = node.attributes.get_int("transB", 0)
    size, out = tensor.shape.numpy()[::-1] if transposed else tensor.shape.numpy()
    columns = scaling.along(scaling.ids(node.inputs[0]), 0 if node.attributes.get_int("transA", 0) else 1, size)
    rows = scaling.fresh(out)
    scaling.factor(node, 1, columns.reshape(1, -1) if transposed else columns.reshape(-1, 1), +1)
    scaling.factor(node, 1, rows.reshape(-1, 1) if transposed else rows.reshape(1, -1), -1)
    scaling.factor(node, 2, rows, -1)
    return [rows.reshape(1, -1)]


def _matmul(scaling: Scaling, node: ir.Node) -> list[Array]:
    """Weight [..., in, out] on the right; or a product of two values of which the first has the scale 1, as in attention."""
    a, b = (scaling.ids(value) for value in node.inputs)
    tensor = constant(node.inputs[1])
    if tensor is not None and len(tensor.shape) >= 2 and a.ndim >= 2 and constant(node.inputs[0]) is None:
        size, out = tensor.shape.numpy()[-2:]
        columns, rows = scaling.along(a, -1, size), scaling.fresh(out)
        scaling.factor(node, 1, columns.reshape(-1, 1), +1)
        scaling.factor(node, 1, rows, -1)
        return [rows.reshape(*[1] * (max(a.ndim, len(tensor.shape)) - 1), out)]
    if tensor is None and b.ndim >= 2 and a.ndim >= 2 and b.shape[-2] == 1 and scaling.is_fixed(a):
        return [b.reshape(*[1] * (a.ndim - b.ndim), *b.shape)]
    return _give_up(scaling, node)


def _batch_norm(scaling: Scaling, node: ir.Node) -> list[Array]:
    """(x - mean) / sqrt(var + eps) * gamma + beta: the mean takes the input's scale, gamma gives it back."""
    x, tensor = scaling.ids(node.inputs[0]), constant(node.inputs[1])
    if tensor is None or x.ndim < 2 or node.attributes.get_int("training_mode", 0) != 0 or len(node.outputs) > 1:
        return _give_up(scaling, node)
    size = tensor.shape.numpy()[0]
    columns, rows = scaling.along(x, 1, size), scaling.fresh(size)
    scaling.factor(node, 1, columns, +1)
    scaling.factor(node, 3, columns, -1)
    scaling.factor(node, 1, rows, -1)
    scaling.factor(node, 2, rows, -1)
    return [rows.reshape(1, -1, *[1] * (x.ndim - 2))]


def _normalized(scaling: Scaling, node: ir.Node) -> list[Array]:
    """LayerNormalization over the last axis and its like: the input's scale is 1, gamma and beta give a new one."""
    x, tensor = scaling.ids(node.inputs[0]), constant(node.inputs[1])
    instance = node.op_type == "InstanceNormalization"
    last = instance or node.attributes.get_int("axis", -1) in {-1, x.ndim - 1}
    _give_up(scaling, node)
    if tensor is None or x.ndim < 2 or len(tensor.shape) != 1 or not last:
        return []
    rows = scaling.fresh(tensor.shape.numpy()[0])
    for index in (1, 2):
        scaling.factor(node, index, rows, -1)
    return [rows.reshape(1, -1, *[1] * (x.ndim - 2)) if instance else rows.reshape(*[1] * (x.ndim - 1), -1)]


# ------------------------------------------------------------------------------------------------------------- elementwise


def _same(scaling: Scaling, node: ir.Node) -> list[Array]:
    return [scaling.ids(node.inputs[0])]


def _sum(scaling: Scaling, node: ir.Node, first: int = 0) -> list[Array]:
    """All operands have the result's scale; constants are divided by it."""
    operands = [*enumerate(node.inputs)][first:]
    dynamic = [scaling.ids(value) for _, value in operands if constant(value) is None]
    if not dynamic:
        return []
    ids = scaling.unify(dynamic)
    shape = scaling.shape(node.outputs[0])
    if shape is None or len(shape) != ids.ndim:
        return _give_up(scaling, node)
    for index, value in operands:
        if constant(value) is not None and not scaling.is_fixed(ids):
            scaling.factor(node, index, ids, -1)
    return [ids]


def _where(scaling: Scaling, node: ir.Node) -> list[Array]:
    return _sum(scaling, node, first=1)


def _mul(scaling: Scaling, node: ir.Node) -> list[Array]:
    """A constant per channel is a layer of its own; a gate has the scale 1."""
    rank = len(scaling.shape(node.outputs[0]) or ())
    if node.inputs[0] is node.inputs[1] or not rank:
        return _give_up(scaling, node)
    for index in (0, 1):
        tensor, x = constant(node.inputs[index]), scaling.ids(node.inputs[1 - index])
        if tensor is None:
            continue
        shape = [1] * (rank - len(tensor.shape)) + [*tensor.shape.numpy()]
        varying = [axis for axis, size in enumerate(shape) if size > 1]
        if len(varying) != 1 or x.ndim != rank:
            return [x] if x.ndim == rank else _give_up(scaling, node)
        axis, ones = varying[0], [1] * rank
        columns, rows = scaling.along(x, axis, shape[axis]), scaling.fresh(shape[axis])
        ones[axis] = shape[axis]
        scaling.factor(node, index, columns.reshape(ones), +1)
        scaling.factor(node, index, rows.reshape(ones), -1)
        return [rows.reshape(ones)]
    a, b = (scaling.ids(value) for value in node.inputs)
    if scaling.is_fixed(a) and b.ndim == rank:
        return [b]
    scaling.fix(b)
    return [a] if a.ndim == rank else _give_up(scaling, node)


def _div(scaling: Scaling, node: ir.Node) -> list[Array]:
    a, b = (scaling.ids(value) for value in node.inputs)
    scaling.fix(b)
    rank = len(scaling.shape(node.outputs[0]) or ())
    return [a] if constant(node.inputs[0]) is None and a.ndim == rank else []


def _clip(scaling: Scaling, node: ir.Node) -> list[Array]:
    """Homogeneous with limits 0 and infinity only."""
    limits: list[Array | float] = []
    for index, name in ((1, "min"), (2, "max")):
        if name in node.attributes:
            limits.append(node.attributes[name].as_float())
        elif _is_given(node, index):
            array = _array(node.inputs[index])
            limits.append(np.nan if array is None else array)
    largest = float(np.finfo(np.float32).max)
    if all(np.all((np.asarray(limit) == 0) | (np.abs(limit) >= largest)) for limit in limits):
        return [scaling.ids(node.inputs[0])]
    return _give_up(scaling, node)


def _cast(scaling: Scaling, node: ir.Node) -> list[Array]:
    kind = ir.DataType(node.attributes.get_int("to", 0))
    return [scaling.ids(node.inputs[0])] if kind.is_floating_point() else _give_up(scaling, node)


# ---------------------------------------------------------------------------------------------------------------- movement


def _pool(scaling: Scaling, node: ir.Node) -> list[Array]:
    """Over height and width, where all share the channel's scale."""
    x = scaling.ids(node.inputs[0])
    return [x] if x.ndim > 2 and all(size == 1 for size in x.shape[2:]) else _give_up(scaling, node)


def _resize(scaling: Scaling, node: ir.Node) -> list[Array]:
    before, after = scaling.shape(node.inputs[0]), scaling.shape(node.outputs[0])
    x = scaling.ids(node.inputs[0])
    if before is None or after is None or before[:2] != after[:2]:
        return _give_up(scaling, node)
    return [x] if all(size == 1 for size in x.shape[2:]) else _give_up(scaling, node)


def _reduce(scaling: Scaling, node: ir.Node) -> list[Array]:
    x = scaling.ids(node.inputs[0])
    axes = _ints(node, "axes", 1)
    if axes is None or any(x.shape[axis] != 1 for axis in axes if x.ndim):
        return _give_up(scaling, node)
    return [x if node.attributes.get_int("keepdims", 1) else x.squeeze(tuple(axis % x.ndim for axis in axes))]


def _transpose(scaling: Scaling, node: ir.Node) -> list[Array]:
    x = scaling.ids(node.inputs[0])
    perm = node.attributes.get_ints("perm", [*range(x.ndim)][::-1])
    return [x.transpose(perm)] if x.ndim == len(perm) else _give_up(scaling, node)


def _reshape(scaling: Scaling, node: ir.Node) -> list[Array]:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes that both shapes begin or end with stay; between them sizes must be known."""
    x, before, after = scaling.ids(node.inputs[0]), scaling.shape(node.inputs[0]), scaling.shape(node.outputs[0])
    if before is None or after is None:
        return _give_up(scaling, node)
    head = 1 if _equal_first(before, after) else _common(before, after)
    if all(size == 1 for size in x.shape[head:]):
        return [x.reshape((*x.shape[:head], *[1] * (len(after) - head)))]
    tail = min(_common(before[::-1], after[::-1]), len(before) - head, len(after) - head)
    sizes, new = before[head : len(before) - tail], after[head : len(after) - tail]
    known, wanted = ([size for size in part if isinstance(size, int)] for part in (sizes, new))
    kept = x.shape[len(x.shape) - tail :]
    if len(known) != len(sizes) or len(wanted) != len(new) or np.prod(known) != np.prod(wanted):
        return _give_up(scaling, node)
    full = np.broadcast_to(x, (*x.shape[:head], *known, *kept)).reshape((*x.shape[:head], *wanted, *kept))
    return [_compact(full)]


def _equal_first(before: Sequence[object], after: Sequence[object]) -> bool:
    """Whether the first axes are equal because all others are known and hold equally many elements."""
    known, wanted = ([size for size in part[1:] if isinstance(size, int)] for part in (before, after))
    complete = len(known) == len(before) - 1 and len(wanted) == len(after) - 1
    return complete and bool(before) and bool(after) and 0 < np.prod(known) == np.prod(wanted)


def _common(a: Sequence[object], b: Sequence[object]) -> int:
    """How many known or equally named axes both begin with."""
    count = 0
    for first, second in zip(a, b, strict=False):
        if first is None or first != second:
            break
        count += 1
    return count


def _compact(ids: Array) -> Array:
    """The same ids, axes along which nothing differs of length 1."""
    for axis in range(ids.ndim):
        first = ids.take([0], axis)
        if ids.shape[axis] > 1 and (ids == first).all():
            ids = first
    return ids


def _slice(scaling: Scaling, node: ir.Node) -> list[Array]:
    x = scaling.ids(node.inputs[0])
    starts, ends = _ints(node, "starts", 1), _ints(node, "ends", 2)
    if starts is None or ends is None:
        return [x] if x.size == 1 else _give_up(scaling, node)
    axes, steps = _ints(node, "axes", 3), _ints(node, "steps", 4)
    if (axes is None and _is_given(node, 3)) or (steps is None and _is_given(node, 4)):
        return _give_up(scaling, node)
    for number, axis in enumerate(axes if axes is not None else range(len(starts))):
        if x.shape[axis] > 1:
            step = 1 if steps is None else steps[number]
            end = None if step < 0 and ends[number] < -x.shape[axis] else ends[number]
            x = x.take(np.arange(x.shape[axis])[starts[number] : end : step], axis)
    return [x]


def _split(scaling: Scaling, node: ir.Node) -> list[Array]:
    x, axis = scaling.ids(node.inputs[0]), node.attributes.get_int("axis", 0)
    if x.ndim == 0 or x.shape[axis] == 1:
        return [x] * len(node.outputs)
    shapes = [scaling.shape(value) for value in node.outputs]
    sizes = [shape[axis] for shape in shapes if shape is not None]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) != len(shapes) or sum(known) != x.shape[axis]:
        return _give_up(scaling, node)
    return np.split(x, np.cumsum(known)[:-1], axis)


def _gather(scaling: Scaling, node: ir.Node) -> list[Array]:
    x, axis = scaling.ids(node.inputs[0]), node.attributes.get_int("axis", 0)
    indices = _array(node.inputs[1])
    if x.ndim == 0 or indices is None:
        return _give_up(scaling, node)
    return [x.take(indices if x.shape[axis] > 1 else np.zeros([1] * indices.ndim, np.int64), axis)]


def _concat(scaling: Scaling, node: ir.Node) -> list[Array]:
    parts, axis = [scaling.ids(value) for value in node.inputs], node.attributes.get_int("axis", 0)
    if any(part.ndim == 0 for part in parts):
        return _give_up(scaling, node)
    if all(part.shape[axis] == 1 and part.size > 1 for part in parts):
        return [scaling.unify(parts)]
    axis %= parts[0].ndim
    full: list[Array] = []
    for part, value in zip(parts, node.inputs, strict=True):
        size = (scaling.shape(value) or ())[axis : axis + 1]
        if any(length > 1 for i, length in enumerate(part.shape) if i != axis) or not size or not isinstance(size[0], int):
            return _give_up(scaling, node)
        full.append(scaling.along(part, axis, size[0]))
    ones = [1] * parts[0].ndim
    ones[axis] = -1
    return [np.concatenate(full).reshape(ones)]


def _pad(scaling: Scaling, node: ir.Node) -> list[Array]:
    """New channels of zeros have any scale; other padding by zeros, by the edge or by reflection keeps the channel's."""
    x, pads = scaling.ids(node.inputs[0]), _ints(node, "pads", 1)
    fill = _array(node.inputs[2]) if _is_given(node, 2) else np.zeros(1)
    if "value" in node.attributes:
        fill = np.array(node.attributes["value"].as_float())
    axes = _ints(node, "axes", 3) if _is_given(node, 3) else [*range(x.ndim)]
    if pads is None or axes is None or fill is None or fill.any():
        return _give_up(scaling, node)
    mode = node.attributes.get_string("mode", "constant")
    for number, axis in enumerate(axes):
        begin, end = pads[number], pads[number + len(axes)]
        if x.shape[axis] == 1 or not (begin or end):
            continue
        if mode != "constant" or begin < 0 or end < 0:
            return _give_up(scaling, node)
        moved = np.moveaxis(x, axis, 0)
        sides = [np.broadcast_to(scaling.fresh(n).reshape(n, *[1] * (x.ndim - 1)), (n, *moved.shape[1:])) for n in (begin, end)]
        x = np.moveaxis(np.concatenate([sides[0], moved, sides[1]]), 0, axis)
    return [x]


_RULES: dict[str, Rule] = {
    "Abs": _same,
    "Add": _sum,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _div,
    "Dropout": _same,
    "Flatten": _reshape,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "Identity": _same,
    "InstanceNormalization": _normalized,
    "LayerNormalization": _normalized,
    "LeakyRelu": _same,
    "LpPool": _pool,
    "MatMul": _matmul,
    "Max": _sum,
    "MaxPool": _pool,
    "Mean": _sum,
    "Min": _sum,
    "Mul": _mul,
    "Neg": _same,
    "PRelu": _same,
    "Pad": _pad,
    "RMSNormalization": _normalized,
    "ReduceL1": _reduce,
    "ReduceL2": _reduce,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "Relu": _same,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Sub": _sum,
    "Sum": _sum,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
    "Upsample": _resize,
    "Where": _where,
}
