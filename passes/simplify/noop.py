"""Remove operators that undo, repeat or continue each other. All rules move elements or leave them alone: they are exact.

    Transpose(Transpose(x, p), q)             ->   Transpose(x, [p[i] for i in q]); x if that is in order
    Reshape(Transpose(Reshape(x), p))         ->   Transpose(x, q): the first Reshape merges neighbouring axes, the last one
                                                   takes them apart again
    Slice(Slice(x, a), b), other axes         ->   Slice(x, a and b), if all that reads the inner Slice can do so
    Concat(..., Concat(x, y), ...), same axis ->   Concat(..., x, y, ...), if nothing else reads the inner one
    Concat(Split(x)), same axis and order     ->   x
    Slice(Concat(x, y, ...)), just one part   ->   that part
    Split(Concat(x, y, ...)), just the parts  ->   x, y, ...
    Slices that take all of an axis apart     ->   one Split (``parts.py``)
    ScatterNDs that write all of a tensor     ->   a Concat of what they write (``scatter.py``)
    what only reshapes or transposes          ->   moves past other operators to where it meets its like (``sink.py``)
    Cast(Cast(x, wide), t)                    ->   Cast(x, t), if wide holds all that x has
    Where(true, x, y)                         ->   x, if x has the dimensions of the output; y for false
    x and true, x or false                    ->   x, if it keeps its dimensions
    x * 1, x / 1, x ** 1, x - 0, x + -0.0     ->   x, if it keeps its dimensions; x + 0 stays for floats: -0.0 + 0 is 0
    Resize by 1                               ->   x, for scales that are all 1 or sizes that are those of x
    Resize to computed sizes                  ->   Resize by constant scales, where each size is a whole multiple of x's

A rule fires only where it is known that type and dimensions stay (``symbolic.py``), and not where an operator would have to be
kept for something else that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, site

from .contents import slice_of
from .dims import Dim, product
from .edit import Edit, has_one_place, is_only_for
from .follow import Dims, sliced, symbolic
from .graph import Work, may_end_normalization
from .parts import split_slices
from .scatter import join_windows, read_before
from .sink import SINKING, sink
from .symbolic import INTEGERS

_SMALL = 4096
"""Constants up to so many elements are looked into."""
_FIRST_SLICE_WITH_INPUTS = 10
_TAKING_PARTS = frozenset({"Gather", "Slice"})
_SIZES = 3
"""The input of a Resize that gives sizes."""


def remove_round_trips(work: Work) -> list[Change]:
    """Apply the rules to the main graph and its subgraphs."""
    root = work.roots[0]
    edit = Edit(work, root, symbolic(work, root))
    for node in work.operators(root, _LOOKED_AT):
        if not has_one_place(node):
            continue
        rule = _RULES.get(node.op_type)
        if rule is not None:
            rule(edit, node)
        if node.graph is None or sink(edit, node):
            continue
        if node.op_type in _TAKING_PARTS:
            while read_before(edit, node):
                pass
            if node.op_type == "Slice":
                split_slices(edit, node)
    return edit.changes


def _transpose(edit: Edit, node: ir.Node) -> None:
    first = edit.before(node.inputs[0], "Transpose")
    if first is None or first.inputs[0] is None:
        return
    earlier, second = edit.perm(first), edit.perm(node)
    if earlier is None or second is None:
        return
    together = [earlier[axis] for axis in second]
    if together == sorted(together):
        edit.put(node, first.inputs[0], "removed Transpose", "it undoes the Transpose before it")
    elif is_only_for(first.outputs[0], node):
        new = edit.insert(node, "Transpose", [first.inputs[0]], [ir.AttrInt64s("perm", together)])
        edit.put(node, new, "merged into one Transpose", "they follow one after the other")


def _reshape(edit: Edit, node: ir.Node) -> None:
    moved = edit.before(node.inputs[0], "Transpose")
    merged = None if moved is None else edit.before(moved.inputs[0], "Reshape")
    if moved is None or merged is None or merged.inputs[0] is None or not is_only_for(moved.outputs[0], node):
        return
    source, perm = merged.inputs[0], edit.perm(moved)
    dims, between, wanted = (edit.known.dims(value) for value in (source, merged.outputs[0], node.outputs[0]))
    if dims is None or between is None or wanted is None or perm is None:
        return
    groups = _groups(dims, between)
    if groups is None:
        return
    together = [axis for group in perm for axis in groups[group]]
    if tuple(dims[axis] for axis in together) == wanted:
        new = edit.insert(node, "Transpose", [source], [ir.AttrInt64s("perm", together)])
        edit.put(node, new, "merged into one Transpose", "the axes that a Reshape merges before it are taken apart after it")


def _groups(dims: Dims, merged: Dims) -> list[list[int]] | None:
    """Which neighbouring axes became each axis of ``merged``; None if it is not so simple."""
    groups: list[list[int]] = []
    axis = 0
    for total in merged:
        group: list[int] = []
        while product(dims[i] for i in group) != total or not group:
            if axis == len(dims):
                return None
            group.append(axis)
            axis += 1
        groups.append(group)
    if groups and all(dim == 1 for dim in dims[axis:]):
        groups[-1] += range(axis, len(dims))
        return groups
    return None


_Window = dict[int, tuple[int, int, int]]


def _fixed_window(edit: Edit, node: ir.Node) -> _Window | None:
    """Start, end and step by axis, if all of them are constants."""
    if edit.root.opset < _FIRST_SLICE_WITH_INPUTS or any(constant(v) is None for v in node.inputs[1:] if v is not None):
        return None
    window = slice_of(edit.known, node)
    if window is None:
        return None
    return {a: (s, e, t) for a, (s, e, t) in window.items() if isinstance(s, int) and isinstance(e, int)}


def _slice(edit: Edit, node: ir.Node) -> None:
    if _slice_of_concat(edit, node):
        return
    readers = [use.node for use in node.outputs[0].uses()]
    if not readers or readers[0].op_type != "Slice" or node.outputs[0].is_graph_output() or node.inputs[0] is None:
        return
    window = _fixed_window(edit, node)
    if window is None:
        return
    windows: list[_Window] = []
    for reader in readers:
        other = _fixed_window(edit, reader) if _is_slice_of(edit, reader, node) else None
        if other is None or other.keys() & window.keys():
            return
        windows.append(other)
    for reader, other in zip(readers, windows, strict=True):
        together = dict(sorted((window | other).items()))
        columns = [*zip(*together.values(), strict=True)]
        operands = [edit.vector(reader, column) for column in (columns[0], columns[1], [*together], columns[2])]
        new = edit.insert(reader, "Slice", [node.inputs[0], *operands], [])
        edit.put(reader, new, "merged into one Slice", "they take parts along different axes")


def _is_slice_of(edit: Edit, reader: ir.Node, node: ir.Node) -> bool:
    data = reader.op_type == "Slice" and edit.work.is_operator(reader) and reader.inputs[0] is node.outputs[0]
    return data and reader.graph is node.graph and has_one_place(reader)


def _parts(edit: Edit, node: ir.Node) -> tuple[int, list[Dim], Sequence[ir.Value]] | None:
    """The axis of a Concat, where each part of it begins (and the last one ends), and the parts."""
    dims = edit.known.dims(node.outputs[0])
    if not dims:
        return None
    axis = node.attributes.get_int("axis", 0) % len(dims)
    begins: list[Dim] = [0]
    for value in node.inputs:
        part = edit.known.dims(value)
        if part is None:
            return None
        begins.append(part[axis] + begins[-1])
    return axis, begins, [value for value in node.inputs if value is not None]


def _slice_of_concat(edit: Edit, node: ir.Node) -> bool:
    whole = edit.before(node.inputs[0], "Concat")
    parts = None if whole is None else _parts(edit, whole)
    window = None if parts is None else slice_of(edit.known, node)
    if window is None or parts is None or len(window) != 1:
        return False
    axis, begins, values = parts
    start, end, step = window.get(axis, (0, 0, 0))
    if step != 1 or not isinstance(start, int) or start < 0:
        return False
    length = sliced(begins[-1], start, end, step)
    for begin, after, value in zip(begins, begins[1:], values, strict=False):
        if begin == start and length is not None and after - begin == length:
            return edit.put(node, value, "removed Slice", "it takes out what the Concat before it put in")
    return False


def _split(edit: Edit, node: ir.Node) -> None:
    whole = edit.before(node.inputs[0], "Concat")
    parts = None if whole is None else _parts(edit, whole)
    dims = edit.known.dims(node.inputs[0])
    if parts is None or not dims or node.attributes.get_int("axis", 0) % len(dims) != parts[0]:
        return
    _, begins, values = parts
    lengths = [b - a for a, b in pairwise(begins)]
    given = [edit.known.dims(output) for output in node.outputs]
    stated = "split" in node.attributes or any(node.inputs[1:])  # else all are equally long, however much that is
    evenly = not stated and len(given) == len(lengths) == lengths.count(lengths[0])
    if not evenly and [None if shape is None else shape[parts[0]] for shape in given] != lengths:
        return
    if all(not output.is_graph_output() for output in node.outputs):
        for output, value in zip(node.outputs[1:], values[1:], strict=True):
            output.replace_all_uses_with(value)
        edit.put(node, values[0], "removed Split", "it takes out what the Concat before it put in")


def _concat(edit: Edit, node: ir.Node) -> None:
    dims = edit.known.dims(node.outputs[0])
    if not dims:
        return
    axis = node.attributes.get_int("axis", 0) % len(dims)
    split = edit.before(node.inputs[0], "Split")
    if split is not None and [*node.inputs] == [*split.outputs] and split.inputs[0] is not None:
        if split.attributes.get_int("axis", 0) % len(dims) == axis:
            edit.put(node, split.inputs[0], "removed Concat", "it puts together what the Split before it took apart")
        return
    inputs: list[ir.Value] = []
    for value in node.inputs:
        inner = edit.before(value, "Concat")
        mergeable = (
            inner is not None
            and is_only_for(value, node)
            and inner.graph is node.graph
            and inner.attributes.get_int("axis", 0) % len(dims) == axis
            and node.inputs.count(value) == 1
        )
        inputs += [v for v in (inner.inputs if inner is not None and mergeable else (value,)) if v is not None]
    if len(inputs) > len(node.inputs):
        new = edit.insert(node, "Concat", inputs, [ir.AttrInt64("axis", axis)])
        edit.put(node, new, "merged into one Concat", "they put together along the same axis")


_HOLDS = {
    ir.DataType.FLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.BFLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.FLOAT: {ir.DataType.DOUBLE},
    ir.DataType.INT8: {ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64},
    ir.DataType.UINT8: {ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64},
    ir.DataType.INT16: {ir.DataType.INT32, ir.DataType.INT64},
    ir.DataType.INT32: {ir.DataType.INT64},
    ir.DataType.BOOL: {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.UINT8},
}
"""The types that hold every value of a type."""


def _cast(edit: Edit, node: ir.Node) -> None:
    first = edit.before(node.inputs[0], "Cast")
    if first is None or first.inputs[0] is None:
        return
    source, to = first.inputs[0], edit.work.dtype(node.outputs[0])
    dtype, wide = edit.work.dtype(source), edit.work.dtype(first.outputs[0])
    if dtype is None or to is None or wide is None or wide not in _HOLDS.get(dtype, ()):
        return
    if to == dtype:
        edit.put(node, source, "removed Cast", f"its input was {dtype.name.lower()} before")
    elif is_only_for(first.outputs[0], node) and to in _HOLDS[dtype]:
        new = edit.insert(node, "Cast", [source], [ir.AttrInt64("to", to.value)])
        edit.put(node, new, "merged into one Cast", f"{wide.name.lower()} holds every {dtype.name.lower()}")


def _where(edit: Edit, node: ir.Node) -> None:
    condition = edit.known.fixed(node.inputs[0])
    if not condition or len(set(map(bool, condition))) != 1:
        return
    chosen = node.inputs[1 if condition[0] else 2]
    if chosen is not None and edit.keeps(node, chosen):
        edit.put(node, chosen, "removed Where", "its condition is constant")


def _neutral(index: int, number: float) -> Callable[[Edit, ir.Node], None]:
    """A rule for an operator that changes nothing when the operand ``index`` is ``number`` everywhere."""

    def rule(edit: Edit, node: ir.Node) -> None:
        for position in (0, 1) if index < 0 else (index,):
            value, other = node.inputs[position], node.inputs[1 - position]
            tensor = constant(value)
            if tensor is None or other is None or tensor.size > _SMALL:
                continue
            if value is not None and edit.work.excluded(value.name or ""):
                continue
            dtype = tensor.dtype
            whole = dtype in INTEGERS or dtype == ir.DataType.BOOL
            if not whole and not dtype.is_floating_point():
                continue
            array = tensor.numpy()
            same = (
                array.size
                and array.flat[0] == number
                and np.all(array == number)
                and (number or whole or np.all(np.signbit(array) == np.signbit(number)))
            )
            if same and (whole or not may_end_normalization(tensor, other)) and edit.keeps(node, other):
                edit.put(node, other, f"removed {node.op_type}", f"one of its operands is {number:g}")
                return

    return rule


def _resize(edit: Edit, node: ir.Node) -> None:
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    source = node.inputs[0]
    plain = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
    by_size = len(node.inputs) > _SIZES and node.inputs[_SIZES] is not None
    by_one = scales is not None and scales.size > 0 and bool(np.all(scales.numpy() == 1))
    if source is not None and plain and (by_size or by_one) and edit.keeps(node, source):
        edit.put(node, source, "removed Resize", "it keeps every size")
    elif by_size and plain and constant(node.inputs[_SIZES]) is None:
        _resize_by_constants(edit, node)


def _resize_by_constants(edit: Edit, node: ir.Node) -> None:
    """Give a Resize scales in place of computed sizes; runtimes know then what it does to each axis."""
    dims, sizes = edit.known.dims(node.inputs[0]), edit.known.dims(node.outputs[0])
    if dims is None or sizes is None or "axes" in node.attributes:
        return
    scales: list[float] = []
    for dim, size in zip(dims, sizes, strict=True):
        if dim == size:
            scales.append(1.0)
        elif isinstance(dim, int) and isinstance(size, int) and dim > 0 and size % dim == 0:
            scales.append(size / dim)
        else:
            return
    node.replace_input_with(2, edit.constant(node, np.array(scales, np.float32)))
    node.resize_inputs(_SIZES)
    edit.changes.append(
        Change(site(node), "gave it constant scales", f"its sizes are always {scales} times those of its input")
    )


_RULES: dict[str, Callable[[Edit, ir.Node], object]] = {
    "Add": _neutral(-1, -0.0),
    "And": _neutral(-1, True),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _neutral(1, 1.0),
    "Mul": _neutral(-1, 1.0),
    "Or": _neutral(-1, False),
    "Pow": _neutral(1, 1.0),
    "Reshape": _reshape,
    "Resize": _resize,
    "ScatterND": join_windows,
    "Slice": _slice,
    "Split": _split,
    "Sub": _neutral(1, 0.0),
    "Transpose": _transpose,
    "Where": _where,
}
_LOOKED_AT = _RULES.keys() | SINKING
