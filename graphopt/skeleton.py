"""A model as ONNX's shape inference is given it: bare, with a name of its own for every value, and without large tensors.

Inference looks up what it knows of shapes by name, and confuses branches that use the same names: so values are numbered
through all graphs. Of a large tensor it is told type and shape. What the file states of values is left out, but for the
types of what enters and leaves a graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import onnx
import onnx_ir as ir

from . import walk
from .model.writing import plain

SMALL_BYTES = 1024
"""Tensors up to this size stay: they may be shapes, which inference computes with."""

_KIND = ir.AttributeType


class Skeleton:
    """The skeleton of a model.

    Args:
        model: Any model.
        stated: Types and shapes that are taken for granted; the inputs' among them.
        constants: Tensors of values that are always the same. One that a node gives takes its place for all readers.
        nodes: Those of the main graph that are in it, in order; all if that is None.
        others: What is known of values that the others give.
    """

    def __init__(
        self,
        model: ir.Model,
        stated: Mapping[ir.Value, ir.TypeAndShape],
        constants: Mapping[ir.Value, ir.TensorProtocol],
        nodes: Sequence[ir.Node] | None = None,
        others: Mapping[ir.Value, ir.TypeAndShape] = MappingProxyType({}),
    ) -> None:
        self.names: dict[ir.Value, str] = {}
        """The name that each value of the main graph and its subgraphs has in the skeleton."""
        self.branches = False
        """Whether there are subgraphs."""
        self._attributes: dict[int, onnx.AttributeProto] = {}
        self._stated = stated
        self._constants = constants
        self._replaced = {value: f"c{i}" for i, value in enumerate(constants) if not value.is_initializer()}
        self.proto = onnx.ModelProto(ir_version=model.ir_version)
        for domain, version in model.opset_imports.items():
            self.proto.opset_import.add(domain=domain, version=version)
        self._others = others
        self._graph(model.graph, self.proto.graph, model.graph if nodes is None else nodes)
        for value, fact in others.items():
            if value in self.names:
                _type(self.proto.graph.input.add(name=self.names[value]), fact.type, fact.shape)
        names, self.names = self.names, {}
        for function in model.functions.values():
            self._function(function, self.proto.functions.add())
        self.names = names

    def _name(self, value: ir.Value | None) -> str:
        """The name of a value, a new one where it has none yet; an output without a name is left out."""
        if value is None or value.name == "":
            return ""
        name = self.names.get(value)
        if name is None:
            name = self.names[value] = f"v{len(self.names)}"
        return name

    def _graph(self, graph: ir.Graph, proto: onnx.GraphProto, nodes: Iterable[ir.Node]) -> None:
        proto.name = "graph"
        for value in graph.inputs:
            self._info(value, proto.input.add())
        for node in nodes:
            self._node(node, proto.node.add())
            for value in node.outputs:
                if value in self._stated and not value.is_graph_output():
                    self._info(value, proto.value_info.add())
                if value in self._replaced:  # in this very graph: inference does not look for contents in those around it
                    _tensor(proto.initializer.add(name=self._replaced[value]), self._constants[value])
        for value in graph.outputs:
            if value not in self._others:
                self._info(value, proto.output.add())
        for value in graph.initializers.data.values():
            tensor = self._constants.get(value) if value in self.names else None
            if tensor is not None:
                _tensor(proto.initializer.add(name=self.names[value]), tensor)

    def _info(self, value: ir.Value, proto: onnx.ValueInfoProto) -> None:
        proto.name = self._name(value)
        known, tensor = self._stated.get(value), self._constants.get(value) if value.is_initializer() else None
        kind, shape = (value.type, None) if known is None else (known.type, known.shape)
        if known is None and tensor is not None:  # an initializer that is an output: inference believes what an output says
            kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        _type(proto, kind, shape)

    def _node(self, node: ir.Node, proto: onnx.NodeProto) -> None:
        proto.op_type, name = node.op_type, self._name
        if node.domain:
            proto.domain = node.domain
        if node.overload:
            proto.overload = node.overload
        replaced = self._replaced
        proto.input.extend([replaced[value] if value in replaced else name(value) for value in node.inputs])
        proto.output.extend([name(value) for value in node.outputs])
        for attribute in node.attributes.data.values():
            made = self._attributes.get(id(attribute)) or plain(attribute)
            if made is None:
                self._holder(attribute, proto.attribute.add(name=attribute.name, type=attribute.type.name))
            else:
                self._attributes[id(attribute)] = made
                proto.attribute.append(made)

    def _holder(self, attribute: ir.Attr, proto: onnx.AttributeProto) -> None:
        """An attribute that holds tensors or graphs."""
        kind, value = attribute.type, attribute.value
        if kind is _KIND.TENSOR:
            _tensor(proto.t, value)
        elif kind is _KIND.TENSORS:
            for tensor in value:
                _tensor(proto.tensors.add(), tensor)
        else:
            self.branches = True
            for graph in [value] if kind is _KIND.GRAPH else value:
                self._graph(graph, proto.g if kind is _KIND.GRAPH else proto.graphs.add(), graph)

    def _function(self, function: ir.Function, proto: onnx.FunctionProto) -> None:
        proto.domain, proto.name, proto.overload = function.domain, function.name, function.overload
        for domain, version in function.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        for attribute in function.attributes.values():
            if attribute.value is None:
                proto.attribute.append(attribute.name)
            else:
                proto.attribute_proto.append(ir.serde.serialize_attribute(attribute))
        proto.input.extend(map(self._name, function.inputs))
        for node in function:
            self._node(node, proto.node.add())
        proto.output.extend(map(self._name, function.outputs))


def _type(proto: onnx.ValueInfoProto, kind: ir.TypeProtocol | None, shape: ir.ShapeProtocol | None) -> None:
    if kind is not None:
        ir.serde.serialize_type_into(proto.type, kind)
        if shape is not None:
            ir.serde.serialize_shape_into(proto.type, shape)


def _tensor(proto: onnx.TensorProto, tensor: ir.TensorProtocol) -> None:
    """Write a small tensor, or type and shape of a large one."""
    proto.data_type = tensor.dtype.value
    proto.dims.extend(tensor.shape)
    if tensor.dtype == ir.DataType.STRING:
        proto.string_data.extend(tensor.string_data() if isinstance(tensor, ir.StringTensor) else tensor.numpy().flat)
    elif tensor.nbytes <= SMALL_BYTES:
        proto.raw_data = tensor.tobytes()
    else:
        proto.data_location = onnx.TensorProto.EXTERNAL
        proto.external_data.add(key="location", value="stub")


def graph_initializers(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """The initializers of the main graph and its subgraphs, with their tensors."""
    for graph in walk.graphs(model.graph):
        for value in graph.initializers.data.values():
            if value.const_value is not None:
                yield value, value.const_value
