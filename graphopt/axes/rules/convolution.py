"""Convolution, transposed convolution, pooling and resampling: channels are contracted or kept, positions are not channels."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.axes.analysis import Analysis, Axes, Unknown
from graphopt.axes.ids import Axis, Ids, Symbol
from graphopt.graphs import constant

from .table import rule

_KERNEL = "the extent of a kernel"
_POSITIONS = "a neighbourhood of positions"


@rule("Conv", "com.microsoft.FusedConv")
def conv(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[n, m] = sum_c x[n, c] * w[m, c] + b[m], convolved over positions.

    In G groups, c = (g, i) and m = (g, o):  y[n, (g, o)] = sum_i x[n, (g, i)] * w[(g, o), i].  Both channel axes are products
    with the same g: either whole groups go, and the attribute ``group`` falls, or the same i in each, and the same o in each.
    Depthwise (no choice of i) is the first: the channel goes with its filter.
    """
    x, w = a.of(node, 0), a.of(node, 1)
    channels, out, inner = x[1], w[0], w[1]
    if isinstance(channels, Symbol) or isinstance(out, Symbol) or isinstance(inner, Symbol):
        raise Unknown("a dynamic number of channels")
    groups = node.attributes.get_int("group", 1)
    if groups == 1:
        a.contract(node, (0, 1), (1, 1))
        a.gives(node, 1, 0)
    else:
        group = a.union.new(groups)
        a.product(channels, (group, inner))
        a.product(out, (group, a.union.new(len(out) // groups)))
        a.count_attribute(node, "group", group)
        if len(inner) > 1:
            a.takes(node, 1, 1)
            a.summed(node, 0, 1)
            a.gives(node, 1, 0)
    bias = a.maybe(node, 2)
    if bias is not None:
        a.same(out, bias[0], node)
    if len(node.inputs) > 3 and node.inputs[3] is not None:  # FusedConv adds another value
        addend = a.of(node, 3)
        a.same(out, addend[1], node)
        a.lock(addend[2:], node, _POSITIONS)
    return [_positions(a, node, x, w, out)]


@rule("ConvTranspose")
def conv_transpose(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[n, m] = sum_c x[n, c] * w[c, m] + b[m]. In G groups, c = (g, i) and m = (g, o): w[(g, i), o]."""
    x, w = a.of(node, 0), a.of(node, 1)
    channels, outer, out = x[1], w[0], w[1]
    if isinstance(channels, Symbol) or isinstance(outer, Symbol) or isinstance(out, Symbol):
        raise Unknown("a dynamic number of channels")
    groups = node.attributes.get_int("group", 1)
    a.contract(node, (0, 1), (1, 0))
    a.gives(node, 1, 1)
    if groups > 1:
        group, inner = a.union.new(groups), a.union.new(len(outer) // groups)
        a.product(outer, (group, inner))
        merged = a.union.new(groups * len(out))
        a.product(merged, (group, out))
        a.count_attribute(node, "group", group)
        out = merged
    bias = a.maybe(node, 2)
    if bias is not None:
        a.same(out, bias[0], node)
    return [_positions(a, node, x, w, out)]


def _positions(a: Analysis, node: ir.Node, x: Axes, w: Axes, out: Ids) -> Axes:
    a.lock(x[2:], node, _POSITIONS)
    a.lock(w[2:], node, _KERNEL)
    return (x[0], out, *(a.position(node, 0, axis) for axis in range(2, len(x))))


@rule("AveragePool", "LpPool", "MaxPool")
def pool(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[n, c] is made of x[n, c] alone; positions are new."""
    x = a.of(node, 0)
    a.lock(x[2:], node, _POSITIONS)
    return [(*x[:2], *(a.position(node, output, axis) for axis in range(2, len(x)))) for output in range(len(node.outputs))]


@rule("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")
def global_pool(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[n, c, 1, 1] is made of x[n, c] alone."""
    x = a.of(node, 0)
    a.lock(x[2:], node, _POSITIONS)
    return [(*x[:2], *(a.locked(1, node, _POSITIONS) for _ in x[2:]))]


@rule("Upsample")
def upsample(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """y[n, c] is x[n, c] resampled, with ``scales`` of 1 for n and c."""
    scales, tensor = node.attributes.get_floats("scales") or (), constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if tensor is not None:
        scales = tensor.numpy().tolist()
    if tuple(scales[:2]) != (1.0, 1.0):
        raise Unknown("scales that are not constant, or not 1 for the channels")
    return pool(a, node)


@rule("Resize")
def resize(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """An axis whose size stays keeps its ids: y[n, c] is x[n, c] resampled. The number among ``sizes`` counts them."""
    x = a.of(node, 0)
    before, after = a.sizes(node.inputs[0] or node.outputs[0]), a.sizes(node.outputs[0])
    if before is None or after is None:
        raise Unknown("a shape that is not known")
    chosen = node.attributes.get_ints("axes") or range(len(x))
    sizes = a.numbers(node, 3)
    result: list[Axis] = list(x)
    for place, axis in enumerate(number % len(x) for number in chosen):
        ids = x[axis]
        if axis < 2 and not isinstance(ids, Symbol) and before[axis] == after[axis]:
            if sizes:
                a.count(sizes[place], ids)
        elif axis >= 2 or not isinstance(ids, Symbol):
            a.lock((ids,), node, _POSITIONS)
            result[axis] = a.position(node, 0, axis)
    return [tuple(result)]


@rule("DepthToSpace")
def depth_to_space(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """x[n, (b1, b2, c), h, w] -> y[n, c, (h, b1), (w, b2)], or x[n, (c, b1, b2)] in mode CRD: c goes with all blocks."""
    x = a.of(node, 0)
    size = node.attributes.get_int("blocksize", 1)
    if isinstance(x[1], Symbol):
        raise Unknown("a dynamic number of channels")
    blocks = a.locked(size * size, node, "the blocks of a position")
    channels = a.union.new(len(x[1]) // (size * size))
    crd = node.attributes.get_string("mode", "DCR") == "CRD"
    a.product(x[1], (channels, blocks) if crd else (blocks, channels))
    a.lock(x[2:], node, _POSITIONS)
    return [(x[0], channels, a.position(node, 0, 2), a.position(node, 0, 3))]


@rule("SpaceToDepth")
def space_to_depth(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """x[n, c, (h, b1), (w, b2)] -> y[n, (b1, b2, c), h, w]: c goes from all blocks."""
    x = a.of(node, 0)
    size = node.attributes.get_int("blocksize", 1)
    if isinstance(x[1], Symbol):
        raise Unknown("a dynamic number of channels")
    blocks = a.locked(size * size, node, "the blocks of a position")
    a.lock(x[2:], node, _POSITIONS)
    return [(x[0], a.merged((blocks, x[1]), node), a.position(node, 0, 2), a.position(node, 0, 3))]
