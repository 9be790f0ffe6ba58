"""Writes into a window of a tensor: what reads beside it reads what was there before, and windows that fill it are a Concat.

A ScatterND with constant indices that name, in order, all of x but for one axis, and there s to e - 1, writes x[s:e] = u. Then

    Slice(y; b, c), Gather(y; i) of y = x[s:e] = u    ->   the same of x, if b to c, or i, lies outside of s to e
    y = (...((x[0:a] = u)[a:b] = v)...)[z:n] = w      ->   Concat(u, v, ..., w), in whatever order the windows are written
    y = x[0:n] = u                                    ->   u

all along one axis whose size n is fixed, for u, v, w that have the dimensions of their windows. It is how caches of streaming
models are updated. ScatterND with a reduction stays, and so does one whose windows overlap or leave something out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, site

from .contents import slice_of
from .edit import Edit, Window

_MOST_INDICES = 1 << 17
_MOST_WINDOWS = 64


def join_windows(edit: Edit, node: ir.Node) -> bool:
    """Let a Concat of what is written take the place of ScatterNDs that write all of a tensor."""
    axis: int | None = None
    parts: list[tuple[int, int, ir.Value | None]] = []
    current: ir.Node | None = node
    dims = edit.known.dims(node.outputs[0])
    while current is not None and dims is not None and len(parts) < _MOST_WINDOWS:
        window = _window(edit, current)
        if window is None or (axis is not None and window[0] != axis):
            break
        axis, begin, end = window
        parts.append((begin, end, current.inputs[2]))
        ordered = sorted(parts, key=lambda part: part[:2])
        bounds = [begin for begin, _, _ in ordered]
        if bounds[0] == 0 and ordered[-1][1] == dims[axis] and all(a[1] == b[0] for a, b in pairwise(ordered)):
            return _join(edit, node, axis, [value for _, _, value in ordered if value is not None])
        current = edit.before(current.inputs[0], "ScatterND")
    return False


def _join(edit: Edit, node: ir.Node, axis: int, parts: Sequence[ir.Value]) -> bool:
    if len(parts) == 1:
        return edit.put(node, parts[0], "took what it writes", "it writes everything")
    new = edit.insert(node, "Concat", parts, [ir.AttrInt64("axis", axis)])
    return edit.put(node, new, "put together what is written", "one after the other everything is written")


def read_before(edit: Edit, node: ir.Node) -> bool:
    """Let a Slice or Gather that reads beside what a ScatterND writes read what was there before."""
    written = edit.before(node.inputs[0], "ScatterND")
    window = None if written is None else _window(edit, written)
    reads = None if window is None else _reads(edit, node, window[0])
    if written is None or window is None or reads is None or (reads.start < window[2] and window[1] < reads.stop):
        return False
    node.replace_input_with(0, written.inputs[0])
    edit.changes.append(Change(site(node), "reads what was there before", f"{site(written)} writes elsewhere"))
    return True


def _reads(edit: Edit, node: ir.Node, axis: int) -> range | None:
    """What a Slice, or a Gather of one index, reads along an axis, or a little more."""
    dims = edit.known.dims(node.inputs[0])
    length = None if dims is None else dims[axis]
    if dims is None or not isinstance(length, int):
        return None
    if node.op_type == "Gather":
        indices = edit.known.fixed(node.inputs[1])
        if node.attributes.get_int("axis", 0) % len(dims) != axis or not indices:
            return None
        taken = [index % length for index in indices]
        return range(min(taken), max(taken) + 1)
    start, end, step = (slice_of(edit.known, node) or {}).get(axis, (None, None, 0))
    if not isinstance(start, int) or not isinstance(end, int) or step <= 0:
        return None
    found = range(length)[start:end]
    return found if found else None


def _window(edit: Edit, node: ir.Node) -> Window | None:
    """What a ScatterND writes, if it is a window along one axis with the dimensions of its updates."""
    if node not in edit.windows:
        edit.windows[node] = _written(edit, node)
    return edit.windows[node]


def _written(edit: Edit, node: ir.Node) -> Window | None:
    dims, updates = edit.known.dims(node.outputs[0]), edit.known.dims(node.inputs[2])
    tensor = constant(node.inputs[1])
    if tensor is None or dims is None or updates is None or not 0 < tensor.size <= _MOST_INDICES:
        return None
    if node.attributes.get_string("reduction", "none") != "none" or any(not isinstance(dim, int) for dim in dims):
        return None
    sizes = [dim for dim in dims if isinstance(dim, int)]
    indices = tensor.numpy().reshape(-1, tensor.shape.numpy()[-1])  # [writes, axes]
    count = indices.shape[1]
    first, last = ([index % size for index, size in zip(row, sizes, strict=False)] for row in indices[[0, -1]].tolist())
    extents = [b + 1 - a for a, b in zip(first, last, strict=True)]
    part = [axis for axis in range(count) if extents[axis] != sizes[axis]]
    if len(part) > 1 or min(extents) < 1 or updates != (*extents, *sizes[count:]) or len(indices) != np.prod(extents):
        return None
    wanted = np.indices(extents).reshape(count, -1).T + first
    others = indices != wanted
    if others.any() and np.any(others & (indices != wanted - sizes[:count])):
        return None
    axis = part[0] if part else 0
    return axis, first[axis], last[axis] + 1
