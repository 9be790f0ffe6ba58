"""The onnx checker on a model whose weights are elsewhere.

It wants a whole model of less than 2 GB. What stands in for a tensor with external data here:

    initializer of the main graph    an input of the same type and shape
    initializer of a subgraph        a Constant with an empty sparse value of that shape (inputs belong to the operator)
    value of a Constant              the same

Two things that the checker refuses although runtimes do not are hidden from it: inputs and outputs without a shape (of
unknown rank), and the operators in ``validate.RUNTIME_OPERATORS``.
"""

from __future__ import annotations

import re

import onnx

from graphopt.errors import ModelError

from .validate import RUNTIME_OPERATORS

SPARSE_CONSTANT_OPSET = 11
_REASON_LIMIT = 500  # characters
_CUSTOM = "com.microsoft"
_EXTERNAL = onnx.TensorProto.EXTERNAL
_TENSOR = onnx.AttributeProto.TENSOR
_GRAPHS = frozenset({onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS})


def run(proto: onnx.ModelProto, *, full: bool) -> None:
    """Check ``proto``, which is taken apart for it; with ``full`` also infer all shapes and compare them with those it gives.

    Raises:
        ModelError: It is not valid, with the checker's reason.
    """
    if not full:
        proto.graph.ClearField("value_info")  # which only shape inference reads
    _initializers_to_inputs(proto.graph)
    bodies: list[tuple[onnx.ModelProto | onnx.FunctionProto, onnx.GraphProto | onnx.FunctionProto]]
    bodies = [(proto, proto.graph), *((function, function) for function in proto.functions)]
    for owner, body in bodies:
        opset = max((entry.version for entry in owner.opset_import if entry.domain in {"", "ai.onnx"}), default=0)
        _prepare(body, opset)
        if all(entry.domain != _CUSTOM for entry in owner.opset_import):
            owner.opset_import.add(domain=_CUSTOM, version=1)
    with_unknown_ranks = proto.SerializeToString() if full else b""
    for info in (*proto.graph.input, *proto.graph.output):
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(proto.SerializeToString())
        if full:
            onnx.shape_inference.infer_shapes(with_unknown_ranks, check_type=True, strict_mode=True)
    except Exception as error:  # the bindings raise several unrelated kinds
        raise _told(str(error)) from None


def _initializers_to_inputs(graph: onnx.GraphProto) -> None:
    inputs = {info.name for info in graph.input}
    for tensor in _take_external(graph):
        if tensor.name not in inputs:
            of_tensor = graph.input.add(name=tensor.name).type.tensor_type
            of_tensor.elem_type = tensor.data_type
            of_tensor.shape.SetInParent()
            for size in tensor.dims[:]:
                of_tensor.shape.dim.add().dim_value = size


def _prepare(body: onnx.GraphProto | onnx.FunctionProto, opset: int) -> None:
    """Put the stand-ins of constants and of subgraphs' initializers in place, and hide the runtime's operators."""
    for node in body.node[:]:
        if node.op_type in RUNTIME_OPERATORS and node.domain == "" and not onnx.defs.has(node.op_type, opset):
            node.domain = _CUSTOM
        if node.metadata_props:
            node.ClearField("metadata_props")  # pages of text in some files, which the checker would parse and not read
        for attribute in node.attribute[:]:
            kind = attribute.type
            if kind == _TENSOR and _is_external(attribute.t):
                attribute.CopyFrom(_stand_in(attribute.name, attribute.t, opset if node.op_type == "Constant" else 0))
            if kind not in _GRAPHS:
                continue
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                inputs = {info.name for info in graph.input}
                constants = [_constant(tensor, opset) for tensor in _take_external(graph) if tensor.name not in inputs]
                _prepare(graph, opset)
                if constants:
                    rest = list(graph.node)
                    del graph.node[:]
                    graph.node.extend([*constants, *rest])


def _constant(tensor: onnx.TensorProto, opset: int) -> onnx.NodeProto:
    return onnx.NodeProto(op_type="Constant", output=[tensor.name], attribute=[_stand_in("value", tensor, opset)])


def _stand_in(name: str, tensor: onnx.TensorProto, opset: int) -> onnx.AttributeProto:
    """An attribute that has the type and shape of ``tensor`` but no data; before sparse constants there were, only the type."""
    empty = onnx.TensorProto(data_type=tensor.data_type, dims=[0])
    if opset < SPARSE_CONSTANT_OPSET or not tensor.dims or 0 in tensor.dims:
        return onnx.AttributeProto(name=name, type=onnx.AttributeProto.TENSOR, t=empty)
    sparse = onnx.SparseTensorProto(values=empty, dims=tensor.dims)
    return onnx.AttributeProto(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)


def _take_external(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Remove the initializers with external data and return them."""
    external = [(index, tensor) for index, tensor in enumerate(graph.initializer[:]) if _is_external(tensor)]
    for index, _ in reversed(external):
        del graph.initializer[index]
    return [tensor for _, tensor in external]


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == _EXTERNAL)


def _told(message: str) -> ModelError:
    """The checker's message as one paragraph, with the innermost node that it names as the place."""
    places = re.findall(r"Bad node spec for node\. Name: (.*?) OpType: (\S+)", message)
    places += [(name, op_type) for op_type, name in re.findall(r"\(op_type:(\w+)(?:, node name: ([^)]*))?\)", message)]
    reason = re.sub(r"==> Context:.*", "", message, flags=re.DOTALL)
    reason = re.sub(r"\[\w+\] |Inference error\(s\): |\(op_type:[^)]*\): ", "", reason)
    reason = " ".join(reason.split())
    if len(reason) > _REASON_LIMIT:
        reason = reason[:_REASON_LIMIT].rsplit(" ", 1)[0] + " ..."
    where = None
    if places:
        name, op_type = places[0]
        where = f"node {name!r} ({op_type})" if name else f"a node of type {op_type}"
    return ModelError(f"the ONNX checker refuses the model: {reason}", where=where)
