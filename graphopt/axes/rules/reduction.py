"""Reductions drop an axis. A sum only loses what was removed; a mean, a maximum or a rank is of all that were there."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.axes.analysis import Analysis, Axes, Unknown
from graphopt.axes.ids import Axis

from .table import rule


@rule(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"
)
@rule("ReduceSumSquare")
def reduce(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y = the reduction over ``axes`` (all, unless ``noop_with_empty_axes``). Only ReduceSum's can be removed."""
    x = a.of(node, 0)
    axes = a.constants(node, 1, "axes")
    if not axes:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            return [x]
        axes = list(range(len(x)))
    chosen = {axis % len(x) for axis in axes} if x else set()
    return [_dropped(a, node, x, chosen, exact=node.op_type == "ReduceSum")]


@rule("ArgMax", "ArgMin")
def arg_max(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y = the position of the largest along ``axis`` (0): positions would move."""
    x = a.of(node, 0)
    return [_dropped(a, node, x, {node.attributes.get_int("axis", 0) % len(x)}, exact=False)]


def _dropped(a: Analysis, node: ir.Node, x: Axes, axes: set[int], *, exact: bool) -> Axes:
    for axis in axes:
        if exact:
            a.summed(node, 0, axis)
        else:
            a.lock((x[axis],), node, "it is taken over all of these")
    if not node.attributes.get_int("keepdims", 1):
        return tuple(ids for axis, ids in enumerate(x) if axis not in axes)
    return tuple(a.locked(1, node, "a reduced axis") if axis in axes else ids for axis, ids in enumerate(x))


@rule("TopK")
def top_k(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """The k largest along ``axis`` (-1): which they are depends on all; the other axes stay."""
    x = a.of(node, 0)
    axis = node.attributes.get_int("axis", -1) % len(x)
    a.lock((x[axis],), node, "it is taken over all of these")
    result: list[Axis] = list(x)
    result[axis] = a.position(node, 0, axis)
    return [tuple(result), tuple(result)]


@rule("CumSum")
def cumulative(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[.., i] = sum of x[.., j] for j <= i along a constant axis: these cannot be removed."""
    x = a.of(node, 0)
    axis = a.constants(node, 1)
    if not axis:
        raise Unknown("an axis that is computed")
    a.lock((x[axis[0]],), node, "it is taken over all of these")
    return [x]
