"""Merge what limits values from below and above.

    Relu(Relu(x))                    ->   Relu(x)
    Clip(Relu(x), a, b)              ->   Clip(x, max(a, 0), b)
    Relu(Clip(x, a, b))              ->   Clip(x, max(a, 0), max(b, 0))
    Clip(Clip(x, a, b), c, d)        ->   Clip(x, max(a, c), min(max(b, c), d))
    Min(Max(x, a), b), a and b finite numbers   ->   Clip(x, a, b)

Clip is min(max(x, a), b), also where a > b. All of them hand on NaN. A Clip without a bound has the largest finite number
for one, so it turns infinity into that number: Max(x, a) alone is no Clip, and a bound that is missing on both sides stays
missing. Conditions: nothing else reads the inner value; all bounds are constants that no caller can override, and no NaN.
Before opset 11 bounds are attributes, which runtimes refuse for a > b: there only Relus merge.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, site

from .graph import FLOATS, Work, number, only_use

_BOUNDS_ARE_INPUTS = 11
_Bounds = tuple[float | None, float | None]


def merge_limits(work: Work, node: ir.Node) -> Change | None:
    """Merge a Relu, Clip or Min with the Relu, Clip or Max before it."""
    outer = _bounds(work, node)
    if outer is None or not work.can_replace(node.outputs[0]):
        return None
    (low, high), x = outer
    inner_node = work.producer(x, node, *(("Max",) if node.op_type == "Min" else ("Relu", "Clip")))
    inner = None if inner_node is None else _bounds(work, inner_node)
    if inner_node is None or inner is None or x is None or not only_use(x):
        return None
    (inner_low, inner_high), source = inner
    if source is None:
        return None
    merged_low = _largest(inner_low, low)
    merged_high = high if inner_high is None else _smallest(_largest(inner_high, low), high)
    what = f"merged {inner_node.op_type} and {node.op_type}"
    name = site(node)
    if node.op_type == inner_node.op_type == "Relu":
        work.add(node, "Relu", [source])
    else:
        dtype = work.dtype(x)
        assert dtype is not None
        bounds = [_bound(work, node, inner_node, bound, dtype) for bound in (merged_low, merged_high)]
        work.add(node, "Clip", [source, *(bounds if bounds[1] is not None else bounds[:1])])
    return Change(name, what, "one operator sets both limits")


def _bounds(work: Work, node: ir.Node) -> tuple[_Bounds, ir.Value | None] | None:
    """The lower and the upper bound that a node sets (None: none), and of what; None if they are not known."""
    if work.dtype(node.outputs[0]) not in FLOATS:
        return None
    if node.op_type == "Relu":
        return (0.0, None), node.inputs[0]
    if work.opset < _BOUNDS_ARE_INPUTS or (node.op_type != "Clip" and len(node.inputs) != 2):
        return None
    if node.op_type == "Clip":
        return _clip_bounds(node)
    for value, x in ((node.inputs[1], node.inputs[0]), (node.inputs[0], node.inputs[1])):
        bound, tensor = number(value), constant(value)
        narrow = tensor is not None and len(tensor.shape) <= (work.rank(x) or 0)
        if bound is not None and math.isfinite(bound) and narrow:
            return ((bound, None) if node.op_type == "Max" else (None, bound)), x
    return None


def _clip_bounds(node: ir.Node) -> tuple[_Bounds, ir.Value | None] | None:
    given = (*node.inputs[1:], None, None)[:2]
    low, high = (number(value) for value in given)
    for value, bound in zip(given, (low, high), strict=True):
        if value is not None and (bound is None or math.isnan(bound)):
            return None
    return (low, high), node.inputs[0]


def _largest(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)


def _smallest(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


def _bound(work: Work, node: ir.Node, inner: ir.Node, bound: float | None, dtype: ir.DataType) -> ir.Value | None:
    """A scalar constant for a bound: one that is there already where it holds that number."""
    if bound is None:
        return None
    for value in (*node.inputs[1:], *inner.inputs[1:]):
        tensor = constant(value)
        if tensor is not None and not len(tensor.shape) and number(value) == bound:
            return value
    return work.constant(node, np.array(bound, dtype.numpy()), f"{node.outputs[0].name}_bound")
