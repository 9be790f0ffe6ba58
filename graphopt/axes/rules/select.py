"""Operators that take a part of an axis, or put parts together: ids are sliced and concatenated like the values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.axes.analysis import Analysis, Axes, Entry, Kept, Unknown
from graphopt.axes.ids import Axis, Ids, Symbol
from graphopt.graphs import constant

from .table import rule

_DYNAMIC = "a part of it is taken at a place that is not constant"


@rule("Concat")
def concat(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y = [x1, x2, ...] along ``axis``: its ids are theirs, one after the other; the other axes are the same."""
    operands = [a.of(node, index) for index in range(len(node.inputs))]
    rank = len(operands[0])
    along = node.attributes.get_int("axis", 1) % rank
    result: list[Axis] = []
    for axis in range(rank):
        parts = [operand[axis] for operand in operands]
        known = [part for part in parts if not isinstance(part, Symbol)]
        if axis != along:
            one = parts[0]
            for other in parts[1:]:
                one = a.same(one, other, node)
            result.append(one)
        elif len(known) == len(parts):
            result.append(np.concatenate(known) if len(known) > 1 else known[0])
        else:
            a.lock(known, node, "it is joined with an axis of dynamic size")
            result.append(a.symbol())
    return [tuple(result)]


@rule("Split")
def split(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y1, y2, ... are x's parts along ``axis``, one after the other, and so are their ids; ``split`` counts them."""
    x = a.of(node, 0)
    axis = node.attributes.get_int("axis", 0) % len(x)
    ids, parts = x[axis], len(node.outputs)
    if isinstance(ids, Symbol):
        raise Unknown("parts of an axis of dynamic size")
    sizes = a.constants(node, 1, "split")
    if sizes is None:
        each = -(-len(ids) // parts)
        sizes = [min(each, len(ids) - each * place) for place in range(parts)]
    pieces = np.split(ids, np.cumsum(sizes)[:-1])
    where = 1 if a.opset >= 13 else "split"
    a.edit(node, where, lambda kept: np.array([int(kept(piece).sum()) for piece in pieces], np.int64))
    return [(*x[:axis], piece, *x[axis + 1 :]) for piece in pieces]


@rule("Slice")
def slice_(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y = x[.., start:end, ..], and so are its ids; ``starts`` and ``ends`` count the ids before them.

    A step of -1 over a whole axis reverses it; with other steps, or places that are computed, the axis cannot be removed.
    """
    x = a.of(node, 0)
    starts, ends = a.numbers(node, 1, "starts"), a.numbers(node, 2, "ends")
    if starts is None or ends is None:
        raise Unknown("a slice without bounds")
    axes = a.constants(node, 3, "axes") or list(range(len(starts)))
    steps = a.constants(node, 4) or [1] * len(starts)
    y: list[Axis] = list(x)
    for start, end, axis, step in zip(starts, ends, (number % len(x) for number in axes), steps, strict=True):
        y[axis] = _cut(a, node, x[axis], (start, end, step), axis)
    return [tuple(y)]


def _cut(a: Analysis, node: ir.Node, ids: Axis, bounds: tuple[Entry, Entry, int], axis: int) -> Axis:
    start, end, step = bounds
    if isinstance(ids, Symbol):
        return a.position(node, 0, axis)
    if start.number is None or end.number is None or step not in {1, -1}:
        a.lock((ids,), node, _DYNAMIC if step in {1, -1} else "every so many of these are taken")
        return a.position(node, 0, axis)
    first, last, _ = slice(start.number, end.number, step).indices(len(ids))
    if step == -1:
        if len(ids[first:None:step]) != len(ids) or last != -1:
            a.lock((ids,), node, "a part of it is taken in reverse")
            return a.position(node, 0, axis)
        return ids[::-1]
    if first > 0:
        a.count(start, ids[:first])
    if last < len(ids):
        a.count(end, ids[:last])
    return ids[first:last]


@rule("Gather")
def gather(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y = x[.., indices, ..] along ``axis``, and so are its ids when the indices are constant; these are counted anew.

    With computed indices, as of an embedding, the axis cannot be removed, but the others can.
    """
    x, places = a.of(node, 0), a.of(node, 1)
    axis = node.attributes.get_int("axis", 0) % len(x)
    ids, tensor = x[axis], constant(node.inputs[1])
    for other in range(len(x)):
        if other != axis:
            a.gives(node, 0, other)
    if isinstance(ids, Symbol) or tensor is None or len(places) > 1:
        a.lock((ids,), node, _DYNAMIC)
        return [(*x[:axis], *places, *x[axis + 1 :])]
    indices = tensor.numpy().astype(np.int64) % len(ids)
    taken = ids[indices]
    if taken.ndim == 0:
        a.lock((taken,), node, "it is taken out by itself")
        a.edit(node, 1, lambda kept: np.array(int(kept(ids[: int(indices)]).sum()), np.int64))
        return [(*x[:axis], *x[axis + 1 :])]
    a.edit(node, 1, lambda kept: _renumbered(kept, ids, indices))
    return [(*x[:axis], taken, *x[axis + 1 :])]


def _renumbered(kept: Kept, ids: Ids, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    stay = kept(ids)
    return (np.cumsum(stay) - 1)[indices[stay[indices]]]


@rule("Pad")
def pad(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y = [zeros, x, zeros] along each axis: the padding has fresh ids, and ``pads`` counts them.

    Padding that repeats x (the modes but ``constant``), crops it or is computed leaves the axis as it must be.
    """
    x = a.of(node, 0)
    pads = a.numbers(node, 1, "pads")
    axes = a.constants(node, 3) or list(range(len(x)))
    if pads is None or len(pads) != 2 * len(axes):
        raise Unknown("padding that is not known")
    blank = node.attributes.get_string("mode", "constant") == "constant"
    y: list[Axis] = list(x)
    for place, axis in enumerate(number % len(x) for number in axes):
        begin, end = pads[place], pads[len(axes) + place]
        ids = x[axis]
        if begin.number == end.number == 0:
            continue
        if (
            isinstance(ids, Symbol)
            or not blank
            or begin.number is None
            or end.number is None
            or min(begin.number, end.number) < 0
        ):
            a.lock((ids,), node, "it is padded with itself, cropped, or padded by a computed amount")
            y[axis] = a.position(node, 0, axis)
            continue
        before, after = a.union.new(begin.number), a.union.new(end.number)
        for entry, fresh in ((begin, before), (end, after)):
            if len(fresh):
                a.count(entry, fresh)
        y[axis] = np.concatenate([before, ids, after])
    return [tuple(y)]


@rule("Trilu")
def triangle(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y is x where i <= j on the last two axes: which elements are kept depends on positions."""
    x = a.of(node, 0)
    a.lock(x[-2:], node, "its elements are kept by their position")
    return [x]
