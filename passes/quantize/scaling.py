"""Where a positive scale per channel can move through a graph without changing what it computes (Nagel et al. 2019, eq. 5-8).

    y = W f(V x + b) = (W S) f(S^-1 V x + S^-1 b)      where f(S^-1 z) = S^-1 f(z): Relu, pooling, Concat, Add of equals, ...

Every value has an array of channel ids (``scales.py``), and operators say which ids are the same (``homogeneous.py``).

This is finer than the groups of channels that pruning removes together: a depthwise Conv keeps the channel and still gives it a
new scale, and the gate of a Mul must keep its scale where the gated value need not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array
from graphopt.graphs import constant
from graphopt.names import Names
from graphopt.shapes import subgraphs

from .homogeneous import rule_of
from .scales import Factor, Scaling


def analyse(model: ir.Model, excluded: Callable[[ir.Node], bool] = lambda _node: False) -> Scaling:
    """Find every channel's class in the main graph; ``model`` stays as it is. Excluded nodes keep all their scales."""
    scaling = Scaling(model)
    for node in model.graph:
        rule = None if excluded(node) else rule_of(node)
        outputs = [] if rule is None else rule(scaling, node)
        if rule is None:
            for value in node.inputs:
                scaling.fix(scaling.ids(value))
        for value, ids in zip(node.outputs, outputs, strict=False):
            scaling.values[value] = ids
        for graph in subgraphs(node):
            for inner in graph.all_nodes():
                for value in inner.inputs:
                    scaling.fix(scaling.ids(value))
            for value in graph.outputs:
                scaling.fix(scaling.ids(value))
    for value in model.graph.outputs:
        scaling.fix(scaling.ids(value))
    scaling.settle()
    return scaling


def scaled(scaling: Scaling, scales: Array, factors: Iterable[Factor], tensor: ir.TensorProtocol) -> Array:
    """A constant, compensated for ``scales`` (float64 by id), in float64."""
    array: Array = tensor.numpy().astype(np.float64)
    for factor in factors:
        array = array * scales[scaling.roots(factor.ids)] ** factor.power
    return array


def apply(model: ir.Model, scaling: Scaling, scales: Array) -> None:
    """Compensate for ``scales``, [ids], positive, 1 for FIXED: every constant that has to change does."""
    places: dict[tuple[ir.Node, int], list[Factor]] = {}
    for factor in scaling.factors:
        if (scales[scaling.roots(factor.ids)] != 1).any():
            places.setdefault((factor.node, factor.index), []).append(factor)
    names = Names(model.graph)
    for (node, index), factors in places.items():
        value = node.inputs[index]
        tensor = constant(value)
        assert value is not None
        assert tensor is not None
        array = scaled(scaling, scales, factors, tensor).astype(tensor.dtype.numpy())
        _put(model, node, index, ir.tensor(np.ascontiguousarray(array), name=value.name), names)


def _put(model: ir.Model, node: ir.Node, index: int, tensor: ir.TensorProtocol, names: Names) -> None:
    """Give an input of a node a new constant; others that read the old one keep it."""
    value = node.inputs[index]
    assert value is not None
    shape = ir.Shape(tuple(tensor.shape.numpy()))
    producer = value.producer()
    if len(value.uses()) == 1 and not value.is_graph_output():
        if producer is not None:
            producer.attributes.clear()
            producer.attributes["value"] = ir.AttrTensor("value", tensor)
        else:
            value.const_value = tensor
        value.shape = shape
        return
    name = names.new(f"{value.name}_scaled")
    new = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape)
    if producer is not None:
        made = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[new])
        model.graph.insert_before(node, made)
    else:
        tensor.name = name
        new.const_value = tensor
        model.graph.register_initializer(new)
    node.replace_input_with(index, new)
