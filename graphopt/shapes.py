"""What is known of each value's type and shape, by ONNX's own shape inference and nothing else.

``infer`` tells only what follows from the graph's inputs and its operators. Shapes that the file states for values in between
are not believed: they go stale when a tool changes a graph, and a rewrite that trusts one changes what the model computes.
The runtime refuses inputs that contradict a fixed dimension, so those of the graph's inputs can be relied on.

Inference runs on a skeleton: the same graph, its large tensors replaced by stubs that say type and shape only. No weight is
read, and the model may be of any size. ``sizes`` builds estimates on the same parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir

from .model.weights import graphs

SMALL_BYTES = 1024
"""Tensors up to this size stay in the skeleton: they may be shapes, which inference computes with."""
_GENERATED_SYMBOL = "unk__"
"""How inference names the dimensions that it knows nothing of."""
_LENGTHEN = frozenset({"Concat", "ConstantOfShape", "Expand", "Range", "Tile"})
"""Operators that can make a long vector of a few numbers."""
_LONG = 100_000

Facts = dict[ir.Value, ir.TypeAndShape]


def infer(model: ir.Model) -> Facts:
    """Types and shapes of the values of all graphs and subgraphs; what is not known is left out. The model stays as it is.

    Function bodies are not covered: their values have no one shape.
    """
    bare = skeleton(model)
    for overridable in [value for value in bare.graph.inputs if value.is_initializer()]:
        del bare.graph.initializers[overridable.name or ""]  # a caller may give another value: it is no constant
    forget(bare.graph, main=True)
    return facts(model, bare)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs in a node's attributes: branches of If, bodies of Loop and Scan."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def skeleton(model: ir.Model) -> ir.Model:
    """A clone without the contents of large tensors, and every name in it given once.

    ONNX's inference looks up what it knows of shapes by name, and confuses branches that use the same names.
    """
    bare = model.clone()
    for function in bare.functions.values():
        forget(function.graph, main=False)
    names: set[str | None] = set()
    for number, graph in enumerate(graphs(bare)):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _stub(value.const_value)
                value.shape = ir.Shape(value.const_value.shape.numpy())
                value.type = ir.TensorType(value.const_value.dtype)
        for value in defined(graph):
            if value.name in names:
                value.name = f"{value.name} in {number}"
            names.add(value.name)
        for node in graph:
            for name, attribute in [*node.attributes.items()]:
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    node.attributes[name] = ir.AttrTensor(name, _stub(attribute.as_tensor()))
    return bare


def facts(model: ir.Model, bare: ir.Model) -> Facts:
    """What inference finds out about the skeleton of a model, told of the model's values."""
    proto = ir.to_proto(bare)
    if any(node.op_type in _LENGTHEN for node in bare.graph.all_nodes()):
        cautious = _infer(model, bare, proto, follow_values=False)
        if any(_is_long(value, known) for value, known in cautious.items()):
            return cautious
    return _infer(model, bare, proto, follow_values=True)


def _infer(model: ir.Model, bare: ir.Model, proto: onnx.ModelProto, *, follow_values: bool) -> Facts:
    try:
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=follow_values)
    except onnx.shape_inference.InferenceError:
        return {}
    found: Facts = {}
    _collect(model.graph, bare.graph, proto.graph, found)
    return found


def _is_long(value: ir.Value, known: ir.TypeAndShape) -> bool:
    """Whether following values would take inference minutes and gigabytes: it writes out every element of a vector."""
    producer, shape = value.producer(), known.shape
    if producer is None or producer.op_type not in _LENGTHEN or shape is None or len(shape) != 1:
        return False
    return isinstance(shape[0], int) and shape[0] > _LONG


def defined(graph: ir.Graph) -> list[ir.Value]:
    """The values that a graph itself defines, each once; outputs that are left out have no name and are not among them."""
    values = [*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]
    return [*dict.fromkeys(value for value in values if value.name)]


def _stub(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor to stand in for another, which the skeleton must not rename: it is shared with the model."""
    shape = ir.Shape(tensor.shape.numpy())
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(tensor.numpy(), shape=shape)
    if tensor.nbytes <= SMALL_BYTES:
        return ir.Tensor(tensor.numpy(), tensor.dtype, shape=shape)
    return ir.ExternalTensor("stub", 0, tensor.nbytes, tensor.dtype, shape=shape, name=tensor.name or "")


def forget(graph: ir.Graph, *, main: bool) -> None:
    """Drop what is stated of values: shapes at the boundary of a graph (not of the model's inputs), shapes and types inside."""
    boundary = [*graph.outputs] if main else [*graph.inputs, *graph.outputs]
    for value in boundary:
        value.shape = None
    for node in graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = output.type = None
        for subgraph in subgraphs(node):
            forget(subgraph, main=False)


def _collect(graph: ir.Graph, bare: ir.Graph, proto: onnx.GraphProto, found: Facts) -> None:
    """Tell what was inferred of a skeleton's graph of the values of the model's graph."""
    types: dict[str, Any] = {info.name: info.type for info in (*proto.input, *proto.output, *proto.value_info)}
    for value in graph.initializers.values():
        if value.const_value is not None and not value.is_graph_input():
            shape = ir.Shape(value.const_value.shape.numpy())
            found[value] = ir.TypeAndShape(ir.TensorType(value.const_value.dtype), shape)
    for value, twin in zip(produced(graph), produced(bare), strict=True):
        inferred = types.get(twin.name or "")
        if value not in found and inferred is not None and inferred.WhichOneof("value") is not None:
            found[value] = ir.TypeAndShape(ir.serde.deserialize_type_proto_for_type(inferred), _shape(inferred))
    for node, node_twin, node_proto in zip(graph, bare, proto.node, strict=True):
        inner = zip(subgraphs(node), subgraphs(node_twin), _subgraph_protos(node_twin, node_proto), strict=True)
        for subgraph, subgraph_twin, subgraph_proto in inner:
            _collect(subgraph, subgraph_twin, subgraph_proto, found)


def produced(graph: ir.Graph) -> list[ir.Value]:
    """Inputs of a graph and outputs of its nodes, in order; the same for a skeleton."""
    return [*graph.inputs, *(output for node in graph for output in node.outputs)]


def _subgraph_protos(node: ir.Node, proto: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The counterparts of ``subgraphs(node)``."""
    attributes = {attribute.name: attribute for attribute in proto.attribute}
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            yield attributes[name].g
        elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
            yield from attributes[name].graphs


def _shape(proto: onnx.TypeProto) -> ir.Shape | None:
    shape = ir.serde.deserialize_type_proto_for_shape(proto)
    if shape is None:
        return None
    return ir.Shape([None if str(getattr(dim, "value", "")).startswith(_GENERATED_SYMBOL) else dim for dim in shape])
