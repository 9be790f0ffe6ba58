"""Steps of random models: windows that are written, pictures enlarged, maps in a row, subgraphs that scan, ladders of moves."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto, helper

from random_builder import BATCH, Graph, UnfitError, Value, float_info
from random_layers import LARGEST

_MOST = 512
"""Elements of a sample in a ladder."""
_CHANNELS = 96


def scattered(g: Graph) -> None:
    """Write windows of a tensor of fixed size, then read some of it."""
    length, width = 4, 3
    x = g.batched(2)
    if x is None or g.opset < 11:
        return
    total = g.one("ReduceSum", x, g.ints(0, 1), keepdims=0)
    value = g.one("Mul", total, g.floats(length, width))
    bounds = g.choose([(0, 2), (2, 4)], [(0, 1), (1, 4)], [(2, 4), (0, 2)], [(0, 4)], [(1, 3)], [(0, 3), (2, 4)], [(0, 2)])
    for begin, end in bounds:
        rows = np.arange(begin, end)[:, None] - (length if g.chance(4) else 0)
        update = g.one("Mul", total, g.floats(end - begin, width))
        value = g.one("ScatterND", value, g.constant(rows.astype(np.int64), fixed=True), update)
        if g.chance(3):
            g.own.append(Value(value, (length, width)))
    kind = g.choose("whole", "slice", "gather")
    if kind == "whole":
        g.add("Neg", [value], (length, width))
    elif kind == "slice":
        begin, end, step = g.choose((0, 1, 1), (0, 2, 1), (2, 4, 1), (3, -5, -1), (-1, 9, 1))
        size = len(range(length)[begin : end if end >= 0 else None : step])
        g.add("Slice", [value, g.ints(begin), g.ints(end), g.ints(0), g.ints(step)], (size, width))
    else:
        g.add("Gather", [value, g.constant(np.array(g.choose(0, 1, -1)))], (width,), axis=0)


_MODES = (
    {"mode": "nearest"},
    {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    {"mode": "linear"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    {"mode": "cubic"},
)


def enlarged(g: Graph) -> None:
    """Resize, and a Conv of 1 x 1 behind it, also through a Concat with what is not enlarged."""
    x = g.batched(4)
    if x is None or max(x.sizes) > 4 or g.opset < 11:
        return
    if g.chance(2):  # so many channels that it pays to let the Conv go first
        x = g.inner("Conv", [x, g.floats(_CHANNELS, int(x.dims[1]), 1, 1)], (BATCH, _CHANNELS, *x.dims[2:]))
    result = _resized(g, x)
    if g.chance(2):
        if g.chance(3):
            parts = [result, g.inner("Abs", [result], result.dims)]
            result = g.inner("Concat", g.random.sample(parts, 2), (BATCH, result.sizes[0] * 2, *result.dims[2:]), axis=1)
        inputs = [result, g.floats(2, result.sizes[0], 1, 1), *([g.floats(2)] if g.chance(2) else [])]
        result = g.inner("Conv", inputs, (BATCH, 2, *result.dims[2:]))
    if result.sizes[0] > LARGEST:
        result = g.reduce_mean(result, [1])
    g.add(g.choose("Relu", "Neg"), [result], result.dims)


def _resized(g: Graph, x: Value) -> Value:
    """Resize by scales or by sizes, constant or computed, by one too."""
    attributes, factor = g.choose(*_MODES), g.choose(1, 2, 2, 2)
    dims = (*x.dims[:2], *(int(dim) * factor for dim in x.dims[2:]))
    kind = g.choose("scales", "sizes", "computed")
    nothing = g.constant(np.zeros(0, np.float32), fixed=True) if g.opset < 13 else ""
    if kind == "scales":
        scales = g.constant(np.array([1, 1, factor, factor], np.float32), fixed=True)
        return g.inner("Resize", [x, nothing, scales], dims, **attributes)

    def number(value: int) -> str:  # where a caller may override it, the runtime loses count
        return g.constant(np.array([value]), fixed=True)

    shape = g.one("Shape", x)
    begin, rest = (g.one("Slice", shape, *map(number, (a, b, 0))) for a, b in ((0, 2), (2, 4)))
    end = g.one("Mul", rest, g.ints(factor)) if kind == "computed" else g.ints(*map(int, dims[2:]))
    return g.inner("Resize", [x, nothing, nothing, g.one("Concat", begin, end, axis=0)], dims, **attributes)


def mapped(g: Graph) -> None:
    """MatMul over a sequence, then a Conv of 1 x 1 over the picture that it becomes."""
    x = g.batched(4)
    if x is None or x.dims[1] > 8:
        return
    channels, (high, wide) = int(x.dims[1]), x.sizes[1:]
    flat = g.one("Reshape", x, g.ints(0, channels, -1))
    middle, out = g.choose(2, 4), g.choose(1, 2)
    value = g.one("MatMul", g.one("Transpose", flat, perm=[0, 2, 1]), g.floats(channels, middle))
    if g.chance(2):
        value = g.one("Add", value, g.floats(middle))
    turned = g.one("Transpose", value, perm=[0, 2, 1])
    picture = g.one("Reshape", turned, g.ints(0, g.choose(middle, 0), high, wide))
    inputs = [picture, g.floats(out, middle, 1, 1), *([g.floats(out)] if g.chance(2) else [])]
    g.add("Conv", inputs, (BATCH, out, high, wide))


def either(g: Graph) -> None:
    """If, of whose branches what follows takes only one: they differ in the number of axes."""
    x = g.batched(3, 4)
    if x is None or g.depth or g.opset < 11:
        return
    graphs = []
    for name, operators in (("kept", ["Neg"]), ("flat", ["Neg", "Flatten"])):
        inner = Graph(g.random, g.opset, g.names, 1, arrays=g.arrays)
        value = x.name
        for operator in operators:
            value = inner.one(operator, value)
        graphs.append(helper.make_graph(inner.nodes, name, [], [float_info(value, None)]))
    condition = g.one("Or", "flag", g.one("Not", "flag"))  # always true, which no rule knows
    result = g.one("If", condition, then_branch=graphs[0], else_branch=graphs[1])
    perm = [0, *reversed(range(1, len(x.dims)))]
    g.add("Transpose", [result], tuple(x.dims[axis] for axis in perm), perm=perm)


def scanned(g: Graph) -> None:
    """Scan over the rows of a constant, or Loop, with a captured value and an output for each step."""
    x = g.batched(2)
    if x is None or g.opset < 9:
        return
    captured, depth = g.floats(int(x.dims[1])), g.depth
    body = helper.make_graph(
        [
            helper.make_node("Mul", [f"row{depth}", captured], [f"scaled{depth}"]),
            helper.make_node("Add", [f"sum{depth}", f"scaled{depth}"], [f"next{depth}"]),
            helper.make_node("Identity", [f"next{depth}"], [f"each{depth}"]),
        ],
        "step",
        [float_info(f"sum{depth}", x.dims), float_info(f"row{depth}", (int(x.dims[1]),))],
        [float_info(f"next{depth}", x.dims), float_info(f"each{depth}", x.dims)],
    )
    rows = g.floats(g.choose(1, 2, 3), int(x.dims[1]))
    last, every = g.node("Scan", [x.name, rows], outputs=2, body=body, num_scan_inputs=1)
    if g.chance(2):
        g.add("Neg", [last], x.dims)
    if g.chance(2):
        g.add("ReduceMax", [every, g.ints(0)], x.dims, keepdims=0)


# ----------------------------------------------------------------------------------------------------------------- ladders


def ladder(g: Graph) -> None:
    """Many operators in a row that only move elements, and now and then another one in between."""
    x = g.batched()
    if x is None or math.prod(x.sizes) > _MOST // 4:
        return
    for _ in range(g.choose(2, 4, 8, 16)):
        x = g.choose(*_RUNGS)(g, x)
        if g.chance(12) and x.dims[0] == BATCH and len(x.dims) > 1:
            g.own.append(x)
    if x.dims[0] != BATCH:
        at = x.dims.index(BATCH)
        perm = [at, *(axis for axis in range(len(x.dims)) if axis != at)]
        x = Value(g.one("Transpose", x, perm=perm), tuple(x.dims[axis] for axis in perm))
    g.add("Neg", [x], x.dims)


def _turn(g: Graph, x: Value) -> Value:
    perm = g.random.sample(range(len(x.dims)), len(x.dims))
    if g.chance(3):
        perm = [*reversed(range(len(x.dims)))]
    return Value(g.one("Transpose", x, perm=perm), tuple(x.dims[axis] for axis in perm))


def _fixed_axes(x: Value) -> list[int]:
    return [axis for axis, dim in enumerate(x.dims) if dim != BATCH]


def _reshape(g: Graph, x: Value) -> Value:
    """Merge or split neighbouring axes that are no batch."""
    dims: list[int | str] = []
    for dim in x.dims:
        if dims and BATCH not in {dim, dims[-1]} and g.chance(2):
            dims[-1] = int(dims[-1]) * int(dim)
        elif dim != BATCH and int(dim) % 2 == 0 and len(dims) < 5 and g.chance(2):
            dims += g.choose([2, int(dim) // 2], [int(dim) // 2, 2])
        else:
            dims.append(dim)
    if dims[0] == BATCH and len(dims) < 2:
        return x
    copied = [0 if dim == BATCH and x.dims[i : i + 1] == (BATCH,) else dim for i, dim in enumerate(dims)]
    return Value(g.one("Reshape", x, g.ints(*(-1 if dim == BATCH else int(dim) for dim in copied))), tuple(dims))


def _wide(g: Graph, x: Value) -> Value:
    if len(x.dims) > 5:
        return x
    at = g.choose(*range(len(x.dims) + 1))
    axis = at - len(x.dims) - 1 if g.chance(2) and g.opset >= 11 else at
    return Value(g.one("Unsqueeze", x, g.ints(axis)), (*x.dims[:at], 1, *x.dims[at:]))


def _narrow(g: Graph, x: Value) -> Value:
    ones = [axis for axis in _fixed_axes(x) if x.dims[axis] == 1]
    if not ones or len(x.dims) < 3:
        return x
    at = g.choose(*ones)
    axis = at - len(x.dims) if g.chance(2) and g.opset >= 11 else at
    return Value(g.one("Squeeze", x, g.ints(axis)), (*x.dims[:at], *x.dims[at + 1 :]))


def _cut(g: Graph, x: Value) -> Value:
    axes = [axis for axis in _fixed_axes(x) if int(x.dims[axis]) > 1]
    if not axes:
        return x
    at = g.choose(*axes)
    length = int(x.dims[at])
    start, end, step = g.choose((0, length - 1, 1), (1, 2**31 - 1, 1), (0, 2**31 - 1, 2), (0, length, 1), (-1, -(2**31), -1))
    if step != 1 and g.opset < 10:
        raise UnfitError("Slice")
    axis = at - len(x.dims) if g.chance(3) and g.opset >= 11 else at
    operands = [g.ints(start), g.ints(end), g.ints(axis), *([g.ints(step)] if step != 1 else [])]
    size = len(range(length)[start : None if end < -length else end : step])
    return Value(g.one("Slice", x, *operands), (*x.dims[:at], size, *x.dims[at + 1 :]))


def _joined(g: Graph, x: Value) -> Value:
    if math.prod(int(x.dims[axis]) for axis in _fixed_axes(x)) > _MOST // 2 or not _fixed_axes(x):
        return x
    at = g.choose(*_fixed_axes(x))
    other = g.choose(x, Value(g.one("Tanh", x), x.dims))
    parts = g.random.sample([x, other], 2)
    value = g.one("Concat", *parts, axis=g.choose(at, at - len(x.dims)) if g.opset >= 11 else at)
    if g.chance(3):
        halves = g.node("Split", [value], outputs=2, axis=at, num_outputs=2)
        return Value(g.choose(*halves), x.dims)
    if g.chance(2):
        value = g.one("Concat", value, x, axis=at)
        return Value(value, (*x.dims[:at], int(x.dims[at]) * 3, *x.dims[at + 1 :]))
    return Value(value, (*x.dims[:at], int(x.dims[at]) * 2, *x.dims[at + 1 :]))


def _parted(g: Graph, x: Value) -> Value:
    axes = [axis for axis in _fixed_axes(x) if int(x.dims[axis]) % 2 == 0 and x.dims[axis]]
    if not axes:
        return x
    at = g.choose(*axes)
    halves = g.node("Split", [x.name], outputs=2, axis=at, num_outputs=2)
    if g.chance(2):
        return Value(g.one("Concat", *g.random.sample(halves, 2), axis=at), x.dims)
    return Value(g.choose(*halves), (*x.dims[:at], int(x.dims[at]) // 2, *x.dims[at + 1 :]))


def _taken(g: Graph, x: Value) -> Value:
    axes = [axis for axis in _fixed_axes(x) if x.dims[axis]]
    if not axes:
        return x
    at = g.choose(*axes)
    length = int(x.dims[at])
    places = g.choose([*range(length)], [*range(-length, 0)], [*reversed(range(length))], [0, 0], [-1])
    return Value(g.one("Gather", x, g.ints(*places), axis=at), (*x.dims[:at], len(places), *x.dims[at + 1 :]))


def _tiled(g: Graph, x: Value) -> Value:
    times = [1] * len(x.dims)
    fixed = _fixed_axes(x)
    if fixed and g.chance(2) and math.prod(int(x.dims[axis]) for axis in fixed) <= _MOST // 2:
        times[g.choose(*fixed)] = 2
    dims = tuple(dim if dim == BATCH else int(dim) * times[axis] for axis, dim in enumerate(x.dims))
    return Value(g.one("Tile", x, g.ints(*times)), dims)


def _spread(g: Graph, x: Value) -> Value:
    ones = [axis for axis in _fixed_axes(x) if x.dims[axis] == 1]
    target = [1] * len(x.dims)
    if ones and g.chance(2) and math.prod(int(x.dims[axis]) for axis in _fixed_axes(x)) <= _MOST // 2:
        target[g.choose(*ones)] = 2
    dims = tuple(2 if size == 2 else dim for size, dim in zip(target, x.dims, strict=True))
    return Value(g.one("Expand", x, g.ints(*target)), dims)


def _padded(g: Graph, x: Value) -> Value:
    amounts = [0] * (2 * len(x.dims))
    fixed = _fixed_axes(x)
    if fixed and g.chance(2) and len(x.dims) <= 4:
        at = g.choose(*fixed)
        amounts[at] = 1
        return Value(g.one("Pad", x, g.ints(*amounts)), (*x.dims[:at], int(x.dims[at]) + 1, *x.dims[at + 1 :]))
    return Value(g.one("Pad", x, g.ints(*amounts)), x.dims)


def _wider(g: Graph, x: Value) -> Value:
    value = g.one("Cast", x, to=TensorProto.DOUBLE)
    for _ in range(g.choose(0, 0, 1)):
        value = g.one("Cast", value, to=TensorProto.DOUBLE)
    return Value(g.one("Cast", value, to=TensorProto.FLOAT), x.dims)


def _other(g: Graph, x: Value) -> Value:
    kind = g.choose("Neg", "Tanh", "Add", "Softmax", "Pair")
    if kind == "Add":
        return Value(g.one("Add", x, g.floats(*g.choose((), (1,), (int(x.dims[-1]),) if x.dims[-1] != BATCH else ()))), x.dims)
    if kind == "Pair":
        return Value(g.one(g.choose("Mul", "Add", "Max"), x, g.one("Neg", x)), x.dims)
    if kind == "Softmax":
        fixed = _fixed_axes(x)
        return Value(g.one("Softmax", x, axis=g.choose(*fixed)), x.dims) if fixed and g.opset >= 13 else x
    return Value(g.one(kind, x), x.dims)


_RUNGS = (
    *(_turn, _turn, _reshape, _reshape, _wide, _narrow, _cut, _cut),
    *(_joined, _parted, _taken, _tiled, _spread, _padded, _wider, _other),
)
