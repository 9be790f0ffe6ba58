"""Questions that every rewrite asks of a graph: what is constant for certain, what a caller may change, what is where."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from . import walk

INITIALIZERS_NEED_NO_INPUT = 4
"""From this IR version on, a caller may replace an initializer that is listed as an input; before, all had to be listed."""

ANNOTATION = "quant_parameter_tensor_names"
"""Key of ``value.meta`` under which the names of a value's quantization annotation are."""
UNANNOTATED = "graphopt.unannotated"
"""Key of the main graph's ``meta``: no value of the model has an annotation, so none need be asked. No pass makes any."""
_NUMBERS = {
    "value_float": ir.DataType.FLOAT,
    "value_floats": ir.DataType.FLOAT,
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
}


def site(node: ir.Node) -> str:
    """What a user can find the node by: its name, or that of its first output."""
    return node.name or next((output.name for output in node.outputs if output.name), node.op_type)


def operator(node: ir.Node) -> str:
    """The node's operator, with its domain before it unless that is ONNX's own."""
    return node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that a value always has: an initializer that no caller can override, or what a Constant node gives."""
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    producer = value.producer()
    return constant_tensor(producer) if producer is not None else None


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node; None for other nodes, sparse tensors, and constants given by a function's attribute."""
    if node.op_type != "Constant" or node.domain != "" or len(node.attributes.data) != 1:
        return None
    attribute = next(iter(node.attributes.data.values()))
    if attribute.is_ref():
        return None
    value, dtype = attribute.value, _NUMBERS.get(attribute.name)
    if dtype is None:
        return value if attribute.name == "value" else None
    return ir.Tensor(np.array(value, dtype.numpy()))


def is_overridable(value: ir.Value | None) -> bool:
    """Whether a value is an initializer that a caller may replace, because it is listed as an input too."""
    return value is not None and value.is_initializer() and value.is_graph_input()


def annotated_names(model: ir.Model) -> set[str]:
    """Names of initializers that quantization annotations refer to: used, though by no node."""
    names: set[str] = set()
    if UNANNOTATED in model.graph.meta:
        return names
    for graph, nodes in walk.listed(model.graph):
        for value in (*graph.inputs, *graph.initializers.values(), *(output for node in nodes for output in node.outputs)):
            if value.meta:
                names.update(value.meta.get(ANNOTATION, {}).values())
    return names
