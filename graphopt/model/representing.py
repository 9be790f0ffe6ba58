"""The graph of a valid ModelProto: values, nodes and attributes, with weights that stay where they are.

As ``onnx_ir.from_proto`` makes it, in half the time: that parses the type of each value and each attribute anew, but a model
has few different ones. Equal shapes are one frozen object here, and so are equal attributes, which clones share as well; types
are not, because they can be changed in place. What few models have is left to the library: functions, quantization
annotations, and configurations of devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from graphopt.graphs import UNANNOTATED

from .external import DataFiles, FileTensor
from .held import described, held
from .tensors import data_type
from .weights import graphs

_TENSOR, _TENSORS = onnx.AttributeProto.TENSOR, onnx.AttributeProto.TENSORS
_GRAPH, _GRAPHS = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS
_OWN = frozenset({_TENSOR, _TENSORS, _GRAPH, _GRAPHS})
"""Kinds of attributes that are not shared."""


def represent(proto: onnx.ModelProto, files: DataFiles) -> ir.Model:
    """The graph of ``proto``, its external tensors bound to their files.

    Raises:
        Exception: Whatever the library raises on a model that it does not support.
    """
    if proto.functions or proto.configuration:
        return _by_the_library(proto, files)
    try:
        graph = _Representation(files).graph(proto.graph)
    except _RareError:
        return _by_the_library(proto, files)
    graph.meta[UNANNOTATED] = True
    graph.opset_imports.update({entry.domain: entry.version for entry in proto.opset_import})
    return ir.Model(
        graph,
        ir_version=proto.ir_version,
        producer_name=proto.producer_name or None,
        producer_version=proto.producer_version or None,
        domain=proto.domain or None,
        model_version=proto.model_version if proto.HasField("model_version") else None,
        doc_string=proto.doc_string or None,
        metadata_props=_entries(proto.metadata_props),
    )


class _RareError(Exception):
    """The graph has something that is left to the library."""


class _Scope(dict[str | None, ir.Value]):
    """The values that a graph's nodes may read, by name: its own, and those of the graphs around it."""

    def __init__(self, around: _Scope | None) -> None:
        super().__init__()
        self._around = around

    def __missing__(self, name: str | None) -> ir.Value:
        if self._around is None:
            raise KeyError(name)
        return self._around[name]


class _Representation:
    """One model's graphs as they are made: the shapes and attributes that occurred so far, by their bytes."""

    def __init__(self, files: DataFiles) -> None:
        self.files = files
        self.types: dict[bytes, tuple[ir.TypeProtocol | None, ir.Shape | None]] = {}
        self.attributes: dict[bytes, ir.Attr] = {}
        self.shapes: dict[tuple[int, ...], ir.Shape] = {}

    def graph(self, proto: onnx.GraphProto, around: _Scope | None = None) -> ir.Graph:
        """The graph of ``proto``; ``around`` is the scope of the node that it belongs to."""
        if proto.quantization_annotation:
            raise _RareError
        infos = {info.name: info for info in proto.value_info}
        infos.pop("", None)  # an output that is left out is not described
        inputs = [self.value(info.name, info) for info in proto.input]
        values = _Scope(around)
        values.update({value.name: value for value in inputs})
        initializers = []
        for given in proto.initializer[:]:
            name, tensor = given.name, self.tensor(given)
            if name in values:
                value = values[name]
            elif name in infos:
                value = self.value(name, infos[name])
            else:
                value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=self.shape(given.dims))
            value.const_value = tensor
            values[name] = value
            initializers.append(value)
        nodes = []
        for node in proto.node[:]:  # each after those that make what it reads
            outputs = []
            for name in node.output[:]:
                values[name] = value = self.value(name, infos[name]) if name in infos else ir.Value(name=name)
                outputs.append(value)
            nodes.append(self.node(node, outputs, values))
        return ir.Graph(
            inputs,
            [self.output(values[info.name], info) for info in proto.output],
            nodes=nodes,
            initializers=initializers,
            doc_string=proto.doc_string or None,
            name=proto.name,
            metadata_props=_entries(proto.metadata_props),
        )

    def node(self, proto: onnx.NodeProto, outputs: Sequence[ir.Value], scope: _Scope) -> ir.Node:
        """A node that makes ``outputs``; what it says of devices refers to the model's configurations, and there are none."""
        node = ir.Node(
            proto.domain,
            proto.op_type,
            [scope[name] if name else None for name in proto.input[:]],
            overload=proto.overload,
            outputs=outputs,
            name=proto.name,
            doc_string=proto.doc_string or None,
            metadata_props=_entries(proto.metadata_props),
        )
        for attribute in proto.attribute[:]:
            node.attributes.data[attribute.name] = self.attribute(attribute, scope)
        return node

    def attribute(self, proto: onnx.AttributeProto, scope: _Scope) -> ir.Attr:
        """An attribute; one without tensors and graphs is shared by all nodes that have the same."""
        kind = proto.type
        if kind not in _OWN:
            key = proto.SerializeToString()
            if key not in self.attributes:
                self.attributes[key] = ir.serde.deserialize_attribute(proto)
            return self.attributes[key]
        value: object
        if kind == _TENSOR:
            value = self.tensor(proto.t)
        elif kind == _TENSORS:
            value = [self.tensor(tensor) for tensor in proto.tensors]
        elif kind == _GRAPH:
            value = self.graph(proto.g, scope)
        else:
            value = [self.graph(graph, scope) for graph in proto.graphs]
        return ir.Attr(proto.name, ir.AttributeType(kind), value, doc_string=proto.doc_string or None)

    def tensor(self, proto: onnx.TensorProto) -> ir.TensorProtocol:
        """A tensor: in its file where it lies in one, else parsed."""
        dtype, shape = data_type(proto.data_type), self.shape(proto.dims)
        if proto.data_location != onnx.TensorProto.EXTERNAL:
            return held(proto, dtype, shape)
        place = {entry.key: entry.value for entry in proto.external_data[:]}
        file, offset = self.files[place["location"]], int(place.get("offset", 0))
        return FileTensor(file, offset, dtype, shape, **described(proto))

    def shape(self, dims: Sequence[int]) -> ir.Shape:
        """The shape of these dimensions; one for all tensors that have it."""
        key = tuple(dims[:])
        if key not in self.shapes:
            self.shapes[key] = ir.Shape(key, frozen=True)
        return self.shapes[key]

    def value(self, name: str, info: onnx.ValueInfoProto) -> ir.Value:
        """A value with what the model states of it."""
        kind, shape = self.type(info.type)
        texts = _entries(info.metadata_props)
        return ir.Value(name=name, type=kind, shape=shape, doc_string=info.doc_string or None, metadata_props=texts)

    def output(self, value: ir.Value, info: onnx.ValueInfoProto) -> ir.Value:
        """A value that is known already, with what the model states of it as an output."""
        value.type, value.shape = self.type(info.type)
        value.doc_string = info.doc_string or None
        value.metadata_props.update(_entries(info.metadata_props) or {})
        return value

    def type(self, proto: onnx.TypeProto) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
        """A type of its own, and the shape, which all values of this type share."""
        key = proto.SerializeToString()
        if key not in self.types:
            dims = proto.tensor_type.shape.dim[:]
            sizes = [dim.dim_value for dim in dims if dim.HasField("dim_value") and not dim.HasField("denotation")]
            known = sizes and len(sizes) == len(dims)
            shape = self.shape(sizes) if known else ir.serde.deserialize_type_proto_for_shape(proto)
            self.types[key] = ir.serde.deserialize_type_proto_for_type(proto), shape
        kind, shape = self.types[key]
        if isinstance(kind, ir.TensorType):
            return ir.TensorType(kind.dtype, denotation=kind.denotation), shape
        return ir.serde.deserialize_type_proto_for_type(proto), shape


def _entries(protos: Sequence[onnx.StringStringEntryProto]) -> dict[str, str] | None:
    return {entry.key: entry.value for entry in protos} if protos else None


def _by_the_library(proto: onnx.ModelProto, files: DataFiles) -> ir.Model:
    model = ir.from_proto(proto)
    for graph in graphs(model):
        for value in graph.initializers.data.values():
            if value.const_value is not None:
                value.const_value = _bound(value.const_value, files)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = _with(attribute, _bound(attribute.value, files))
                elif attribute.type == ir.AttributeType.TENSORS:
                    node.attributes[name] = _with(attribute, [_bound(tensor, files) for tensor in attribute.value])
    return model


def _with(attribute: ir.Attr, value: object) -> ir.Attr:
    return ir.Attr(attribute.name, attribute.type, value, doc_string=attribute.doc_string)


def _bound(tensor: ir.TensorProtocol, files: DataFiles) -> ir.TensorProtocol:
    """A tensor that the library made, as ``_Representation.tensor`` would have made it."""
    if isinstance(tensor, ir.TensorProtoTensor | ir.ExternalTensor):
        return _Representation(files).tensor(ir.to_proto(tensor))
    return tensor
