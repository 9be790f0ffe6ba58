"""Recognize LayerNormalization and RMSNormalization that are written out.

    d = x - mean(x),  y = d / sqrt(mean(d^2) + epsilon) gamma   ->   y = LayerNormalization(x, gamma)         opset 17
    LayerNormalization(x, gamma) + beta                         ->   LayerNormalization(x, gamma, beta)
    y = x / sqrt(mean(x^2) + epsilon) gamma                     ->   y = RMSNormalization(x, gamma)           opset 23
    y = x reciprocal(sqrt(mean(x x) + epsilon)) gamma           ->   y = x (1 / sqrt(mean(x^2) + epsilon)) gamma   before that

Means run over the last axis, gamma and beta are vectors of its length, which is fixed and known. The square is a Pow or a
Mul, the quotient a Div or a Mul with a Reciprocal; d may be computed twice. Nothing else may read what lies in between.
float32 only: in other types the operator computes with another precision than the nodes do.

onnxruntime makes one operator of the nodes when it loads the model; of an RMSNormalization (Zhang 2019) only if it is written
with Pow and Div: written with Mul or Reciprocal, as exporters do, it takes 1.5 to 3 times as long as its kernel. Both give the
same to the last bit. A target without that kernel keeps the nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import site

from .graph import Work, attribute, number, only_use
from .pool import reduced_axes

_OPSET = 17
_RMS_OPSET = 23
_RMS_RUNTIMES = frozenset({"onnxruntime"})
"""Which have a kernel for RMSNormalization that is no slower than the nodes."""


def use_layer_normalization(work: Work, node: ir.Node) -> Change | None:
    """Make a LayerNormalization of the nodes that end in a Mul by gamma, or give it the beta of an Add."""
    if work.opset < _OPSET or len(node.inputs) != 2 or work.dtype(node.outputs[0]) != ir.DataType.FLOAT:
        return None
    if not work.can_replace(node.outputs[0]):
        return None
    for value, vector in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        if value is None or vector is None or not only_use(value):
            continue
        change = _add_beta(work, node, value, vector) if node.op_type == "Add" else _normalize(work, node, value, vector)
        if change is not None:
            return change
    return None


def _add_beta(work: Work, node: ir.Node, value: ir.Value, beta: ir.Value) -> Change | None:
    layer_norm = work.producer(value, node, "LayerNormalization")
    if layer_norm is None or len(layer_norm.inputs) != 2 or any(o.uses() for o in layer_norm.outputs[1:]):
        return None
    if attribute(layer_norm, "axis", -1) != -1 or not _is_vector(work, beta, layer_norm.inputs[0]):
        return None
    name = site(node)
    work.add(node, "LayerNormalization", [*layer_norm.inputs, beta], [*layer_norm.attributes.values()])
    return Change(name, "folded Add into LayerNormalization", "it adds the bias itself")


def _normalize(work: Work, node: ir.Node, quotient: ir.Value, gamma: ir.Value) -> Change | None:
    found = _layer_normalized(work, node, quotient, gamma)
    if found is None:
        return None
    x, epsilon = found
    name = site(node)
    work.add(node, "LayerNormalization", [x, gamma], [ir.AttrInt64("axis", -1), ir.AttrFloat32("epsilon", epsilon)])
    return Change(name, "made a LayerNormalization of its parts", "one operator computes it")


def _layer_normalized(work: Work, node: ir.Node, quotient: ir.Value, gamma: ir.Value) -> tuple[ir.Value, float] | None:
    """The x that ``node`` multiplies by gamma after it is normalized, and epsilon."""
    divided = _quotient(work, node, quotient)
    if divided is None:
        return None
    difference, divider, root = divided
    sub = work.producer(difference, divider, "Sub")
    plus = work.producer(root.inputs[0], root, "Add")
    if sub is None or plus is None or not (only_use(root.outputs[0]) and only_use(plus.outputs[0])):
        return None
    for variance, epsilon in ((plus.inputs[0], number(plus.inputs[1])), (plus.inputs[1], number(plus.inputs[0]))):
        mean_square = work.producer(variance, plus, "ReduceMean")
        if mean_square is None or epsilon is None or epsilon < 0 or not _is_variance(work, mean_square, sub, divider):
            continue
        x = sub.inputs[0]
        if x is None or not _is_vector(work, gamma, x) or work.rank(x) != work.rank(node.outputs[0]):
            return None
        return x, epsilon
    return None


def use_rms_normalization(work: Work, node: ir.Node) -> Change | None:
    """Make an RMSNormalization of the nodes that end in a Mul by gamma, or write them as the runtime knows them."""
    if work.runtime not in _RMS_RUNTIMES or work.dtype(node.outputs[0]) != ir.DataType.FLOAT:
        return None
    found = _rms_normalized(work, node)
    if found is None or not work.can_replace(node.outputs[0]):
        return None
    name = site(node)
    if work.opset >= _RMS_OPSET:
        attributes = [ir.AttrInt64("axis", -1), ir.AttrFloat32("epsilon", found.epsilon)]
        work.add(node, "RMSNormalization", [found.x, found.gamma], attributes)
        return Change(name, "made an RMSNormalization of its parts", "one operator computes it")
    if found.square.op_type == "Pow" and found.reciprocal is None:
        return None
    if found.square.op_type != "Pow":
        two = work.constant(found.square, np.array(2, np.float32), f"{found.square.outputs[0].name}_exponent")
        work.add(found.square, "Pow", [found.x, two])
    if found.reciprocal is not None:
        one = work.constant(found.reciprocal, np.array(1, np.float32), f"{found.reciprocal.outputs[0].name}_dividend")
        work.add(found.reciprocal, "Div", [one, *found.reciprocal.inputs])
    return Change(name, "wrote an RMSNormalization with Pow and Div", "the runtime knows it in that form")


@dataclass(frozen=True)
class _Rms:
    """The parts of x / sqrt(mean(x^2) + epsilon) gamma."""

    x: ir.Value
    gamma: ir.Value
    epsilon: float
    square: ir.Node
    reciprocal: ir.Node | None


def _rms_normalized(work: Work, node: ir.Node) -> _Rms | None:
    """What ``node`` ends, a Mul by gamma."""
    if len(node.inputs) != 2:
        return None
    for quotient, gamma in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        divided = None if quotient is None or not only_use(quotient) else _quotient(work, node, quotient)
        found = None if divided is None else _mean_of_squares(work, *divided)
        if divided is not None and found is not None and gamma is not None and _is_vector(work, gamma, divided[0]):
            x, divider, _ = divided
            square, epsilon = found
            reciprocal = next((made for v in divider.inputs if (made := work.producer(v, divider, "Reciprocal"))), None)
            return _Rms(x, gamma, epsilon, square, reciprocal)
    return None


def ends_normalization(work: Work, node: ir.Node) -> bool:
    """Whether a Mul by gamma or an Add of beta is the last node of a normalization that is written out."""
    if len(node.inputs) != 2 or work.dtype(node.outputs[0]) != ir.DataType.FLOAT:
        return False
    for value, vector in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        if value is None or vector is None or not only_use(value):
            continue
        if node.op_type == "Mul" and _layer_normalized(work, node, value, vector) is not None:
            return True
        scaled = work.producer(value, node, "Mul") if node.op_type == "Add" else None
        if scaled is not None and _is_vector(work, vector, value) and ends_normalization(work, scaled):
            return True
    return node.op_type == "Mul" and _rms_normalized(work, node) is not None


def _mean_of_squares(work: Work, x: ir.Value, divider: ir.Node, root: ir.Node) -> tuple[ir.Node, float] | None:
    """What squares x, and epsilon, if ``root`` is sqrt(mean(x^2) + epsilon) and serves ``divider`` only."""
    plus = work.producer(root.inputs[0], root, "Add")
    if plus is None or not (only_use(root.outputs[0]) and only_use(plus.outputs[0])):
        return None
    for variance, epsilon in ((plus.inputs[0], number(plus.inputs[1])), (plus.inputs[1], number(plus.inputs[0]))):
        mean = work.producer(variance, plus, "ReduceMean")
        square = None if mean is None else work.producer(mean.inputs[0], mean, "Pow", "Mul")
        if mean is None or square is None or epsilon is None or epsilon < 0 or square.inputs[0] is not x:
            continue
        if _is_square(square) and _over_last(work, mean) and only_use(square.outputs[0]) and only_use(mean.outputs[0]):
            return (square, epsilon) if work.rank(x) == work.rank(divider.outputs[0]) else None
    return None


def _is_variance(work: Work, mean_square: ir.Node, sub: ir.Node, divider: ir.Node) -> bool:
    """Whether a ReduceMean is the mean of d^2, d = x - mean(x) computed by ``sub``, and only ``divider`` reads d besides."""
    square = work.producer(mean_square.inputs[0], mean_square, "Pow", "Mul")
    twin = None if square is None else work.producer(square.inputs[0], square, "Sub")
    mean = work.producer(sub.inputs[1], sub, "ReduceMean")
    if square is None or twin is None or mean is None or not _is_square(square) or tuple(twin.inputs) != tuple(sub.inputs):
        return False
    if not (only_use(square.outputs[0]) and only_use(mean_square.outputs[0])):
        return False
    inside = {sub, twin, square, divider}
    between = [mean.outputs[0], sub.outputs[0], twin.outputs[0]]
    if any(value.is_graph_output() or any(use.node not in inside for use in value.uses()) for value in between):
        return False
    return mean.inputs[0] is sub.inputs[0] and _over_last(work, mean) and _over_last(work, mean_square)


def _quotient(work: Work, node: ir.Node, quotient: ir.Value) -> tuple[ir.Value, ir.Node, ir.Node] | None:
    """What is divided, the node that divides, and the Sqrt that it divides by."""
    divider = work.producer(quotient, node, "Div", "Mul")
    if divider is None or len(divider.inputs) != 2:
        return None
    pairs = [(divider.inputs[0], divider.inputs[1])]
    if divider.op_type == "Mul":
        pairs.append((divider.inputs[1], divider.inputs[0]))
    for difference, by in pairs:
        root = work.producer(by, divider, "Sqrt")
        if divider.op_type == "Mul":
            reciprocal = work.producer(by, divider, "Reciprocal", "Div")
            if reciprocal is None or by is None or not only_use(by):
                continue
            if reciprocal.op_type == "Div" and number(reciprocal.inputs[0]) != 1:
                continue
            root = work.producer(reciprocal.inputs[-1], reciprocal, "Sqrt")
        if root is not None and difference is not None:
            return difference, divider, root
    return None


def _is_square(node: ir.Node) -> bool:
    return node.inputs[0] is node.inputs[1] if node.op_type == "Mul" else number(node.inputs[1]) == 2


def _over_last(work: Work, mean: ir.Node) -> bool:
    rank = work.rank(mean.inputs[0])
    return rank is not None and attribute(mean, "keepdims", 1) == 1 and reduced_axes(mean, rank) == {rank - 1}


def _is_vector(work: Work, vector: ir.Value, x: ir.Value | None) -> bool:
    """Whether a value is a vector as long as the last axis of x."""
    shape, known = work.shape(vector), work.shape(x)
    return shape is not None and known is not None and len(shape) == 1 and isinstance(shape[0], int) and shape[0] == known[-1]
