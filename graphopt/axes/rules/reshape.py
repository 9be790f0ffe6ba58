"""Operators that move, merge, split and repeat axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.axes.analysis import Analysis, Axes, Entry, Unknown
from graphopt.axes.ids import Ids

from .table import rule

_Dim = int | str
"""A size, or a symbol that is only equal to itself."""


@rule("Transpose")
def transpose(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y's axis i is x's axis perm[i]."""
    x = a.of(node, 0)
    return [tuple(x[axis] for axis in node.attributes.get_ints("perm") or range(len(x))[::-1])]


@rule("Squeeze")
def squeeze(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y is x without its axes of size 1 (those in ``axes``)."""
    x = a.of(node, 0)
    axes = a.constants(node, 1, "axes")
    dims = a.dims(node.inputs[0] or node.outputs[0]) or ()
    if axes is None and any(not isinstance(dim, int) for dim in dims):
        raise Unknown("axes of dynamic size")
    gone = {axis for axis, dim in enumerate(dims) if dim == 1} if axes is None else {axis % len(x) for axis in axes}
    return [tuple(ids for axis, ids in enumerate(x) if axis not in gone)]


@rule("Unsqueeze")
def unsqueeze(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y is x with new axes of size 1, at ``axes`` of y."""
    x = a.of(node, 0)
    axes = a.constants(node, 1, "axes") or []
    rank = len(x) + len(axes)
    new, old = {axis % rank for axis in axes}, iter(x)
    return [tuple(a.union.new(1) if axis in new else next(old) for axis in range(rank))]


@rule("Flatten")
def flatten(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y [m, n]: m is the product of the axes before ``axis``, n of those from it on."""
    x = a.of(node, 0)
    axis = node.attributes.get_int("axis", 1)
    axis += len(x) if axis < 0 else 0
    return [(_flat(a, node, x[:axis]), _flat(a, node, x[axis:]))]


def _flat(a: Analysis, node: ir.Node, axes: Axes) -> Ids | None:
    known = [ids for ids in axes if ids is not None]
    if len(known) == len(axes):
        return a.merged(known, node)
    a.lock([ids for ids in known if len(ids) > 1], node, "it is merged with an axis of dynamic size")
    return None


@dataclass(frozen=True)
class _Block:
    """Axes of x, and the axes of y that hold the same elements."""

    before: range
    after: range
    exact: bool = True


@rule("Reshape")
def reshape(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Axes of x whose product is that of axes of y: one with one is the same; several are the product of what they merge to.

    x [.., a, b, ..] -> y [.., (c, d), ..]:  flat = product(a, b) = product(c, d), and what is kept must be a block in both. The
    numbers in ``shape`` count the ids of y's axes. Between axes of dynamic size that match no other, nothing can be removed.
    """
    x = a.of(node, 0)
    entries = a.numbers(node, 1, "shape")
    if entries is None:
        raise Unknown("a shape that is not known")
    before = _dims(a, node.inputs[0], len(x), "x")
    after = _dims(a, node.outputs[0], len(entries), "y")
    copies = not node.attributes.get_int("allowzero", 0)
    for axis, entry in enumerate(entries):
        if entry.number is not None and entry.number > 0:
            after[axis] = entry.number
        elif entry.number == 0 and copies:
            after[axis] = before[axis]
    if 0 in before or 0 in after:
        raise Unknown("an empty tensor")
    y: list[Ids | None] = [None] * len(after)
    for block in _blocks(before, after):
        for axis, ids in zip(block.after, _reshaped(a, node, x, after, block), strict=True):
            y[axis] = ids
    _counted(a, node, x, y, entries)
    return [tuple(y)]


def _dims(a: Analysis, value: ir.Value | None, rank: int, prefix: str) -> list[_Dim]:
    dims = a.dims(value) if value is not None else None
    if dims is None or len(dims) != rank:
        dims = (None,) * rank
    return [f"{prefix}{axis}" if dim is None else dim for axis, dim in enumerate(dims)]


def _blocks(before: Sequence[_Dim], after: Sequence[_Dim]) -> list[_Block]:
    """The smallest blocks, found from the front as far as sizes are known, then from the back; what is between is not exact."""
    front = _aligned(before, after)
    i, j = (front[-1].before.stop, front[-1].after.stop) if front else (0, 0)
    back = _aligned(before[i:][::-1], after[j:][::-1])
    m, n = len(before), len(after)
    turned = [
        _Block(range(m - block.before.stop, m - block.before.start), range(n - block.after.stop, n - block.after.start))
        for block in back
    ]
    p, q = (turned[-1].before.start, turned[-1].after.start) if turned else (m, n)
    rest = [_Block(range(i, p), range(j, q), exact=False)] if i < p or j < q else []
    return [*front, *rest, *turned[::-1]]


def _aligned(before: Sequence[_Dim], after: Sequence[_Dim]) -> list[_Block]:
    blocks: list[_Block] = []
    i = j = 0
    while i < len(before) or j < len(after):
        start_i, start_j = i, j
        left, right = (before[i] if i < len(before) else 1), (after[j] if j < len(after) else 1)
        if left == right and i < len(before) and j < len(after):
            i, j = i + 1, j + 1
        elif left == 1 and i < len(before):
            i += 1
        elif right == 1 and j < len(after):
            j += 1
        else:
            i, j = i + 1, j + 1
            while left != right:
                if not isinstance(left, int) or not isinstance(right, int):
                    return blocks
                if left < right and i < len(before):
                    factor = before[i]
                    left, i = (left * factor if isinstance(factor, int) else factor), i + 1
                elif right < left and j < len(after):
                    factor = after[j]
                    right, j = (right * factor if isinstance(factor, int) else factor), j + 1
                else:
                    return blocks
        blocks.append(_Block(range(start_i, i), range(start_j, j)))
    return blocks


def _reshaped(a: Analysis, node: ir.Node, x: Axes, after: Sequence[_Dim], block: _Block) -> list[Ids | None]:
    """Ids of the axes of y in a block."""
    ids = [x[axis] for axis in block.before]
    sizes = [after[axis] for axis in block.after]
    known = [one for one in ids if one is not None]
    if not block.exact or len(known) < len(ids):
        if len(ids) == len(sizes) == 1 and block.exact:
            return [None]
        a.lock(known, node, "it is merged with an axis of dynamic size")
        return [
            a.locked(size, node, "it is split from an axis of dynamic size") if isinstance(size, int) else None
            for size in sizes
        ]
    if not sizes:
        return []
    flat = a.merged(known, node)
    wide = [size for size in sizes if isinstance(size, int) and size > 1]
    if len(wide) <= 1:
        return [
            flat if size == math.prod(wide) and size != 1 else flat if len(sizes) == 1 else a.union.new(1) for size in sizes
        ]
    parts = [a.union.new(int(size)) for size in sizes]
    a.product(flat, parts)
    return [*parts]


def _counted(a: Analysis, node: ir.Node, x: Axes, y: Sequence[Ids | None], entries: Sequence[Entry]) -> None:
    for axis, (ids, entry) in enumerate(zip(y, entries, strict=True)):
        if ids is None or len(ids) == 1 or entry.number == -1:
            continue
        if entry.number == 0:
            if x[axis] is not ids:
                a.lock((ids, x[axis]), node, "a size that is copied from another axis")
        else:
            a.count(entry, ids)


@rule("Expand")
def expand(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[.., r, ..] = x[.., 0, ..] where x has size 1: r is new, and may be removed. The others stay; ``shape`` counts both."""
    x = a.of(node, 0)
    entries = a.numbers(node, 1)
    if entries is None:
        raise Unknown("a shape that is not known")
    rank = max(len(x), len(entries))
    ahead = rank - len(x)
    after = a.dims(node.outputs[0]) or (None,) * rank
    y: list[Ids | None] = []
    for axis in range(rank):
        ids = x[axis - ahead] if axis >= ahead else None
        place = axis - (rank - len(entries))
        entry = entries[place] if place >= 0 else None
        size = after[axis]
        if entry is not None and entry.number is not None and entry.number > 1:
            size = entry.number
        if ids is not None and len(ids) > 1:
            if entry is not None and entry.number != 1:
                a.count(entry, ids)
            y.append(ids)
        elif entry is None or (entry.number == 1 and axis >= ahead):
            y.append(ids)
        elif not isinstance(size, int) or (ids is None and axis >= ahead):
            a.lock((ids,), node, "it meets an axis of dynamic size")
            y.append(None)
        else:
            a.lock((ids,), node, "it is repeated along a longer axis")
            repeats = a.union.new(size)
            if size > 1:
                a.count(entry, repeats)
            y.append(repeats)
    return [tuple(y)]


@rule("Tile")
def tile(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y's axis is (r, i): x's axis i, ``repeats`` times. A channel goes from all copies, or a copy goes whole."""
    x = a.of(node, 0)
    entries = a.numbers(node, 1)
    if entries is None or len(entries) != len(x):
        raise Unknown("repeats that are not known")
    y: list[Ids | None] = []
    for axis, (ids, entry) in enumerate(zip(x, entries, strict=True)):
        if entry.number == 1:
            y.append(ids)
        elif entry.number is None or ids is None:
            a.lock((ids,), node, "it is repeated a dynamic number of times")
            y.append(a.position(node, 0, axis))
        else:
            copies = a.union.new(entry.number)
            a.count(entry, copies)
            y.append(a.merged((copies, ids), node))
    return [tuple(y)]
