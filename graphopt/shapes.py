"""What is known of each value's type and shape, by ONNX's own shape inference and nothing else.

``infer`` tells only what follows from the graph's inputs and its operators. Shapes that the file states for values in between
are not believed: they go stale when a tool changes a graph, and a rewrite that trusts one changes what the model computes.
The runtime refuses inputs that contradict a fixed dimension, so those of the graph's inputs can be relied on.

Inference runs on a skeleton (``skeleton.py``): no weight is read, and the model may be of any size. ``sizes`` builds
estimates on the same parts.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import onnx
import onnx_ir as ir

from . import walk
from .again import Facts, Reads, again, is_known
from .graphs import constant
from .skeleton import Skeleton, graph_initializers
from .walk import defined, nodes, subgraphs

__all__ = ["Facts", "Reads", "are_fixed", "defined", "facts", "infer", "is_known", "keep", "kept", "shape_of", "subgraphs"]

_GENERATED_SYMBOL = "unk__"
"""How inference names the dimensions that it knows nothing of."""
_LENGTHEN = frozenset({"Concat", "ConstantOfShape", "Expand", "Range", "Tile"})
"""Operators that can make a long vector of a few numbers."""
_OF_VECTORS = frozenset({0, -1})
"""The axis of a Concat of vectors."""
_SHAPED = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
"""Those among them whose output has as many axes as this input has numbers, or more: where it has one, it is so long, or the
vector is so many times longer."""
_LONG = 100_000
_UNLIMITED = 1 << 63
_MOST_AXES = 32
"""How many axes a tensor has at most, as NumPy has it."""

_KEPT = "graphopt.facts"
"""Key of ``model.meta`` under which ``keep`` leaves facts."""
Kept = tuple[list[object], Facts]
"""The parts of a graph, and what is known of its values."""


def infer(model: ir.Model, known: Facts | None = None, before: Reads | None = None) -> Facts:
    """Types and shapes of the values of all graphs and subgraphs; what is not known is left out. The model stays as it is.

    Function bodies are not covered: their values have no one shape.

    Args:
        model: Any model, sorted.
        known: What was known before the graph was rewired so that every value still holds what it held: stays true.
        before: What the nodes of the main graph read when that was inferred.
    """
    left: Kept | None = model.meta.pop(_KEPT, None)
    if left is not None and _is_same(left[0], _parts(model, walk.listed(model.graph))):
        return left[1]
    inputs = {value: ir.TypeAndShape(value.type, value.shape) for value in model.graph.inputs}
    constants = {value: tensor for value, tensor in graph_initializers(model) if not _is_overridable(value, model)}
    return facts(model, inputs, constants, known, before)


def kept(model: ir.Model) -> Kept | None:
    """What ``keep`` has left with the model; ``infer`` takes it."""
    found: Kept | None = model.meta.get(_KEPT)
    return found


def keep(model: ir.Model, found: Facts, before: Kept | None = None) -> None:
    """Leave facts with the model for the next who asks ``infer``, if the graph is the same still.

    The caller knows that they are what inference would find now, or that all of them are fixed (``are_fixed``). If it has
    changed nothing, ``before`` is what was ``kept`` when it came.
    """
    if before is not None and before[1] is found:
        model.meta[_KEPT] = before
    elif not model.functions:
        listed = [*walk.listed(model.graph)]
        used = {value: fact for value, fact in found.items() if value.graph is not None}
        initializers = (value for graph, _ in listed for value in graph.initializers.data.values() if value not in used)
        new = {value: value.const_value for value in initializers if value.const_value is not None}  # since inference
        model.meta[_KEPT] = _parts(model, listed), used | _of_constants(new)


def are_fixed(nodes: Iterable[ir.Node], found: Facts) -> bool:
    """Whether facts give all that nodes give all its dimensions: however these are rewired, there is nothing to add."""
    values = (value for node in nodes for value in node.outputs if value.name)
    return all((fact := found.get(value)) is not None and fact.shape is not None and fact.shape.is_static() for value in values)


def _parts(model: ir.Model, listed: Iterable[tuple[ir.Graph, Sequence[ir.Node]]]) -> list[object]:
    """All that inference depends on: objects that are replaced, never changed, when the graph is.

    ``listed`` are its graphs and their nodes.
    """
    parts: list[object] = [(*model.opset_imports.items(), *(str(value.shape) for value in model.graph.inputs))]
    for graph, found in listed:
        parts += (*graph.inputs, *graph.outputs, *(value.type for value in graph.inputs))
        initializers = graph.initializers.data.values()
        parts += [*initializers, *[value.const_value for value in initializers]]
        parts += [*[node.inputs for node in found], *[node.outputs for node in found]]
        parts += [part for node in found for part in (node, *node.attributes.data.values())]
    return parts


def _is_same(before: list[object], now: list[object]) -> bool:
    return len(before) == len(now) and before[0] == now[0] and all(map(operator.is_, before[1:], now[1:]))


def _is_overridable(value: ir.Value, model: ir.Model) -> bool:
    """Whether a caller may give another value: it is no constant then."""
    return value.is_graph_input() and value.graph is model.graph


def facts(
    model: ir.Model,
    stated: Mapping[ir.Value, ir.TypeAndShape],
    constants: Mapping[ir.Value, ir.TensorProtocol],
    known: Mapping[ir.Value, ir.TypeAndShape] | None = None,
    before: Reads | None = None,
) -> Facts:
    """What inference finds out about a model.

    Args:
        model: Any model, sorted.
        stated: Types and shapes that are taken for granted; the inputs' among them.
        constants: Values that are always the same tensor; initializers, or what nodes give.
        known: True of some values; where all dimensions are fixed there is nothing to add, and it is taken as it is.
        before: What the nodes of the main graph read when that was inferred.
    """
    known = known or {}
    nodes, others = again(model.graph, known, before or {}) if known else (None, {})
    skeleton = Skeleton(model, stated, constants, nodes, others)
    types: dict[str, bytes] | None = None
    if lengthened := _lengthened(model, known, constants):
        types = _types(skeleton, follow_values=False)
        if not any(_is_long(types[name]) for value in lengthened if (name := skeleton.names.get(value)) in types):
            types = None
    if types is None:
        types = _types(skeleton, follow_values=True)
    found = _of_constants(constants) | others
    read: dict[bytes, tuple[ir.DataType, ir.Shape | None]] = {}
    for value, name in skeleton.names.items():
        if value in found:
            continue
        fact = known.get(value)
        if fact is not None and fact.shape is not None and fact.shape.is_static():
            found[value] = fact
        elif name in types:
            found[value] = _type_and_shape(types[name], read)
    return found


def _of_constants(constants: Mapping[ir.Value, ir.TensorProtocol]) -> Facts:
    """Types and shapes of the initializers that no caller can override."""
    return {
        value: ir.TypeAndShape(ir.TensorType(tensor.dtype), shape_of(tensor))
        for value, tensor in constants.items()
        if value.is_initializer() and not value.is_graph_input()
    }


def shape_of(tensor: ir.TensorProtocol) -> ir.Shape:
    """The shape of a tensor; its own where it can be, which nobody can change."""
    return tensor.shape if isinstance(tensor.shape, ir.Shape) and tensor.shape.frozen else ir.Shape(tensor.shape.numpy())


def _types(skeleton: Skeleton, *, follow_values: bool) -> dict[str, bytes]:
    """The messages of the types that inference finds, by the names of the skeleton; of nothing if it fails."""
    try:
        proto = onnx.shape_inference.infer_shapes(skeleton.proto, data_prop=follow_values)
    except onnx.shape_inference.InferenceError:
        return {}
    graphs = _graphs(proto.graph) if skeleton.branches else [proto.graph]
    infos = (info for graph in graphs for infos in (graph.input, graph.output, graph.value_info) for info in infos)
    return {info.name: message for info in infos if (message := info.type.SerializeToString())}


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _lengthened(
    model: ir.Model, known: Mapping[ir.Value, ir.TypeAndShape], constants: Mapping[ir.Value, ir.TensorProtocol]
) -> list[ir.Value]:
    """Values that may be vectors of many more elements than the vectors that the graph is given.

    A Concat is as long as all that it reads together; of other operators, those count that may have one axis of any length for
    all that is known. That takes longer to find out by inference, which knows the length of a Range that reads constants.
    """
    listed = [*nodes(model.graph)]
    own = (node for node in listed if node.op_type in _LENGTHEN and not node.domain)
    growing = {node for node in own if node.attributes.get_int("axis", 0) in _OF_VECTORS}
    if not any(_may_be_long(known.get(value)) for node in growing for value in node.outputs):
        return []
    given = chain(((value, value.shape) for value in model.graph.inputs), ((value, t.shape) for value, t in constants.items()))
    vectors = ((value, shape.dims[0]) for value, shape in given if shape is not None and len(shape.dims) == 1)
    longest = {value: dim for value, dim in vectors if isinstance(dim, int)}
    most = max([_MOST_AXES, *longest.values()]) * math.prod(len(node.inputs) for node in growing)
    if most <= _LONG and all(node.op_type == "Concat" for node in growing):  # even if each puts together what the others give
        return []
    found: list[ir.Value] = []
    for node in listed:
        kind, inputs = node.op_type, node.inputs
        lengths = [longest[value] for value in inputs if value in longest]  # of what they hold at most, if they are vectors
        if not lengths and kind != "Shape" and node not in growing:
            continue
        length = _MOST_AXES if kind == "Shape" else max(lengths, default=1)
        if kind == "Concat" and node in growing:
            length = sum(lengths) + len(inputs) - len(lengths)
        if length > 1:
            longest.update(dict.fromkeys(node.outputs, length))
        if kind in _SHAPED:
            length *= _asked(inputs[_SHAPED[kind]])
        elif kind == "Range" and all(value in constants for value in inputs):
            length = _UNLIMITED
        if node in growing and length > _LONG:
            found += [value for value in node.outputs if value.name and _may_be_long(known.get(value))]
    return found


def _asked(target: ir.Value | None) -> int:
    """How often a vector is longer at most where an operator is given this as a shape: more numbers than one are more axes."""
    tensor, producer = constant(target), None if target is None else target.producer()
    if tensor is not None:
        return int(tensor.numpy().item()) if tensor.size == 1 else 1
    return 1 if producer is not None and producer.op_type == "Concat" and len(producer.inputs) > 1 else _UNLIMITED


def _is_long(message: bytes) -> bool:
    """Whether following values would take inference minutes and gigabytes: it writes out every element of a vector."""
    dims = onnx.TypeProto.FromString(message).tensor_type.shape.dim
    return len(dims) == 1 and dims[0].dim_value > _LONG


def _may_be_long(known: ir.TypeAndShape | None) -> bool:
    if known is None or known.shape is None:
        return True
    dims = known.shape.dims
    return len(dims) == 1 and not (isinstance(dims[0], int) and dims[0] <= _LONG)


def _type_and_shape(message: bytes, read: dict[bytes, tuple[ir.DataType, ir.Shape | None]]) -> ir.TypeAndShape:
    """What a message says; ``read`` holds the tensor types that were read before: most values of a model share a few."""
    if message not in read:
        proto = onnx.TypeProto.FromString(message)
        if proto.WhichOneof("value") != "tensor_type":
            kind = ir.serde.deserialize_type_proto_for_type(proto)
            shape = ir.serde.deserialize_type_proto_for_shape(proto)
            return ir.TypeAndShape(kind, None if shape is None else ir.Shape([_known(dim) for dim in shape]))
        tensor, shape = proto.tensor_type, None
        if tensor.HasField("shape"):
            shape = ir.Shape([_dimension(dim) for dim in tensor.shape.dim], frozen=True)
        read[message] = ir.DataType(tensor.elem_type), shape
    dtype, shape = read[message]
    return ir.TypeAndShape(ir.TensorType(dtype), shape)


def _dimension(proto: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if proto.HasField("dim_value"):
        return proto.dim_value
    symbol = proto.dim_param
    return None if not symbol or symbol.startswith(_GENERATED_SYMBOL) else symbol


def _known(dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim | None:
    return None if str(getattr(dim, "value", "")).startswith(_GENERATED_SYMBOL) else dim
