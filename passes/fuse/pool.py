"""Say that a mean is a pooling.

    ReduceMean(x [n, c, h, w], axes = {2, 3}, keepdims = 1)   ->   GlobalAveragePool(x)

Runtimes keep their own memory layout from a Conv through elementwise operators into a pooling, but not into a general
reduction; elsewhere the reduction is the faster of the two on CPUs, and it stays. Conditions besides: the rank is known, the
axes are all the spatial ones, known ahead of time, and the type is float32: not every runtime pools others.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import site

from .graph import Work, attribute, ints

_RANK = 4
_ELEMENTWISE = ("Add", "BatchNormalization", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Tanh")
_NEAR = 12
"""So many nodes are looked at to find a Conv."""


def use_global_pool(work: Work, node: ir.Node) -> Change | None:
    """Make a GlobalAveragePool of a ReduceMean over height and width."""
    if (
        work.rank(node.inputs[0]) != _RANK
        or work.dtype(node.inputs[0]) != ir.DataType.FLOAT
        or attribute(node, "keepdims", 1) != 1
    ):
        return None
    axes = reduced_axes(node, _RANK)
    if axes != {2, 3} or not work.can_replace(node.outputs[0]) or not _is_behind_conv(work, node):
        return None
    name = site(node)
    work.add(node, "GlobalAveragePool", [node.inputs[0]])
    return Change(name, "made a GlobalAveragePool of ReduceMean", "it is the mean over height and width")


def _is_behind_conv(work: Work, node: ir.Node) -> bool:
    """Whether nothing but a few elementwise operators lie between a Conv and the node."""
    waiting, seen = [node], 0
    while waiting and seen < _NEAR:
        user = waiting.pop(0)
        seen += 1
        for value in user.inputs:
            if work.producer(value, user, "Conv") is not None:
                return True
            before = work.producer(value, user, *_ELEMENTWISE)
            waiting += [] if before is None else [before]
    return False


def reduced_axes(node: ir.Node, rank: int) -> set[int] | None:
    """The axes of a reduction, given as an attribute or as a constant input; None if they are not known or not given."""
    given = attribute(node, "axes")
    axes = list(given) if isinstance(given, tuple) else ints(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if not axes else {axis % rank for axis in axes}
