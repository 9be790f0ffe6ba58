"""Operators that move, merge, split and repeat axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.axes.analysis import Analysis, Axes, Entry, Unknown
from graphopt.axes.ids import Axis, Symbol

from .table import rule

_Size = int | Symbol


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
    sizes = a.sizes(node.inputs[0] or node.outputs[0]) or ()
    if axes is None and any(isinstance(size, Symbol) for size in sizes):
        raise Unknown("axes of dynamic size")
    gone = {axis for axis, size in enumerate(sizes) if size == 1} if axes is None else {axis % len(x) for axis in axes}
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


def _flat(a: Analysis, node: ir.Node, axes: Axes) -> Axis:
    known = [ids for ids in axes if not isinstance(ids, Symbol)]
    if len(known) == len(axes):
        return a.merged(known, node)
    a.lock([ids for ids in known if len(ids) > 1], node, "it is merged with an axis of dynamic size")
    return a.symbol()


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
    before = _sizes(a, node.inputs[0], len(x))
    after = _sizes(a, node.outputs[0], len(entries))
    copies = not node.attributes.get_int("allowzero", 0)
    for axis, entry in enumerate(entries):
        if entry.number is not None and entry.number > 0:
            after[axis] = entry.number
        elif entry.number == 0 and copies:
            after[axis] = before[axis]
    if 0 in before or 0 in after:
        raise Unknown("an empty tensor")
    y = [ids for block in _blocks(before, after) for ids in _reshaped(a, node, x, after, block)]
    _counted(a, node, x, y, entries)
    return [tuple(y)]


def _sizes(a: Analysis, value: ir.Value | None, rank: int) -> list[_Size]:
    sizes = a.sizes(value) if value is not None else None
    return [*sizes] if sizes is not None and len(sizes) == rank else [a.symbol() for _ in range(rank)]


def _blocks(before: list[_Size], after: list[_Size]) -> list[_Block]:
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
    if i == p and j == q:
        return [*front, *turned[::-1]]
    if _only_unknown(before[i:p], after, range(j, q)):
        return _blocks(before, after)
    return [*front, _Block(range(i, p), range(j, q), exact=False), *turned[::-1]]


def _only_unknown(before: list[_Size], after: list[_Size], rest: range) -> bool:
    """Find out the one size of y that is not known, if all others that it stands against are; it is written into ``after``."""
    unknown = [axis for axis in rest if isinstance(after[axis], Symbol)]
    total = math.prod(size for size in before if isinstance(size, int))
    others = math.prod(size for axis in rest if isinstance(size := after[axis], int))
    if len(unknown) != 1 or any(isinstance(size, Symbol) for size in before) or total % others:
        return False
    after[unknown[0]] = total // others
    return True


def _aligned(before: Sequence[_Size], after: Sequence[_Size]) -> list[_Block]:
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
                    left, i = _times(left, before[i]), i + 1
                elif right < left and j < len(after):
                    right, j = _times(right, after[j]), j + 1
                else:
                    return blocks
        blocks.append(_Block(range(start_i, i), range(start_j, j)))
    return blocks


def _times(size: int, factor: _Size) -> _Size:
    return size * factor if isinstance(factor, int) else factor


def _reshaped(a: Analysis, node: ir.Node, x: Axes, after: Sequence[_Size], block: _Block) -> Sequence[Axis]:
    """Ids of the axes of y in a block."""
    ids = [x[axis] for axis in block.before]
    sizes = [after[axis] for axis in block.after]
    known = [one for one in ids if not isinstance(one, Symbol)]
    if not block.exact or len(known) < len(ids):
        if len(ids) == len(sizes) == 1 and block.exact:
            return ids
        a.lock(known, node, "it is merged with an axis of dynamic size")
        return [
            a.locked(size, node, "it is split from an axis of dynamic size") if isinstance(size, int) else size
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
    parts = [a.union.new(size) for size in sizes if isinstance(size, int)]
    a.product(flat, parts)
    return [*parts]


def _counted(a: Analysis, node: ir.Node, x: Axes, y: Sequence[Axis], entries: Sequence[Entry]) -> None:
    for axis, (ids, entry) in enumerate(zip(y, entries, strict=True)):
        if isinstance(ids, Symbol) or len(ids) == 1 or entry.number == -1:
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
    after = a.sizes(node.outputs[0]) or tuple(a.symbol() for _ in range(rank))
    y: list[Axis] = []
    for axis in range(rank):
        ids = x[axis - ahead] if axis >= ahead else None
        place = axis - (rank - len(entries))
        y.append(_expanded(a, node, ids, entries[place] if place >= 0 else None, after[axis]))
    return [tuple(y)]


def _expanded(a: Analysis, node: ir.Node, ids: Axis | None, entry: Entry | None, size: _Size) -> Axis:
    """One axis: ``ids`` is None where x has fewer axes, ``entry`` where the shape has."""
    if ids is not None and (entry is None or entry.number == 1):
        return ids
    assert entry is not None
    if isinstance(ids, Symbol):
        return a.locked(size, node, "it meets an axis of dynamic size") if isinstance(size, int) else size
    if ids is not None and len(ids) > 1:
        a.count(entry, ids)
        return ids
    a.lock(() if ids is None else (ids,), node, "it is repeated along a longer axis")
    if entry.number is not None:
        size = entry.number
    if isinstance(size, Symbol):
        return size
    repeats = a.union.new(size)
    a.count(entry, repeats)
    return repeats


@rule("Tile")
def tile(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y's axis is (r, i): x's axis i, ``repeats`` times. A channel goes from all copies, or a copy goes whole."""
    x = a.of(node, 0)
    entries = a.numbers(node, 1)
    if entries is None or len(entries) != len(x):
        raise Unknown("repeats that are not known")
    y: list[Axis] = []
    for axis, (ids, entry) in enumerate(zip(x, entries, strict=True)):
        if entry.number == 1:
            y.append(ids)
        elif entry.number is None or isinstance(ids, Symbol):
            a.lock((ids,), node, "it is repeated a dynamic number of times")
            y.append(a.position(node, 0, axis))
        else:
            copies = a.union.new(entry.number)
            a.count(entry, copies)
            y.append(a.merged((copies, ids), node))
    return [tuple(y)]
