"""A model's weights: the initializers of all its graphs and the values of its Constant nodes, functions included.

One walk over these places serves counting, saving and checking.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from graphopt import walk

SMALL_BYTES = 1024
"""Smaller tensors always stay in the model's own file, where shape inference can read them."""
_NOT_PARAMETERS = {ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING}
Owner: TypeAlias = ir.Value | ir.Node
"""What has a tensor: the value of an initializer, or a Constant node."""
Listed: TypeAlias = Iterable[tuple[ir.Graph, Sequence[ir.Node]]]
"""Graphs, each with the nodes that it has."""


@dataclass(frozen=True)
class Place:
    """An initializer (``owner`` is its value) or the value of a Constant node (``owner`` is the node)."""

    owner: Owner
    tensor: ir.TensorProtocol

    @property
    def name(self) -> str:
        """Name of the value that holds the tensor."""
        value = self.owner if isinstance(self.owner, ir.Value) else self.owner.outputs[0]
        return value.name or ""

    def put(self, tensor: ir.TensorProtocol) -> None:
        """Put another tensor here."""
        if isinstance(self.owner, ir.Value):
            self.owner.const_value = tensor
        else:
            doc_string = self.owner.attributes["value"].doc_string
            self.owner.attributes["value"] = ir.AttrTensor("value", tensor, doc_string=doc_string)


def places(model: ir.Model) -> Iterator[Place]:
    """All places, in the order of the graphs and of the nodes in them."""
    return (Place(owner, tensor) for owner, tensor in _held(listed(model)))


def _held(found: Listed) -> Iterator[tuple[Owner, ir.TensorProtocol]]:
    for graph, nodes in found:
        for value in graph.initializers.data.values():
            if value.const_value is not None:
                yield value, value.const_value
        for node in nodes:
            if node.op_type == "Constant" and node.domain == "":
                value_attribute = node.attributes.data.get("value")
                if value_attribute is not None and not value_attribute.is_ref():
                    yield node, value_attribute.value


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, the bodies of functions, and all their subgraphs."""
    return (graph for graph, _ in listed(model))


def listed(model: ir.Model) -> Iterator[tuple[ir.Graph, Sequence[ir.Node]]]:
    """The same, each with the nodes that it has."""
    yield from walk.listed(model.graph)
    for function in model.functions.values():
        yield from walk.listed(function.graph)


def weights(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Each weight once, with the name of the first value that holds it."""
    seen: set[int] = set()
    for place in places(model):
        if id(place.tensor) not in seen:
            seen.add(id(place.tensor))
            yield place.name, place.tensor


def is_large(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor's data may lie elsewhere than in the graph's own message.

    The library's classes are protocols: ``isinstance`` takes ten times as long to say no as a comparison.
    """
    return tensor.dtype != ir.DataType.STRING and (tensor.nbytes >= SMALL_BYTES or type(tensor) is ir.ExternalTensor)


def tensor_bytes(tensor: ir.TensorProtocol) -> int:
    """Bytes of a tensor's data; of strings, those of their text."""
    if tensor.dtype == ir.DataType.STRING:
        return sum(len(text) for text in tensor.numpy().flat)
    return tensor.nbytes


def weight_bytes(model: ir.Model, found: Listed | None = None) -> int:
    """Bytes of all weights as they are stored, each once. ``found`` are its graphs, where they are listed already."""
    return total_bytes(tensor for _, tensor in _held(listed(model) if found is None else found))


def total_bytes(tensors: Iterable[ir.TensorProtocol]) -> int:
    """Bytes of these tensors as they are stored, each once."""
    return sum(map(tensor_bytes, {id(tensor): tensor for tensor in tensors}.values()))


def parameters(model: ir.Model) -> int:
    """How many numbers the weights hold. int64, bool and strings are not counted: they are shapes, indices and masks."""
    return sum(tensor.size for _, tensor in weights(model) if tensor.dtype not in _NOT_PARAMETERS)
