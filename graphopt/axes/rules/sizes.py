"""Constants, and operators whose inputs or outputs are sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.axes.analysis import Analysis, Axes, Unknown
from graphopt.axes.ids import Axis
from graphopt.graphs import constant

from .table import rule


@rule("Constant")
def constants(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """A weight like an initializer: fresh ids."""
    return [a.axes_of(node.outputs[0])]


@rule("Shape")
def shape(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """The sizes of x that anybody reads are part of the computation: these axes stay as they are."""
    x = a.of(node, 0)
    start, end, _ = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(x))).indices(len(x))
    a.lock(_read(node.outputs[0], list(x[start:end])), node, "its size is computed with")
    return [None]


def _read(value: ir.Value, axes: list[Axis]) -> list[Axis]:
    """The axes whose sizes are taken out of a list of them, one by one; all, if it is used otherwise."""
    read: list[Axis] = []
    for node, index in value.uses():
        indices = constant(node.inputs[1]) if node.op_type == "Gather" and index == 0 else None
        if indices is None:
            return axes
        read += [axes[int(place)] for place in np.atleast_1d(indices.numpy()).reshape(-1)]
    return axes if value.is_graph_output() else read


@rule("ConstantOfShape")
def constant_of_shape(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y [n1, n2, ...] of one number: fresh ids; the list of sizes counts them."""
    entries = a.numbers(node, 0)
    after = a.sizes(node.outputs[0])
    if entries is None:
        raise Unknown("a shape that is not known")
    result: list[Axis] = []
    for axis, entry in enumerate(entries):
        size = entry.number if entry.number is not None else after[axis] if after is not None else None
        if not isinstance(size, int):
            result.append(size or a.symbol())
            continue
        ids = a.union.new(size)
        a.count(entry, ids)
        result.append(ids)
    return [tuple(result)]
