"""Steps of random models in other types than float32: integers, booleans, float16, double, and parts that hold nothing.

All begins at an input or a constant: what was computed in floats may be rounded otherwise after a rewrite, and a comparison or
a Cast would make a difference of that.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from random_builder import BATCH, INPUTS, Dims, Graph, UnfitError, Value

_TYPES = {
    TensorProto.INT64: np.int64,
    TensorProto.INT32: np.int32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.UINT8: np.uint8,
    TensorProto.BOOL: np.bool_,
}
_WHOLE = (TensorProto.INT64, TensorProto.INT32)
_ONE_OPERAND = {
    "whole": ("Neg", "Abs", "Sign", "Identity"),
    "real": ("Neg", "Abs", "Relu", "Identity", "Floor", "Sign"),
    "small": ("Identity",),
    "bool": ("Not", "Identity"),
}
_TWO_OPERANDS = {
    "whole": (
        ("Add", 0, 3),
        ("Sub", 0, 2),
        ("Mul", 1, -2),
        ("Div", 1, 2, -3),
        ("Mod", 3, 5),
        ("Max", 0),
        ("Min", 1),
        ("Pow", 1, 2),
    ),
    "real": (
        ("Add", 0, -0.0, 0.5),
        ("Sub", 0, -0.0),
        ("Mul", 1, -2),
        ("Div", 1, 2),
        ("Max", 0),
        ("Min", 1, np.inf),
        ("Pow", 1),
    ),
    "small": (),
    "bool": (("And", True, False), ("Or", True, False), ("Xor", True, False)),
}
"""Operators, and numbers that the other operand holds; some of them change nothing."""
_COMPARISONS = ("Equal", "Less", "Greater")


def _kind(dtype: int) -> str:
    if dtype in _WHOLE:
        return "whole"
    return {TensorProto.BOOL: "bool", TensorProto.UINT8: "small"}.get(dtype, "real")


def typed(g: Graph) -> None:
    """A chain of operators in some types, from an input or a constant to a float."""
    dtype = g.choose(*_TYPES)
    if g.chance(4):
        dims: Dims = (2, 3)
        value = g.constant(np.array([[3, -4, 0], [1, 7, -2]], np.float32), fixed=True)
    else:
        name = g.choose("x", "y")
        dims, value = INPUTS[name], g.one("Mul", name, g.constant(np.float32(4.0), fixed=True))
    if dtype == TensorProto.FLOAT16:  # what it holds without rounding: the runtime computes in float32, and rounds now and then
        value = g.one("Floor", value)
    value = _cast(g, value, dtype)
    for _ in range(g.choose(1, 2, 3, 5)):
        value, dtype = _next(g, value, dims, dtype)
    g.add("Cast", [value], dims, to=TensorProto.FLOAT)


def _cast(g: Graph, value: str, dtype: int) -> str:
    if dtype == TensorProto.UINT8:  # of what is no float out of range, which each processor casts as it likes
        value = g.one("Cast", value, to=TensorProto.INT32)
    return g.one("Cast", value, to=dtype)


def _next(g: Graph, value: str, dims: Dims, dtype: int) -> tuple[str, int]:
    kind, step = _kind(dtype), g.choose("one", "two", "two", "compare", "where", "cast", "move")
    if step == "one":
        op_type = g.choose(*_ONE_OPERAND[kind])
        if op_type == "Relu" and dtype == TensorProto.DOUBLE and g.opset < 13:
            raise UnfitError(op_type)
        return g.one(op_type, value), dtype
    if step == "two" and _TWO_OPERANDS[kind]:
        op_type, *numbers = g.choose(*_TWO_OPERANDS[kind])
        if g.opset < 12 and op_type in {"Max", "Min", "Pow", "Mod"}:
            raise UnfitError(op_type)
        return g.one(op_type, value, _operand(g, g.choose(*numbers), dims, dtype)), dtype
    if step == "compare" and kind in {"whole", "real"} and dtype != TensorProto.FLOAT16 and g.opset >= 11:
        return g.one(g.choose(*_COMPARISONS), value, _operand(g, 1, dims, dtype)), TensorProto.BOOL
    if step == "where" and kind != "bool" and g.opset >= 9:
        return g.one("Where", g.choose("flag", g.constant(np.array(True))), value, _operand(g, 1, dims, dtype)), dtype
    if step == "cast":
        to = g.choose(*(t for t in _TYPES if kind != "real" or _kind(t) != "small"))
        if to == TensorProto.FLOAT16 and dtype not in {to, TensorProto.BOOL}:
            raise UnfitError("rounded")
        return g.one("Cast", value, to=to), to
    perm = [0, *reversed(range(1, len(dims)))]
    turned = g.one("Transpose", value, perm=perm)
    return g.one("Transpose", g.one("Identity", turned) if g.chance(2) else turned, perm=perm), dtype


def _operand(g: Graph, number: float, dims: Dims, dtype: int) -> str:
    shape = g.choose((), (1,), tuple(int(dim) for dim in dims[-1:]))
    return g.constant(np.full(shape, number, _TYPES[dtype]), fixed=True)


def empty(g: Graph) -> None:
    """A part without elements: put together with others, or summed up."""
    x = g.batched()
    if x is None:
        return
    nothing = g.one("Slice", x, g.ints(g.choose(0, 2)), g.ints(0), g.ints(1))
    if g.chance(2):
        parts = g.random.sample([x.name, nothing, g.one("Neg", nothing)], 3)
        g.add("Concat", parts, x.dims, axis=1)
        return
    total = g.one("ReduceSum", nothing, g.ints(1), keepdims=1)
    g.add("Sub", [x, total], x.dims)


def selected(g: Graph) -> None:
    """As many rows as a condition holds for, maybe none; reshaped, and summed up."""
    x = g.batched()
    if x is None:
        return
    column = g.one("Gather", "y", g.constant(np.array(0)), axis=1)
    where = g.one("Cast", g.one("Greater", column, g.number(g.choose(-9.0, 0.0, 9.0))), to=TensorProto.BOOL)
    rows = g.one("Squeeze", g.one("NonZero", where), g.ints(0))
    value, dims = g.one("Gather", x, rows), [*x.sizes]
    for _ in range(g.choose(1, 2, 3)):
        kind = g.choose("merge", "wide", "slice", "shape", "scale")
        if kind == "merge":
            dims = [int(np.prod(dims))]
            count = g.one("Slice", g.one("Shape", value), g.ints(0), g.ints(1), g.ints(0))
            value = g.one("Reshape", value, g.one("Concat", count, g.ints(*dims), axis=0))
        elif kind == "wide":
            value, dims = g.one("Unsqueeze", value, g.ints(1)), [1, *dims]
        elif kind == "slice":
            value = g.one("Slice", value, g.ints(0), g.ints(2**31 - 1), g.ints(0))
        elif kind == "shape":
            value = g.one("Reshape", value, g.one("Shape", value))
        else:
            value = g.one("Mul", value, g.number(g.choose(1.0, 2.0)))
    g.add("ReduceSum", [value, g.ints(0)], tuple(dims), keepdims=0)


def counted(g: Graph) -> None:
    """A Range as long as an axis, or of constants, by position or by value."""
    x = g.batched()
    if x is None:
        return
    axis = g.choose(0, len(x.dims) - 1)
    size = g.one("Gather", g.one("Shape", x), g.constant(np.array(axis)))
    zero, one = (g.constant(np.array(number), fixed=True) for number in (0, 1))
    places = g.one("Range", zero, size, one)
    kind = g.choose("gather", "add", "backwards")
    if kind == "gather":
        g.add("Gather", [x, places], x.dims, axis=axis)
    elif kind == "backwards":
        turned = g.one("Sub", g.one("Sub", size, one), places)
        g.add("Gather", [x, turned], x.dims, axis=axis)
    else:
        behind = (1,) * (len(x.dims) - axis - 1)
        number = g.one("Reshape", g.one("Cast", places, to=TensorProto.FLOAT), g.ints(-1, *behind))
        g.add("Add", [x, number], x.dims)


def extremes(g: Graph) -> None:
    """Infinities and numbers that are none among the constants."""
    x = g.batched()
    if x is None or g.opset < 12:
        return
    odd = g.constant(np.full(g.choose((), (1,)), g.choose(np.inf, -np.inf, np.nan), np.float32), fixed=True)
    kind = g.choose("Max", "Min", "Where", "Mul")
    if kind == "Where":
        value = g.one("Where", g.choose("flag", g.constant(np.array(False), fixed=True)), odd, x)
    else:
        value = g.one(kind, x, odd)
    calm = g.one("Where", g.one("IsNaN", value), g.number(0.5), value)
    g.add("Clip", [calm, g.number(-2.0), g.number(2.0)], x.dims)


def topped(g: Graph) -> None:
    """The largest few, of which the second output says where they were."""
    x = Value("y", INPUTS["y"])
    if g.opset < 11:
        return
    values, places = g.node("TopK", [x.name, g.ints(g.choose(1, 2))], outputs=2, axis=-1)
    kept = g.choose("values", "places", "both")
    count = [*g.arrays.values()][-1].item()
    if kept != "places":
        g.add("Neg", [values], (BATCH, count))
    if kept != "values":
        g.add("Cast", [places], (BATCH, count), to=TensorProto.FLOAT)
