"""Steps of random models that move elements: operators between others that only reshape or transpose, axes taken apart."""

from __future__ import annotations

import numpy as np

from random_builder import BATCH, Graph, Value
from random_steps import BINARY


def moved(g: Graph) -> None:
    """Operators between others that only reshape or transpose."""
    source = g.batched()
    if source is not None:
        g.choose(*_MOVES)(g, source, g.choose(1, 2) if len(source.dims) > 2 else 1)


def _reshaped(g: Graph, x: Value, at: int) -> None:
    axis, wide = g.ints(at), (*x.dims[:at], 1, *x.dims[at:])
    other = g.floats(*g.choose((), (1,), (1, 1, 1), (int(wide[-1]),)))
    middle = g.one("Mul", g.one("Tanh", g.one("Unsqueeze", x, axis)), other)
    g.add("Squeeze", [middle, axis], x.dims)


def _stacked(g: Graph, x: Value, at: int) -> None:
    axis, alike = g.ints(at), _alike(g, x)
    whole = g.one("Concat", *(g.one("Unsqueeze", value, axis) for value in alike), axis=at)
    _turned(g, Value(whole, (*x.dims[:at], len(alike), *x.dims[at:])), g.random.sample(range(1, len(x.dims) + 1), len(x.dims)))


def _shuffled(g: Graph, x: Value, _at: int) -> None:
    alike, rest = _alike(g, x), x.sizes
    dims = (BATCH, *g.choose((len(alike), rest[0]), (rest[0], len(alike))), *rest[1:])
    cut = g.one("Reshape", g.one("Concat", *alike, axis=1), g.ints(0, *map(int, dims[1:])))
    _turned(g, Value(cut, dims), [2, 1, *range(3, len(dims))])


def _gathered(g: Graph, x: Value, at: int) -> None:
    wide = (*x.dims[:at], 1, *x.dims[at:])
    taken = [0, -1] if g.chance(2) else [*range(int(wide[-1]))]
    parts = g.one("Gather", g.one("Unsqueeze", x, g.ints(at)), g.ints(*taken), axis=len(x.dims))
    g.add("Flatten", [parts], (BATCH, int(np.prod([int(dim) for dim in wide[1:-1]])) * len(taken)))


def _softmax(g: Graph, x: Value, _at: int) -> None:
    whole = g.one("Reshape", x, g.ints(0, *g.choose([1, *x.sizes], [*x.sizes, 1])))
    g.add("Reshape", [g.one("Softmax", whole, axis=g.choose(1, 2)), g.ints(0, *x.sizes)], x.dims)


def _pair(g: Graph, x: Value, at: int) -> None:
    axis = g.ints(at)
    pair = [g.one("Unsqueeze", value, axis) for value in _alike(g, x)[:2]]
    g.add(g.choose(*BINARY), pair, (*x.dims[:at], 1, *x.dims[at:]))


def _transposed(g: Graph, x: Value, _at: int) -> None:
    perm = [0, *g.random.sample(range(1, len(x.dims)), len(x.dims) - 1)]
    parts = [g.one("Transpose", value, perm=perm) for value in _alike(g, x)]
    dims = [x.dims[axis] for axis in perm]
    g.add("Neg", [g.one("Concat", *parts, axis=1)], (BATCH, int(dims[1]) * len(parts), *dims[2:]))


def _channels_last(g: Graph, x: Value, _at: int) -> None:
    """Elementwise operators with constants between a Transpose and one that turns back, or nearly so."""
    perm = [0, *range(2, len(x.dims)), 1]
    y = g.inner("Transpose", [x], tuple(x.dims[axis] for axis in perm), perm=perm)
    for _ in range(g.choose(1, 2, 3)):
        c = g.floats(*g.choose((), y.sizes[-1:], y.sizes[-2:], y.sizes, (*y.sizes[:1], *[1] * (len(y.dims) - 2))))
        kind = g.choose("Relu", "Add", "Mul", "Max", "PRelu", "Sub")
        operands = [y] if kind == "Relu" else [y, c] if kind == "PRelu" or g.chance(2) else [c, y]
        y = g.inner(kind, operands, y.dims)
    back = [0, len(perm) - 1, *range(1, len(perm) - 1)] if not g.chance(4) else g.random.sample(range(len(perm)), len(perm))
    if back[0] == 0:
        g.add("Transpose", [y], tuple(y.dims[axis] for axis in back), perm=back)


_MOVES = (_channels_last, _channels_last, _reshaped, _stacked, _shuffled, _gathered, _softmax, _pair, _transposed)


def _alike(g: Graph, x: Value) -> list[Value]:
    """Two or three tensors of the dimensions of one."""
    same = [value for value in g.outer + g.own if value.dims == x.dims] or [x]
    return [g.choose(*same) for _ in range(g.choose(2, 3))]


def _turned(g: Graph, x: Value, order: list[int]) -> None:
    """Transpose all axes but the first, and merge them in part."""
    dims = (BATCH, *(int(x.dims[axis]) for axis in order))
    turned = g.one("Transpose", x, perm=[0, *order])
    if g.chance(2):
        flat = (BATCH, int(dims[1]) * int(dims[2]), *dims[3:])
        g.add("Reshape", [turned, g.ints(0, -1, *map(int, flat[2:]))], flat)
    else:
        g.add("Relu", [turned], dims)


def parts(g: Graph) -> None:
    """Slices that take an axis apart; or not quite."""
    x = g.batched()
    if x is None or x.sizes[0] < 2:
        return
    length = x.sizes[0]
    middle = g.choose(*range(1, length))
    for begin, end in ((0, middle), (middle, g.choose(length, 1 << 40, length - 1))):
        if size := len(range(length)[begin:end]):
            value = g.one("Slice", x, g.ints(begin), g.ints(end), g.ints(1))
            g.add("Abs", [value], (BATCH, size, *x.dims[2:]))
