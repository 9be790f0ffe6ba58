"""Operators that move data, or that a provider takes with other shapes only.

    Pad          reflect and edge: slices and copies of the rim, one behind the other; constant: with a block of the constant
    Flatten, Squeeze, Unsqueeze     Reshape, where the sizes are fixed
    Split        one Slice for each part
    Gather       of one place, or of places that follow each other: Slice (and Reshape); of int64 places: of int32 ones
    Transpose    Reshape, Transpose, Reshape with axes that stay side by side merged: 5-D to 4-D
    Softmax      over another axis than the last: Transpose, Softmax, Transpose
    Conv, pools  1-D as 2-D of height 1
    Gemm         Transpose, MatMul, Mul, Add
    ReduceMean over height and width  <->  GlobalAveragePool

All are the same arithmetic on the same numbers, but for the means and for Gemm, whose sums may be taken in another order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .place import Place, Refused

_RIM = 16  # slices of one row each; a wider one would be many


def pad(place: Place) -> None:
    """Pad by Slice and Concat, one axis after the other."""
    sizes = place.sizes()
    rank = len(sizes)
    amounts = place.integers("pads", 1)
    axes = place.integers("axes", 3) or [*range(rank)]
    mode = place.node.attributes.get_string("mode", "constant")
    if amounts is None or min(amounts, default=0) < 0:
        raise Refused("it pads by a negative amount")
    fill = place.array(2) if place.opset >= 11 else np.asarray(place.node.attributes.get_float("value", 0.0))
    value = place.x
    for index, given in enumerate(axes):
        axis, before, after = given % rank, amounts[index], amounts[index + len(axes)]
        if not before and not after:
            continue
        if mode == "constant":
            blocks = [np.full([*sizes[:axis], n, *sizes[axis + 1 :]], 0 if fill is None else fill) for n in (before, after)]
            first, last = ([place.constant(block.astype(place.dtype()))] if block.size else [] for block in blocks)
        else:
            first, last = _rim(place, value, axis, sizes[axis], (before, after), mode)
        value = place.concat([*first, value, *last], axis)
        sizes[axis] += before + after
    if value is place.x:
        raise Refused("it pads nothing")
    place.put(place.only_output(), value)


def _rim(
    place: Place, value: ir.Value, axis: int, size: int, amounts: tuple[int, int], mode: str
) -> tuple[list[ir.Value], list[ir.Value]]:
    before, after = amounts
    if mode not in {"reflect", "edge"}:
        raise Refused(f"it pads by {mode}")
    if before + after > _RIM or (mode == "reflect" and max(before, after) >= size):
        raise Refused("it pads too much to be written with slices")
    if mode == "edge":
        first = place.slice(value, axis, 0, 1) if before else None
        last = place.slice(value, axis, size - 1, size) if after else None
        return [each for each in [first] * before if each is not None], [each for each in [last] * after if each is not None]
    rows = [*range(before, 0, -1)], [*range(size - 2, size - 2 - after, -1)]
    left, right = ([place.slice(value, axis, row, row + 1) for row in side] for side in rows)
    return left, right


def reshape(place: Place) -> None:
    """Flatten, Squeeze and Unsqueeze by Reshape to the sizes that they give."""
    output = place.only_output()
    place.put(output, place.reshape(place.x, place.sizes(output)))


def split(place: Place) -> None:
    """Split by Slice."""
    axis = place.node.attributes.get_int("axis", 0)
    rank, start = place.rank(), 0
    parts = []
    for output in place.node.outputs:
        size = place.sizes(output)[axis]
        parts.append((output, start, start + size))
        start += size
    for output, begin, end in parts:
        if output.uses() or output.is_graph_output():
            place.put(output, place.slice(place.x, axis % rank, begin, end))


def gather_by_slice(place: Place) -> None:
    """Gather of constant places that follow each other."""
    indices = place.array(1)
    assert indices is not None
    axis = place.node.attributes.get_int("axis", 0) % place.rank()
    size = place.sizes()[axis]
    places = [int(index) % size for index in indices.reshape(-1)]
    if not places or places != [*range(places[0], places[0] + len(places))] or indices.ndim > 1:
        raise Refused("it gathers what does not lie side by side")
    output = place.only_output()
    wanted = place.sizes(output)
    part = place.slice(place.x, axis, places[0], places[-1] + 1)
    place.put(output, part if indices.ndim == 1 else place.reshape(part, wanted))


def gather_int32(place: Place) -> None:
    """Gather of int64 places by int32 ones."""
    indices = place.given(1)
    if place.dtype(indices) != np.int64 or place.sizes()[place.node.attributes.get_int("axis", 0)] > np.iinfo(np.int32).max:
        raise Refused("its places are not int64, or too many")
    assert indices is not None
    casts = [use.node for use in indices.uses() if use.node.op_type == "Cast" and use.node.graph is place.node.graph]
    made = (each.outputs[0] for each in casts if each.attributes.get_int("to", 0) == int(ir.DataType.INT32))
    cast = next(made, None) or place.add("Cast", indices, to=int(ir.DataType.INT32))
    place.put(place.only_output(), place.add("Gather", place.x, cast, axis=place.node.attributes.get_int("axis", 0)))


def transpose_merged(place: Place) -> None:
    """Transpose of fewer dimensions, between two Reshapes that hide the many."""
    before = place.x.producer()
    output = place.only_output()
    readers = [use.node for use in output.uses()]
    if before is None or before.op_type != "Reshape" or output.is_graph_output():
        raise Refused("no Reshape comes before it")
    if not readers or any(reader.op_type != "Reshape" or reader.inputs[0] is not output for reader in readers):
        raise Refused("something else than Reshape reads it")
    if any(reader.graph is not place.node.graph for reader in readers):
        raise Refused("a subgraph reads it")
    source = before.inputs[0]
    assert source is not None
    sizes = place.sizes()
    order = [int(axis) for axis in place.node.attributes.get_ints("perm", [*range(len(sizes))][::-1])]
    sizes, order = _without_ones(sizes, order)
    groups = _side_by_side(order)
    if not groups or len(groups) == len(place.sizes()):
        raise Refused("no axes stay side by side")
    results = [(reader, place.sizes(reader.outputs[0])) for reader in readers]
    starts = sorted(group[0] for group in groups)
    merged = [math.prod(sizes[axis] for axis in next(group for group in groups if group[0] == start)) for start in starts]
    small = place.add("Transpose", place.reshape(source, merged), perm=[starts.index(group[0]) for group in groups])
    for reader, wanted in results:
        old = reader.outputs[0]
        place.put(old, place.reshape(small, wanted))
    place.finished += readers


def _without_ones(sizes: Sequence[int], order: Sequence[int]) -> tuple[list[int], list[int]]:
    """The sizes and the order of the axes that hold more than one number."""
    kept = [axis for axis, size in enumerate(sizes) if size != 1]
    return [sizes[axis] for axis in kept], [kept.index(axis) for axis in order if axis in kept]


def _side_by_side(order: Sequence[int]) -> list[list[int]]:
    """The axes in their new order, those that follow each other before and after in one list."""
    groups: list[list[int]] = []
    for axis in order:
        if groups and groups[-1][-1] + 1 == axis:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def softmax_last(place: Place) -> None:
    """Softmax over the last axis of the transposed tensor."""
    rank = place.rank()
    axis = place.node.attributes.get_int("axis", -1 if place.opset >= 13 else 1) % rank
    if place.opset < 13:
        raise Refused("before version 13, Softmax is over all axes from one on")
    order = [*range(rank)]
    order[axis], order[-1] = order[-1], order[axis]
    turned = place.add("Softmax", place.add("Transpose", place.x, perm=order), axis=-1)
    place.put(place.only_output(), place.add("Transpose", turned, perm=order))


def window_2d(place: Place) -> None:
    """Conv, MaxPool and AveragePool of one spatial axis as of two, the first of size 1."""
    node = place.node
    sizes = place.sizes()
    output = place.only_output()
    wanted = place.sizes(output)
    if len(sizes) != 3:
        raise Refused("it has other than one spatial axis")
    attributes: dict[str, object] = {}
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            raise Refused("one of its attributes is a parameter of a function")
        value: object = attribute.value
        if attribute.type == ir.AttributeType.INTS:
            ints = [int(each) for each in attribute.as_ints()]
            value = [0, ints[0], 0, ints[1]] if name == "pads" else [1, *ints]
        attributes[name] = value
    wide = [place.reshape(place.x, [*sizes[:2], 1, sizes[2]])]
    if node.op_type == "Conv":
        weight = place.array(1)
        assert weight is not None
        wide += [place.constant(weight[:, :, None]), *([bias] if (bias := place.given(2)) is not None else [])]
    place.put(output, place.reshape(place.add(node.op_type, *wide, **attributes), wanted))


def gemm(place: Place) -> None:
    """Gemm by MatMul."""
    attributes = place.node.attributes
    a, b, c = place.x, place.given(1), place.given(2)
    assert b is not None
    alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    a = place.add("Transpose", a, perm=[1, 0]) if attributes.get_int("transA", 0) else a
    if attributes.get_int("transB", 0):
        try:
            array = place.array(1)
            assert array is not None
            b = place.constant(np.ascontiguousarray(array.T))
        except Refused:
            b = place.add("Transpose", b, perm=[1, 0])
    y = place.add("MatMul", a, b)
    y = y if alpha == 1 else place.add("Mul", y, alpha)
    if c is not None:
        y = place.add("Add", y, c if beta == 1 else place.add("Mul", c, beta))
    place.put(place.only_output(), y)


def mean_by_pool(place: Place) -> None:
    """ReduceMean over height and width by GlobalAveragePool."""
    axes = place.integers("axes", 1)
    if place.rank() != 4 or axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
        raise Refused("it is not over height and width")
    pooled = place.add("GlobalAveragePool", place.x)
    if not place.node.attributes.get_int("keepdims", 1):
        pooled = place.reshape(pooled, [0, -1])
    place.put(place.only_output(), pooled)


def pool_by_mean(place: Place) -> None:
    """GlobalAveragePool by ReduceMean."""
    place.put(place.only_output(), place.mean(place.x, range(2, place.rank())))
