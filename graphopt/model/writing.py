"""The ModelProto of a model, the data of its large tensors elsewhere.

As ``onnx_ir.to_proto`` makes it, in less than half the time: a model has few different types and attributes, and each is made
once and copied here. What an initializer's tensor says of its type and shape is not said again. What few models have is left to
the library: types that are no tensors, attributes of rare kinds, and configurations of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import onnx
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.graphs import ANNOTATION, UNANNOTATED

from .reading import root_cause
from .weights import Owner

Elsewhere: TypeAlias = Callable[[Owner], tuple[str, int] | None]
"""Where the data of a tensor lie, by its owner: a location and an offset there; None is in the message."""

_KIND = ir.AttributeType
_FIELDS: Mapping[ir.AttributeType, tuple[str, Callable[[Any], Any]]] = {
    _KIND.FLOAT: ("f", float),
    _KIND.FLOATS: ("floats", tuple),
    _KIND.INT: ("i", int),
    _KIND.INTS: ("ints", tuple),
    _KIND.STRING: ("s", lambda text: text if isinstance(text, bytes) else text.encode()),
    _KIND.STRINGS: ("strings", lambda texts: [text.encode() for text in texts]),
}
"""In which field of an attribute a value stands."""
_HOLDS = frozenset({_KIND.TENSOR, _KIND.TENSORS, _KIND.GRAPH, _KIND.GRAPHS})
_FUNCTIONS_HAVE_TYPES = 10
"""From this IR version on, types of a function's values stand in it; before, in the main graph under names of onnx-ir's own."""
_DEVICES = 11
"""The IR version that brought configurations of devices."""


def message(model: ir.Model, elsewhere: Elsewhere) -> onnx.ModelProto:
    """The message of a model, which stays as it is.

    Raises:
        ModelError: It cannot be written as ONNX.
    """
    try:
        return _Message(model, elsewhere).proto
    except Exception as error:  # whatever protobuf and the library raise on what passes have put into a graph
        raise ModelError(f"the model cannot be written as ONNX: {root_cause(error)}") from error


class _Message:
    """One model's message as it is made, and the types and attributes that occurred so far."""

    def __init__(self, model: ir.Model, elsewhere: Elsewhere) -> None:
        self.elsewhere = elsewhere
        self.types: dict[tuple[int, int], onnx.TypeProto] = {}
        self.attributes: dict[int, onnx.AttributeProto] = {}
        self.annotated = UNANNOTATED not in model.graph.meta
        self.devices = bool(model.device_configurations) and model.ir_version >= _DEVICES
        self.proto = proto = onnx.ModelProto(
            ir_version=model.ir_version,
            producer_name=model.producer_name or None,
            producer_version=model.producer_version or None,
            domain=model.domain or None,
            model_version=model.model_version or None,
        )
        for domain, version in model.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        _describe(model, proto)
        if self.devices:
            proto.configuration.extend(map(ir.serde.serialize_model_configuration, model.device_configurations))
        self.graph(model.graph, proto.graph)
        for function in model.functions.values():
            self.function(function, proto.functions.add())

    def graph(self, graph: ir.Graph, proto: onnx.GraphProto) -> None:
        if graph.name:
            proto.name = graph.name
        _describe(graph, proto)
        for value in graph.inputs:
            self.info(value, proto.input.add())
        for value, tensor in ((value, value.const_value) for value in graph.initializers.data.values()):
            if tensor is not None:
                self.tensor(tensor, proto.initializer.add(), value)
            if not value.is_graph_input() and (tensor is None or value.metadata_props or value.doc_string):
                self.info(value, proto.value_info.add())
        for node in graph:
            self.node(node, proto.node.add())
            for value in node.outputs:
                if not value.is_graph_output() and _is_described(value):
                    self.info(value, proto.value_info.add())
        for value in graph.outputs:
            self.info(value, proto.output.add())
        proto.quantization_annotation.extend(_annotations(graph) if self.annotated else ())

    def function(self, function: ir.Function, proto: onnx.FunctionProto) -> None:
        proto.domain = function.domain  # the field must be there even when it is empty
        proto.name = function.name
        if function.overload:
            proto.overload = function.overload
        _describe(function, proto)
        for domain, version in function.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        proto.input.extend([value.name for value in function.inputs])
        proto.output.extend([value.name for value in function.outputs])
        for attribute in function.attributes.values():
            if attribute.value is None:
                proto.attribute.append(attribute.name)
            else:
                proto.attribute_proto.append(ir.serde.serialize_attribute(attribute))
        for node in function:
            self.node(node, proto.node.add())
        own = self.proto.ir_version >= _FUNCTIONS_HAVE_TYPES
        for value in (*function.inputs, *_outputs(function)):
            if _is_described(value):
                info = (proto if own else self.proto.graph).value_info.add()
                self.info(value, info)
                info.name = value.name if own else f"{function.domain}::{function.name}/{value.name}"

    def node(self, node: ir.Node, proto: onnx.NodeProto) -> None:
        proto.op_type = node.op_type
        if node.name:
            proto.name = node.name
        if node.domain:
            proto.domain = node.domain
        if node.overload:
            proto.overload = node.overload
        _describe(node, proto)
        proto.input.extend(["" if value is None else value.name for value in node.inputs])
        outputs = [value.name or "" for value in node.outputs]
        while outputs and not outputs[-1]:
            outputs.pop()
        proto.output.extend(outputs)
        for attribute in node.attributes.data.values():
            made = self.attributes.get(id(attribute)) or plain(attribute)
            if made is None:
                self.holder(attribute, proto.attribute.add(name=attribute.name, type=attribute.type.name), node)
            else:
                self.attributes[id(attribute)] = made
                proto.attribute.append(made)
        if self.devices:
            proto.device_configurations.extend(map(ir.serde.serialize_node_device_configuration, node.device_configurations))

    def holder(self, attribute: ir.Attr, proto: onnx.AttributeProto, node: ir.Node) -> None:
        """An attribute that holds tensors or graphs."""
        kind, value = attribute.type, attribute.value
        if attribute.doc_string:
            proto.doc_string = attribute.doc_string
        if kind is _KIND.TENSOR:
            is_constant = node.op_type == "Constant" and node.domain == "" and attribute.name == "value"
            self.tensor(value, proto.t, node if is_constant else None)
        elif kind is _KIND.TENSORS:
            for tensor in value:
                self.tensor(tensor, proto.tensors.add(), None)
        elif kind is _KIND.GRAPH:
            self.graph(value, proto.g)
        else:
            for graph in value:
                self.graph(graph, proto.graphs.add())

    def tensor(self, tensor: ir.TensorProtocol, proto: onnx.TensorProto, owner: Owner | None) -> None:
        """A tensor of ``owner``, or one that has no place of its own."""
        place = None if owner is None else self.elsewhere(owner)
        if type(tensor) is ir.TensorProtoTensor and place is None:
            proto.CopyFrom(tensor.raw)
            proto.ClearField("metadata_props")  # described below as it is now
        else:
            proto.data_type = tensor.dtype.value
            proto.dims.extend(tensor.shape)
            if place is not None:
                proto.data_location = onnx.TensorProto.EXTERNAL
                for key, entry in zip(("location", "offset", "length"), (*place, tensor.nbytes), strict=True):
                    proto.external_data.add(key=key, value=str(entry))
            elif type(tensor) is ir.StringTensor:
                proto.string_data.extend(tensor.string_data())
            else:
                proto.raw_data = tensor.tobytes()
        name = owner.name if isinstance(owner, ir.Value) else tensor.name
        if name:
            proto.name = name
        _describe(tensor, proto)

    def info(self, value: ir.Value, proto: onnx.ValueInfoProto) -> None:
        proto.name = value.name  # type: ignore[assignment]  # protobuf refuses None, which is told
        kind, shape = value.type, value.shape
        if kind is not None:
            key = int(kind.dtype), id(shape)
            if type(kind) is not ir.TensorType or kind.denotation:
                _type(kind, shape, proto.type)
            elif key in self.types:
                proto.type.CopyFrom(self.types[key])
            else:
                _type(kind, shape, proto.type)
                self.types[key] = proto.type
        _describe(value, proto)


def plain(attribute: ir.Attr) -> onnx.AttributeProto | None:
    """The message of an attribute that holds neither tensors nor graphs; of others None."""
    kind, value = attribute.type, attribute.value
    if kind in _HOLDS and not attribute.is_ref():
        return None
    if kind not in _FIELDS and not attribute.is_ref():
        return ir.serde.serialize_attribute(attribute)
    proto = onnx.AttributeProto(name=attribute.name, type=kind.name, doc_string=attribute.doc_string or None)
    if attribute.is_ref():
        proto.ref_attr_name = attribute.ref_attr_name or ""
        return proto
    field, encode = _FIELDS[kind]
    if isinstance(value, tuple):
        getattr(proto, field).extend(encode(value))
    else:
        setattr(proto, field, encode(value))
    return proto


def _type(kind: ir.TypeProtocol, shape: ir.Shape | None, proto: onnx.TypeProto) -> None:
    ir.serde.serialize_type_into(proto, kind)
    if shape is not None:
        ir.serde.serialize_shape_into(proto, shape)


def _is_described(value: ir.Value) -> bool:
    return bool(value.name and (value.type is not None or value.shape is not None or value.doc_string or value.metadata_props))


def _outputs(graph: ir.Graph | ir.Function) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs]


def _annotations(graph: ir.Graph) -> Iterator[onnx.TensorAnnotation]:
    for value in dict.fromkeys((*graph.inputs, *graph.initializers.data.values(), *_outputs(graph), *graph.outputs)):
        if value.meta and (names := value.meta.get(ANNOTATION)):
            proto = onnx.TensorAnnotation(tensor_name=value.name)
            _entries(names, proto.quant_parameter_tensor_names)
            yield proto


def _describe(owner: Any, proto: Any) -> None:
    """What a model, graph, node, ... says of itself."""
    if owner.doc_string:
        proto.doc_string = owner.doc_string
    if owner.metadata_props:
        _entries(owner.metadata_props, proto.metadata_props)


def _entries(entries: Mapping[str, str], protos: Any) -> None:
    for key in sorted(entries):
        protos.add(key=key, value=entries[key])
