"""Layers of random models: what exporters write for convolutions, normalizations, activations, recurrence and attention.

Each is written in one of the forms that are met, and sometimes in one that is nearly the same and must not be taken for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, numpy_helper

from random_builder import BATCH, Graph, UnfitError, Value

LARGEST = 8
"""Height and width stay at or below."""


# --------------------------------------------------------------------------------------- what scales and shifts channels


def affine(g: Graph, x: Value, axis: int = 1, times: int = 1) -> Value:
    """Scale and shift each channel (or now and then something else) by some operators."""
    for _ in range(times):
        kind = g.choose("BatchNormalization", "Add", "Add", "Mul", "Mul", "Sub", "Div")
        channels = int(x.dims[axis])
        if kind == "BatchNormalization" and axis == 1:
            statistics = [g.floats(channels), g.floats(channels), g.floats(channels), g.positive(channels)]
            x = g.inner("BatchNormalization", [x, *statistics], x.dims, epsilon=g.choose(1e-5, 1e-3))
            continue
        kind = "Mul" if kind == "BatchNormalization" else kind
        behind = (1,) * (len(x.dims) - axis - 1)
        shapes = [(), (1,), (channels, *behind), (1,) * axis + (channels, *behind)]
        wrong = [x.sizes[-1:], x.sizes]  # along another axis, or one number for each element
        dims = g.choose(*wrong) if g.chance(8) else g.choose(*shapes)
        c = g.positive(*dims) if kind == "Div" else g.floats(*dims)
        if g.chance(8):
            c = g.number(g.choose(0.0, 1.0) if kind in {"Add", "Sub"} else 1.0, *dims)  # often changes nothing
        turned = kind != "Div" and g.chance(3)
        x = g.inner(kind, [c, x] if turned else [x, c], x.dims)
    return x


def convolution(g: Graph) -> None:
    """Conv or ConvTranspose, with what scales and shifts before and behind."""
    x = g.batched(4)
    if x is None or x.dims[1] > 8:
        return
    x = affine(g, x, times=g.choose(0, 0, 1, 2))
    x = conv_transpose(g, x) if g.chance(4) else conv(g, x)
    if x is None:
        return
    x = affine(g, x, times=g.choose(0, 1, 1, 2, 3))
    g.add(g.choose("Relu", "Identity", "Tanh"), [x], x.dims)


def conv(g: Graph, x: Value) -> Value:
    channels, sizes = int(x.dims[1]), x.sizes[1:]
    group = g.choose(*(n for n in (1, 1, 2, channels) if channels % n == 0))
    kernel = g.choose(*(k for k in (1, 1, 2, 3) if k <= min(sizes)))
    out = group * g.choose(1, 2) if group > 1 else g.choose(2, 4)
    weight = g.floats(out, channels // group, kernel, kernel)
    inputs: list[str | Value] = [x, weight]
    bias = g.choose("none", "plain", "plain", "computed")
    if bias == "plain":
        inputs.append(g.floats(out))
    elif bias == "computed":  # as torch's exporter writes a bias of zeros
        zero = g.one("CastLike", g.constant(np.array(0.0, np.float32)), x)
        count = g.one("Slice", g.one("Shape", weight), g.ints(0), g.ints(1))
        inputs.append(g.one("Expand", zero, count))
    stride, dilation = g.choose(1, 1, 2), g.choose(1, 1, 2) if (kernel - 1) * 2 < min(sizes) else 1
    attributes, dims = padding(g, sizes, (kernel - 1) * dilation + 1, stride)
    if str(attributes.get("auto_pad")).startswith("SAME"):
        dilation = 1  # the runtime has no other
    attributes |= {"strides": [stride] * 2, "dilations": [dilation] * 2, "group": group, "kernel_shape": [kernel] * 2}
    return g.inner("Conv", inputs, (BATCH, out, *dims), **attributes)


def padding(g: Graph, sizes: Sequence[int], reach: int, stride: int) -> tuple[dict[str, object], list[int]]:
    """How a Conv or a pool pads, and the sizes of its output."""
    kind = g.choose("none", "none", "pads", "pads", "VALID", "SAME_UPPER", "SAME_LOWER")
    if kind.startswith("SAME") and reach >= stride:  # else it would crop, which not every kernel can
        return {"auto_pad": kind}, [math.ceil(size / stride) for size in sizes]
    pads = [g.choose(0, 1) if reach > 1 else 0 for _ in range(4)] if kind == "pads" else [0] * 4
    dims = [(size + pads[i] + pads[i + 2] - reach) // stride + 1 for i, size in enumerate(sizes)]
    return {"pads": {"pads": pads}, "VALID": {"auto_pad": "VALID"}}.get(kind, {}), dims


def conv_transpose(g: Graph, x: Value) -> Value | None:
    channels, sizes = int(x.dims[1]), x.sizes[1:]
    if max(sizes) > LARGEST // 2:
        return None
    group = g.choose(*(n for n in (1, 2) if channels % n == 0))
    kernel, stride, out = g.choose(1, 2, 3), g.choose(1, 2), g.choose(1, 2)
    inputs = [x.name, g.floats(channels, out, kernel, kernel)]
    inputs += [g.floats(out * group)] if g.chance(2) else []
    dims = [(size - 1) * stride + kernel for size in sizes]
    return g.inner("ConvTranspose", inputs, (BATCH, out * group, *dims), group=group, strides=[stride] * 2)


def pool(g: Graph, x: Value, op_type: str) -> Value:
    sizes = x.sizes[1:]
    kernel = g.choose(*(k for k in (1, 2, 3) if k <= min(sizes)))
    stride = g.choose(1, 1, 2)
    attributes, dims = padding(g, sizes, kernel, stride)
    rounded_up = [math.ceil((size - kernel) / stride) + 1 for size in sizes]
    if (
        g.chance(6)
        and g.opset >= 10
        and not attributes
        and all((dim - 1) * stride < size for dim, size in zip(rounded_up, sizes, strict=True))
    ):
        attributes["ceil_mode"], dims = 1, rounded_up
    if op_type == "AveragePool" and g.chance(3):
        attributes["count_include_pad"] = 1
    return g.inner(op_type, [x], (*x.dims[:2], *dims), kernel_shape=[kernel] * 2, strides=[stride] * 2, **attributes)


def padded(g: Graph) -> None:
    """A Pad, and what may pad by itself behind it."""
    x = g.batched(4)
    if x is None or max(x.sizes) > LARGEST or min(x.sizes) < 2:
        return
    users = [g.choose("Conv", "Conv", "AveragePool", "MaxPool") for _ in range(g.choose(1, 1, 1, 2))]
    mode = g.choose("constant", "constant", "constant", "constant", "reflect", "edge")
    most = (0, 1) if users == ["MaxPool"] else (0, 1, 2)
    amounts = [0, 0, *(g.choose(*most) for _ in range(2)), 0, 0, *(g.choose(*most) for _ in range(2))]
    if mode == "reflect":
        amounts = [min(amount, 1) for amount in amounts]
    elif g.chance(8):
        amounts[g.choose(1, 5)] = 1  # of channels
    elif g.chance(8) and min(x.sizes[1:]) > 2:
        amounts[g.choose(2, 3)] = -1
    dims = (x.dims[0], *(int(x.dims[i]) + amounts[i] + amounts[i + 4] for i in (1, 2, 3)))
    some = g.opset >= 18 and not amounts[1] and not amounts[5] and g.chance(3)
    pads = g.ints(*(amounts[2:4] + amounts[6:8] if some else amounts))
    value = ""
    if mode == "constant":
        deepest = -math.inf if users == ["MaxPool"] and max(amounts) < 2 else 1.0
        value = g.choose("", g.number(0.0), g.number(g.choose(deepest, 0.5) if g.chance(2) else 0.0))
        value = g.number(deepest) if deepest < 0 and not g.chance(3) else value
    inputs = [x.name, pads, value, g.ints(2, -1)] if some else [x.name, pads, value]
    while not inputs[-1]:
        inputs.pop()
    behind = Value(g.one("Pad", *inputs, mode=mode), dims)
    for user in users:
        result = conv(g, behind) if user == "Conv" else pool(g, behind, user)
        g.add("Clip", [result, g.number(-9.0), g.number(9.0)], result.dims)  # minus infinity ends here


def pooled(g: Graph) -> None:
    """The mean over height and width, or over something else; behind a Conv or not."""
    x = g.batched(4)
    if x is None:
        return
    if g.chance(2) and x.dims[1] <= 8:
        x = conv(g, x)
        x = g.inner("Relu", [x], x.dims)
    mean = g.reduce_mean(x, g.choose((2, 3), (-1, -2), (3, 2), (3,), (1, 2)), g.choose(0, 1))
    g.add("Neg", [mean], mean.dims)


# ------------------------------------------------------------------------------------------------------- dense and moves


def matmul(g: Graph) -> None:
    """MatMul by a constant, perhaps one that is transposed first, with a bias, scales, and moves in between."""
    x = g.batched()
    if x is None:
        return
    x = affine(g, x, axis=len(x.dims) - 1, times=g.choose(0, 0, 0, 1))
    k, n = int(x.dims[-1]), g.choose(2, 6)
    weight = g.one("Transpose", g.floats(n, k), perm=[1, 0]) if g.chance(3) else g.floats(k, n)
    x = g.inner("MatMul", [x, weight], (*x.dims[:-1], n))
    x = affine(g, x, axis=len(x.dims) - 1, times=g.choose(0, 1, 2, 3))
    if g.chance(2):
        perm = [0, *range(len(x.dims) - 1, 0, -1)]
        x = g.inner("Transpose", [x], tuple(x.dims[axis] for axis in perm), perm=perm)
        x = affine(g, x, axis=len(x.dims) - 1, times=g.choose(0, 1))
    g.add(g.choose("Identity", "Relu"), [x], x.dims)


def gemm(g: Graph) -> None:
    x = g.batched(2)
    if x is None:
        return
    x = affine(g, x, times=g.choose(0, 0, 1, 2))
    k, n = int(x.dims[1]), g.choose(2, 6)
    attributes: dict[str, object] = {"transB": g.choose(0, 1)}
    if g.chance(4):
        attributes |= {"alpha": g.choose(0.5, 1.0), "beta": g.choose(2.0, 1.0)}
    weight = g.floats(*((n, k) if attributes["transB"] else (k, n)))
    left = x.name
    if g.chance(3):
        left, attributes["transA"] = g.one("Transpose", x, perm=[1, 0]), 1
    bias = [g.floats(*g.choose((n,), (n,), (1, n), (1,), ()))] if not g.chance(4) else []
    x = g.inner("Gemm", [left, weight, *bias], (BATCH, n), **attributes)
    x = affine(g, x, times=g.choose(0, 1, 1, 2))
    g.add(g.choose("Identity", "Relu"), [x], x.dims)


def double(g: Graph) -> None:
    """A little in double precision."""
    x = g.batched()
    if x is None:
        return
    last = int(x.dims[-1])
    weight, c = (g.constant(np.random.default_rng(i).standard_normal(d)) for i, d in enumerate([(last, last), (last,)]))
    wide = g.one("MatMul", g.one("Cast", x, to=TensorProto.DOUBLE), weight)
    wide = g.one(g.choose("Mul", "Add"), g.one("Add", wide, c), g.constant(np.array(0.5)))
    g.add("Cast", [wide], x.dims, to=TensorProto.FLOAT)


# ----------------------------------------------------------------------------------------------------------- elementwise


def limits(g: Graph) -> None:
    """Chains of what limits values."""
    x = g.pick()
    for _ in range(g.choose(2, 3)):
        kind = g.choose("Relu", "Clip", "Min", "Max")
        bounds = [g.number(g.choose(-1.0, 0.0)), g.number(g.choose(6.0, 1.0, -0.5))]
        if kind == "Clip":
            given = g.choose(bounds, [bounds[0]], ["", bounds[1]], bounds[::-1])
            if g.opset < 11 and (g.arrays[bounds[0]] > g.arrays[bounds[1]] or given == bounds[::-1]):
                raise UnfitError("the runtime refuses attributes the other way round")
            x = g.inner("Clip", [x, *given], x.dims)
        else:
            x = g.inner(kind, [x] if kind == "Relu" else [x, g.choose(*bounds)], x.dims)
    g.add("Neg", [x], x.dims)


def neutral(g: Graph) -> None:
    """Arithmetic that changes nothing, or only the shape."""
    x, kind = g.pick(), g.choose("Add", "Sub", "Mul", "Div")
    ones = g.choose((), (1,), (1,) * len(x.dims), tuple(int(d) if isinstance(d, int) else 1 for d in x.dims))
    c = g.number(0.0 if kind in {"Add", "Sub"} else 1.0, *ones)
    x = g.inner(kind, [x, c], x.dims if len(ones) <= len(x.dims) else ones)
    g.add("Tanh", [x], x.dims)


def activation(g: Graph) -> None:
    """Gelu, HardSwish, SiLU written out."""
    x = g.pick()
    if not x.dims:
        return
    write = g.choose(erf_gelu, erf_gelu, tanh_gelu, tanh_gelu, hard_swish, hard_swish, silu)
    write(g, g.inner("Identity", [x], x.dims) if g.chance(3) else x)


def constant_near(g: Graph, value: float, other: float | None = None) -> str:
    """The constant of a formula, and now and then another one."""
    other = value * 1.01 if other is None else other
    return g.number(other if g.chance(16) else value, *g.choose((), (), (1,)))


def times(g: Graph, dims: Sequence[int | str], *factors: str | Value) -> Value:
    """A product in any order."""
    result, *rest = g.random.sample(factors, len(factors))
    for factor in rest:
        result = g.inner("Mul", g.choose([result, factor], [factor, result]), tuple(dims))
    assert isinstance(result, Value)
    return result


def erf_gelu(g: Graph, x: Value) -> None:
    if g.chance(2):
        inside = g.inner("Div", [x, constant_near(g, math.sqrt(2))], x.dims)
    else:
        inside = g.inner("Mul", [x, constant_near(g, math.sqrt(0.5))], x.dims)
    erf = g.inner("Erf", [inside], x.dims)
    plus = g.inner("Add", [erf, constant_near(g, 1.0)], x.dims)
    result = times(g, x.dims, constant_near(g, 0.5), x, plus)
    g.own.append(result)


def tanh_gelu(g: Graph, x: Value) -> None:
    # a broken power of what is negative is no number, and a MaxPool of these gives what its kernel happens to compare
    cube = g.inner("Pow", [x, constant_near(g, 3.0, 5.0)], x.dims) if g.chance(2) else times(g, x.dims, x, x, x)
    cubic = times(g, x.dims, constant_near(g, 0.044715), cube)
    plus = g.inner("Add", g.choose([x, cubic], [cubic, x]), x.dims)
    tanh = g.inner("Tanh", [times(g, x.dims, constant_near(g, math.sqrt(2 / math.pi)), plus)], x.dims)
    one = g.inner("Add", [tanh, constant_near(g, 1.0)], x.dims)
    g.own.append(times(g, x.dims, constant_near(g, 0.5), x, one))


def hard_swish(g: Graph, x: Value) -> None:
    if g.chance(2):
        gate = g.inner("HardSigmoid", [x], x.dims, alpha=g.choose(1 / 6, 1 / 6, 0.2), beta=0.5)
        g.own.append(times(g, x.dims, x, gate))
        return
    plus = g.inner("Add", [x, constant_near(g, 3.0)], x.dims)
    gate = g.inner("Clip", [plus, g.number(0.0), g.number(6.0)], x.dims)
    if g.chance(2):
        g.add("Div", [times(g, x.dims, x, gate), constant_near(g, 6.0)], x.dims)
    else:
        g.own.append(times(g, x.dims, x, gate, constant_near(g, 1 / 6)))


def silu(g: Graph, x: Value) -> None:
    g.own.append(times(g, x.dims, x, g.inner("Sigmoid", [x], x.dims)))


# --------------------------------------------------------------------------------------------------------- normalization


def normalization(g: Graph) -> None:
    """LayerNormalization or RMSNormalization written out, over the last axis or, what is no such thing, another one."""
    x = g.batched()
    if x is None or x.dims[-1] == 1:
        return
    last = int(x.dims[-1])
    if g.chance(3):  # a residual, over a sequence more often than not
        if len(x.dims) == 2 and last % 2 == 0:
            last //= 2
            x = g.inner("Reshape", [x, g.ints(0, 2, last)], (BATCH, 2, last))
        x = g.inner("Add", [x, g.inner("Tanh", [x], x.dims)], x.dims)
    axis = g.choose(-1, -1, -1, len(x.dims) - 1, 1)
    centred = x
    if not g.chance(3):
        mean = g.reduce_mean(x, [axis])
        centred = g.inner("Sub", [x, mean], x.dims)
    twin = g.inner("Sub", [x, mean], x.dims) if centred is not x and g.chance(3) else centred
    square = g.inner("Mul", [twin, twin], x.dims) if g.chance(3) else g.inner("Pow", [twin, g.number(2.0)], x.dims)
    variance = g.reduce_mean(square, [axis])
    plus = g.inner("Add", [variance, g.number(g.choose(1e-2, 1e-3))], variance.dims)
    root = g.inner("Sqrt", [plus], variance.dims)
    if g.chance(2):
        result = g.inner("Mul", [centred, g.one("Reciprocal", root)], x.dims)
    else:
        result = g.inner("Div", [centred, root], x.dims)
    result = g.inner("Mul", g.choose([result, g.floats(last)], [g.floats(last), result]), x.dims)
    if g.chance(2):
        result = g.inner("Add", [result, g.floats(last)], x.dims)
    g.own.append(result)


# ------------------------------------------------------------------------------------------------ recurrence, attention


def recurrent(g: Graph) -> None:
    """LSTM, GRU or RNN over the two halves of a vector, its initial states computed from the batch size or from values."""
    x = g.batched(2)
    if x is None or x.dims[1] % 2:
        return
    kind, hidden, width = g.choose("LSTM", "GRU", "RNN"), 3, int(x.dims[1]) // 2
    directions = g.choose(1, 1, 2)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * hidden
    steps = g.one("Transpose", g.one("Reshape", x, g.ints(0, 2, width)), perm=[1, 0, 2])
    weights = [g.floats(directions, gates, width), g.floats(directions, gates, hidden)]
    bias = g.floats(directions, 2 * gates) if g.chance(2) else ""
    states = [initial_state(g, x, directions, hidden) for _ in range(2 if kind == "LSTM" else 1)]
    inputs = [steps, *weights, bias, "", *states]
    while not inputs[-1]:
        inputs.pop()
    attributes = {"direction": "bidirectional"} if directions == 2 else {}
    every, last = g.node(kind, inputs, outputs=2, hidden_size=hidden, **attributes)
    if g.chance(2):
        flat = g.one("Reshape", g.one("Transpose", last, perm=[1, 0, 2]), g.ints(0, -1))
        g.add("Neg", [flat], (BATCH, directions * hidden))
    else:  # [step, direction, batch, hidden]
        turned = g.one("Transpose", every, perm=[2, 0, 1, 3])
        g.add("Reshape", [turned, g.ints(0, 2, -1)], (BATCH, 2, directions * hidden))


def initial_state(g: Graph, x: Value, directions: int, hidden: int) -> str:
    """Nothing, zeros or other numbers as large as the batch asks for, or values of the graph."""
    kind = g.choose("none", "expand", "fill", "slice", "value")
    if kind == "none":
        return ""
    if kind == "value":
        state = g.one("Unsqueeze", g.one("MatMul", x, g.floats(int(x.dims[1]), hidden)), g.ints(0))
        return g.one("Concat", *[state] * directions, axis=0)
    batch = g.one("Unsqueeze", g.one("Gather", g.one("Shape", x), g.constant(np.array(0))), g.ints(0))
    layers = 2 * directions if kind == "slice" else directions
    shape = g.one("Concat", g.ints(layers), batch, g.ints(hidden), axis=0)
    fill = g.choose(0.0, 0.0, 0.5)
    if kind == "expand":
        return g.one("Expand", g.number(fill), shape)
    state = g.one("ConstantOfShape", shape, value=numpy_helper.from_array(np.array([fill], np.float32)))
    return state if kind == "fill" else g.one("Slice", state, g.ints(directions), g.ints(layers), g.ints(0))


def attention(g: Graph) -> None:
    """Self-attention with two heads over [batch, time, width], with or without biases, a scale and a residual."""
    x = g.batched(3)
    if x is None:
        flat = g.batched(4)
        if flat is None:
            return
        x = g.inner("Reshape", [flat, g.ints(0, int(flat.dims[1]), -1)], (BATCH, flat.dims[1], math.prod(flat.sizes[1:])))
    time, width = x.sizes
    if width % 2 or width > 16 or time > 16:
        return
    queries, keys, values = (heads(g, x, time, width, key=i == 1) for i in range(3))
    scores = g.one("MatMul", queries, keys)
    scale = math.sqrt(width // 2)
    scores = g.one("Div", scores, g.number(scale)) if g.chance(2) else g.one("Mul", scores, g.number(1 / scale))
    mixed = g.one("MatMul", g.one("Softmax", scores, axis=-1), values)
    joined = g.one("Reshape", g.one("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(0, -1, width))
    result = g.inner("Add", [g.one("MatMul", joined, g.floats(width, width)), g.floats(width)], x.dims)
    g.add("Add", g.choose([x, result], [result, x]), x.dims)


def heads(g: Graph, x: Value, time: int, width: int, *, key: bool) -> str:
    projected = g.one("MatMul", x, g.floats(width, width))
    if g.chance(2):
        projected = g.one("Add", *g.choose([projected, g.floats(width)], [g.floats(width), projected]))
    if g.chance(4):
        projected = g.one("Mul", projected, g.number(0.5))
    split = g.one("Reshape", projected, g.ints(0, time, 2, width // 2))
    return g.one("Transpose", split, perm=[0, 2, 3, 1] if key else [0, 2, 1, 3])
