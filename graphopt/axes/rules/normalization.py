"""Normalizations. Statistics per channel leave the channels free; statistics over channels do not: without one they change."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.axes.analysis import Analysis, Axes, Unknown
from graphopt.axes.ids import Symbol

from .elementwise import broadcasted
from .table import rule

_MIXED = "its statistics are taken over all of these"


@rule("BatchNormalization")
def batch_norm(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[n, c] = scale[c] * (x[n, c] - mean[c]) / sqrt(var[c] + eps) + bias[c]: one id."""
    if node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1:
        raise Unknown("statistics taken in training")
    x = a.of(node, 0)
    for index in range(1, 5):
        a.same(x[1], a.of(node, index)[0], node)
    return [x]


@rule("InstanceNormalization")
def instance_norm(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[n, c] = scale[c] * norm(x[n, c, :]) + bias[c]: one id; positions are mixed."""
    x = a.of(node, 0)
    a.lock(x[2:], node, _MIXED)
    for index in (1, 2):
        a.same(x[1], a.of(node, index)[0], node)
    return [x]


@rule("GroupNormalization", "com.microsoft.GroupNorm")
def group_norm(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """C = (g, i): statistics over i and positions of each g, so a whole group goes, and ``num_groups`` falls.

    ``scale`` and ``bias`` have an element per channel, or (opset 18 to 20) per group.
    """
    x = a.of(node, 0)
    channels_last = node.domain != "" and node.attributes.get_int("channels_last", 1) == 1
    axis = len(x) - 1 if channels_last else 1
    name = "groups" if node.domain else "num_groups"
    groups, channels = node.attributes.get_int(name, 1), x[axis]
    if isinstance(channels, Symbol):
        raise Unknown("a dynamic number of channels")
    group = a.union.new(groups)
    inner = a.locked(len(channels) // groups, node, _MIXED)
    a.product(channels, (group, inner))
    a.count_attribute(node, name, group)
    a.lock([ids for place, ids in enumerate(x) if place > 0 and place != axis], node, _MIXED)
    for index in (1, 2):
        parameter = a.of(node, index)[0]
        a.same(
            parameter,
            group if not isinstance(parameter, Symbol) and len(parameter) == groups != len(channels) else channels,
            node,
        )
    return [x]


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
@rule("com.microsoft.LayerNormalization", "com.microsoft.SimplifiedLayerNormalization")
def layer_norm(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """Y = scale * norm(x over the axes from ``axis`` on) + bias: these cannot be removed; the axes before can."""
    x = a.of(node, 0)
    axis = node.attributes.get_int("axis", -1) % len(x)
    a.lock(x[axis:], node, _MIXED)
    _parameters(a, node, x, range(1, 3))
    one = tuple(ids if place < axis else a.locked(1, node, _MIXED) for place, ids in enumerate(x))
    return [x, one, one]


@rule("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization")
def skip_layer_norm(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """Y = scale * norm(x + skip + bias) + shift over the last axis; the fourth output is the sum."""
    x = broadcasted(a, node, [a.of(node, 0), a.of(node, 1)])
    a.lock(x[-1:], node, _MIXED)
    _parameters(a, node, x, range(2, len(node.inputs)))
    return [x, None, None, x]


def _parameters(a: Analysis, node: ir.Node, x: Axes, indices: Sequence[int]) -> None:
    for index in indices:
        parameter = a.maybe(node, index)
        if parameter is not None:
            broadcasted(a, node, [x, parameter])


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Y = exp(x) / sum over ``axis`` of exp(x) (before opset 13: over all axes from it on): these cannot be removed."""
    x = a.of(node, 0)
    old = a.opset < 13
    axis = node.attributes.get_int("axis", 1 if old else -1) % len(x)
    a.lock(x[axis:] if old else x[axis : axis + 1], node, _MIXED)
    return [x]


@rule("LpNormalization", "LRN", "MeanVarianceNormalization")
def lp_norm(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """Normalized over ``axis`` (LpNormalization, -1), over neighbouring channels (LRN) or over ``axes`` (MVN, 0, 2, 3)."""
    x = a.of(node, 0)
    axes: Sequence[int] = (1,)
    if node.op_type == "LpNormalization":
        axes = (node.attributes.get_int("axis", -1),)
    elif node.op_type == "MeanVarianceNormalization":
        axes = node.attributes.get_ints("axes") or (0, 2, 3)
    a.lock([x[axis] for axis in axes], node, _MIXED)
    return [x]
