"""Steps of random models: elementwise operators, shapes that the graph computes, round trips, subgraphs, functions.

A step adds a few nodes to the graph, or none where nothing fits.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper

from random_builder import BATCH, INPUTS, Graph, Value, float_info

UNARY = ("Relu", "Neg", "Abs", "Tanh", "Identity", "Dropout", "Sigmoid", "Cast", "Floor", "Transpose", "Pad")
BINARY = ("Add", "Sub", "Mul", "Max", "Min")


def unary(g: Graph) -> None:
    source, op_type = g.pick(), g.choose(*UNARY)
    if op_type == "Floor" and source.name not in INPUTS:
        return  # it makes a rounding into a difference
    inputs, attributes = [source.name], {}
    if op_type == "Cast":
        attributes["to"] = TensorProto.FLOAT
    if op_type == "Transpose":
        attributes["perm"] = [*range(len(source.dims))]
    if op_type == "Pad":
        inputs.append(g.ints(*[0] * (2 * len(source.dims))))
    g.add(op_type, inputs, source.dims, **attributes)


def binary(g: Graph) -> None:
    source, op_type = g.pick(), g.choose(*BINARY)
    same = [v.name for v in g.outer + g.own if v.dims == source.dims]
    last = source.dims[-1] if source.dims and isinstance(source.dims[-1], int) else 1
    kind = g.choose("same", "scalar", "vector")
    other = g.choose(*same) if kind == "same" else g.floats(*(() if kind == "scalar" else (last,)))
    g.add(op_type, [source, other], source.dims)


def where(g: Graph) -> None:
    source = g.pick()
    same = [v for v in g.outer + g.own if v.dims == source.dims]
    condition = "flag" if g.chance(2) else g.constant(np.array(g.chance(2)))
    g.add("Where", [condition, source, g.choose(*same)], source.dims)


def flatten(g: Graph) -> None:
    """Reshape to [N, -1] by a shape that the graph computes, or by a constant."""
    source = g.batched()
    if source is None:
        return
    if g.chance(2):
        target = g.ints(0, -1)
    else:
        batch = g.one("Gather", g.one("Shape", source), g.constant(np.array(0)))
        target = g.one("Concat", g.one("Unsqueeze", batch, g.ints(0)), g.ints(-1), axis=0)
    g.add("Reshape", [source, target], (BATCH, int(np.prod(source.sizes))))


def concat(g: Graph) -> None:
    source = g.pick()
    if len(source.dims) >= 2 and isinstance(source.dims[1], int) and source.dims[1] <= 16:
        same = [v for v in g.outer + g.own if v.dims == source.dims]
        parts = [g.choose(*same) for _ in range(g.choose(1, 2))]
        dims = (source.dims[0], source.dims[1] * len(parts), *source.dims[2:])
        g.add("Concat", parts, dims, axis=1)


def split(g: Graph) -> None:
    source = g.pick()
    if len(source.dims) >= 2 and isinstance(source.dims[1], int) and source.dims[1] % 2 == 0:
        dims = (source.dims[0], source.dims[1] // 2, *source.dims[2:])
        g.own += [Value(name, dims) for name in g.halves(source)]


def computed(g: Graph) -> None:
    """A Reshape, Expand or Slice by what the graph computes from a shape; whether it changes anything is left to chance."""
    source, other = g.batched(), g.batched()
    if source is None or other is None:
        return
    batch = g.one("Slice", g.one("Shape", other), g.ints(0), g.ints(1))
    kind, rest = g.choose("reshape", "rows", "expand", "slice"), [*source.sizes]
    if kind == "reshape":
        wanted = g.choose(rest, [int(np.prod(rest))], [1, *rest], [-1])
        target = g.one("Concat", batch, g.ints(*wanted), axis=0)
        g.add("Reshape", [source, target], (BATCH, *(wanted if wanted != [-1] else [int(np.prod(rest))])))
    elif kind == "rows":  # the batch merged with another axis, and taken apart again
        rows = g.one("Mul", batch, g.ints(rest[0]))
        flat = g.one("Reshape", source, g.one("Concat", rows, g.ints(-1), axis=0))
        back = g.one("Concat", g.one("Div", rows, g.ints(rest[0])), g.ints(*rest), axis=0)
        g.add("Reshape", [g.one("Neg", flat), back], source.dims)
    elif kind == "expand":
        g.add("Expand", [source, g.one("Concat", batch, g.ints(*rest), axis=0)], source.dims)
    else:
        g.add("Slice", [source, g.ints(0), batch, g.ints(0)], source.dims)


def round_trip(g: Graph) -> None:
    """Operators that undo each other, or, with ``swap``, only look so."""
    source = g.pick()
    if len(source.dims) >= 2 and isinstance(source.dims[1], int) and source.dims[1] % 2 == 0:
        g.choose(*_ROUND_TRIPS)(g, source, g.chance(2))


def _transposes(g: Graph, x: Value, swap: bool) -> None:
    perm = [1, 0, *range(2, len(x.dims))]
    first = g.one("Transpose", x, perm=perm)
    g.add("Transpose", [g.one("Tanh", first) if swap else first], x.dims, perm=perm)


def _split(g: Graph, x: Value, swap: bool) -> None:
    parts = g.halves(x)
    g.add("Concat", parts[::-1] if swap else parts, x.dims, axis=1)


def _part(g: Graph, x: Value, swap: bool) -> None:
    size = int(x.dims[1])
    joined = g.one("Concat", x, g.one("Neg", x), axis=1)
    begin = size // 2 if swap else size
    g.add("Slice", [joined, g.ints(begin), g.ints(begin + size), g.ints(1)], x.dims)


def _slices(g: Graph, x: Value, swap: bool) -> None:
    half = int(x.dims[1]) // 2
    first = g.one("Slice", x, g.ints(0), g.ints(half), g.ints(1))
    second = g.one("Slice", x, g.ints(-half), g.ints(2**31), g.ints(1))
    g.add("Concat", [second, first] if swap else [first, second], x.dims, axis=1)


def _reversed(g: Graph, x: Value, swap: bool) -> None:
    turned = g.one("Slice", x, *map(g.ints, (-1, -(2**31), 1, -1)))
    g.add("Slice", [g.one("Relu", turned) if swap else turned, *map(g.ints, (-1, -(2**31), 1, -1))], x.dims)


def _gather(g: Graph, x: Value, swap: bool) -> None:
    order = [*range(int(x.dims[1]))]
    g.add("Gather", [x, g.ints(*(order[::-1] if swap else order))], x.dims, axis=1)


def _heads(g: Graph, x: Value, swap: bool) -> None:
    if len(x.dims) == 2:
        heads = g.one("Reshape", x, g.ints(0, 2, int(x.dims[1]) // 2))
        turned = g.one("Transpose", heads, perm=[0, 2, 1] if swap else [0, 1, 2])
        g.add("Reshape", [turned, g.ints(-1, int(x.dims[1]))], x.dims)


def _squeezed(g: Graph, x: Value, swap: bool) -> None:
    wide = g.one("Unsqueeze", x, g.ints(1))
    g.add("Squeeze", [g.one("Tanh", wide) if swap else wide, g.ints(1)], x.dims)


def _casts(g: Graph, x: Value, swap: bool) -> None:
    if x.name in INPUTS or not swap:  # to int32 a rounding could become a difference
        other = g.one("Cast", x, to=TensorProto.INT32 if swap else TensorProto.DOUBLE)
        back = g.one("Cast", other, to=TensorProto.FLOAT)
        g.add("Abs", [back], x.dims)  # what comes from two Casts, onnxruntime cannot capture in a branch


_ROUND_TRIPS = (_transposes, _split, _part, _slices, _reversed, _gather, _heads, _squeezed, _casts)


def sequence(g: Graph) -> None:
    """Taken apart by way of a sequence."""
    source = g.batched()
    if source is None or source.dims[1] % 2 or source.dims[1] > 8:
        return
    half = source.dims[1] // 2
    parts = g.one("SplitToSequence", source, g.ints(half, half), axis=1)
    for place in (0, g.choose(1, -1, 0)):
        g.add("SequenceAt", [parts, g.constant(np.array(place))], (BATCH, half, *source.dims[2:]))


def filled(g: Graph) -> None:
    """A tensor of the same shape, made from the shape: x * 0 + 1."""
    source = g.pick()
    fill = numpy_helper.from_array(np.array([1.5], np.float32))
    g.add("ConstantOfShape", [g.one("Shape", source)], source.dims, value=fill)


def dimension(g: Graph) -> None:
    """A number that the graph computes from shapes, added to a tensor."""
    source, axis = g.pick(), g.choose(0, 1)
    if axis >= len(source.dims):
        return
    dim = g.one("Gather", g.one("Shape", source), g.constant(np.array(axis)))
    half = g.one("Div", dim, g.constant(np.array(2)))
    g.add("Add", [source, g.one("Cast", half, to=TensorProto.FLOAT)], source.dims)


def random(g: Graph) -> None:
    """Noise, times nothing: no two are the same, and none is a constant."""
    source = g.pick()
    zero = g.constant(np.array(0.0, np.float32), fixed=True)
    g.add("Add", [source, g.one("Mul", g.one("RandomUniformLike", source), zero)], source.dims)


def constants(g: Graph) -> None:
    """A small computation on constants only."""
    total = g.one(g.choose(*BINARY), g.floats(2, 3), g.floats(2, 3))
    g.add(g.choose("Identity", "Exp", "Relu"), [total], (2, 3))


def loop(g: Graph) -> None:
    """Add something of the outer graph to the carried value, up to twice."""
    source, captured = g.pick(), g.pick()
    addend = captured if captured.dims == source.dims else source
    scale, depth = g.floats(), g.depth
    body = helper.make_graph(
        [
            helper.make_node("Identity", [f"go{depth}"], [f"on{depth}"]),
            helper.make_node("Mul", [addend.name, scale], [f"scaled{depth}"]),
            helper.make_node("Add", [f"state{depth}", f"scaled{depth}"], [f"next{depth}"]),
        ],
        "body",
        [
            helper.make_tensor_value_info(f"i{depth}", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"go{depth}", TensorProto.BOOL, []),
            float_info(f"state{depth}", None),
        ],
        [helper.make_tensor_value_info(f"on{depth}", TensorProto.BOOL, []), float_info(f"next{depth}", None)],
    )
    trips = g.constant(np.array(g.choose(0, 1, 2)))
    g.add("Loop", [trips, "", source], source.dims, body=body)


def call(g: Graph) -> None:
    source = g.pick()
    if g.old_ir:
        return  # files had no functions then
    g.add("twice", [source], source.dims, domain="local")


def overridable(g: Graph) -> None:
    source = g.pick()
    g.add("Mul", [source, "w"], source.dims)


def if_graph(g: Graph, source: Value, branches: list[GraphProto]) -> None:
    """Choose between two branches on an input or a constant."""
    condition = "flag" if g.chance(2) else g.constant(np.array(g.chance(2)))
    g.add("If", [condition], source.dims, then_branch=branches[0], else_branch=branches[1])
