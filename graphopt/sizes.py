"""Shapes for estimates: what the dimensions of each value are when the symbolic ones of the inputs have given sizes.

Unlike ``shapes.infer`` this believes what the file states where inference knows nothing, and that no caller overrides an
initializer: good for counting, not for rewriting. Shapes that exporters leave to the runtime (Shape, Gather, Concat, Reshape
by -1, ...) are computed here with the given sizes, and inference is run again until it learns no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from . import walk
from .shapes import Facts, facts
from .skeleton import SMALL_BYTES, graph_initializers

_ROUNDS = 8
"""Inference is run at most this often; each round follows one more shape that depends on the one before."""
_SETTLED = frozenset(
    {"Add", "Cast", "Concat", "ConstantOfShape", "Div", "Gather", "Mul", "Reshape"}
    | {"Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze"}
)
"""What shapes are computed with."""


def infer(model: ir.Model, dims: Mapping[str, int] | None = None, batch: int = 1, *, believe: bool = True) -> Facts:
    """Types and shapes of the values of all graphs and subgraphs; what is not known is left out. The model stays as it is.

    Args:
        model: Any model, sorted.
        dims: Sizes of symbolic dimensions, by symbol.
        batch: Size of the inputs' first dimension where it is symbolic and not in ``dims``.
        believe: Whether what the file states of values in between is taken for granted where inference knows too little.
    """
    stated, sizes = _bound(model.graph, dict(dims or {}), batch)
    constants = dict(graph_initializers(model))
    found = _follow(model, stated, constants)
    believed = _believed(model, found, sizes) if believe else {}
    return _follow(model, {**stated, **believed}, constants) if believed else found


def largest_bytes(model: ir.Model, feed: Mapping[str, np.ndarray]) -> int:
    """Bytes of the largest value that is computed from a feed, as far as sizes are known; 1 where none is."""
    dims: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.shape is not None and value.name and value.name in feed:
            pairs = zip(value.shape, feed[value.name].shape, strict=False)
            dims.update({dim.value: size for dim, size in pairs if isinstance(dim, ir.SymbolicDim) and dim.value})
    largest = 1
    for value, known in infer(model, dims).items():
        shape, kind = known.shape, known.type
        if shape is not None and shape.is_static() and isinstance(kind, ir.TensorType) and not value.is_initializer():
            largest = max(largest, math.ceil(math.prod(shape.numpy()) * kind.dtype.itemsize))
    return largest


def _follow(model: ir.Model, stated: Facts, constants: dict[ir.Value, ir.TensorProtocol]) -> Facts:
    """Infer, and compute the shapes that follow, until there is no more to learn; ``constants`` gets what was computed."""
    found = facts(model, stated, constants)
    for _ in range(_ROUNDS - 1):
        if not _settle(model, constants, found):
            break
        found = facts(model, stated, constants)
    return found


def _bound(graph: ir.Graph, sizes: dict[str, int], batch: int) -> tuple[Facts, dict[str, int]]:
    """The inputs with their symbolic dimensions given sizes, and the size of each symbol, which means the same everywhere."""
    shapes: dict[ir.Value, ir.Shape | None] = {}
    for value in graph.inputs:
        shapes[value] = value.shape
        first = value.shape[0] if value.shape is not None and len(value.shape) else 1
        if isinstance(first, ir.SymbolicDim):
            if first.value is None:
                shapes[value] = ir.Shape([batch, *(value.shape or ())[1:]])
            else:
                sizes.setdefault(first.value, batch)
    return {value: ir.TypeAndShape(value.type, _sized(shape, sizes)) for value, shape in shapes.items()}, sizes


def _believed(model: ir.Model, found: Facts, sizes: Mapping[str, int]) -> Facts:
    """What the file states of values of which inference knows too little."""
    believed: Facts = {}
    for graph in walk.graphs(model.graph):
        inputs = [] if graph is model.graph else graph.inputs
        for value in (*inputs, *(output for node in graph for output in node.outputs)):
            known = found.get(value)
            if value.shape is None or value.type is None or (known and known.shape is not None and known.shape.is_static()):
                continue
            believed[value] = ir.TypeAndShape(value.type, _sized(value.shape, sizes))
    return believed


def _sized(shape: ir.Shape | None, sizes: Mapping[str, int]) -> ir.Shape | None:
    return None if shape is None else ir.Shape([_size(dim, sizes) for dim in shape])


def _size(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | ir.SymbolicDim:
    if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
        return sizes.get(dim.value, dim)
    return dim


def _settle(model: ir.Model, constants: dict[ir.Value, ir.TensorProtocol], found: Facts) -> bool:
    """Compute the small integers that follow from what is known; whether there were any."""
    opset = model.opset_imports.get("", 1)
    settled = False
    for node in walk.nodes(model.graph):
        if node.domain or not node.outputs or not node.outputs[0].uses() or node.outputs[0].is_graph_output():
            continue
        array = _value(node, constants, opset, found) if node.outputs[0] not in constants else None
        if array is not None and array.nbytes <= SMALL_BYTES:
            constants[node.outputs[0]] = ir.tensor(array)
            settled = True
    return settled


def _value(node: ir.Node, constants: Mapping[ir.Value, ir.TensorProtocol], opset: int, found: Facts) -> np.ndarray | None:
    """What the node gives, where it is a Shape or its inputs are small constants."""
    if node.op_type == "Shape":
        known = found.get(node.inputs[0]) if node.inputs[0] is not None else None
        if known is None or known.shape is None or not known.shape.is_static():
            return None
        dims = np.array(known.shape.numpy(), np.int64)
        return dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
    arrays = [_small_constant(value, constants) for value in node.inputs]
    if node.op_type not in _SETTLED or not arrays:
        return None
    given = [array for array in arrays if array is not None]
    if len(given) < len(arrays) or (node.op_type == "ConstantOfShape" and np.prod(given[0], dtype=float) > SMALL_BYTES):
        return None
    import onnx.reference.ops as reference

    attributes = [ir.serde.serialize_attribute(attribute) for attribute in node.attributes.values()]
    try:
        operator: Any = reference.load_op("", node.op_type, opset)
        result = operator.eval(*given, **{a.name: onnx.helper.get_attribute_value(a) for a in attributes})
    except Exception:  # whatever the reference implementation raises: the shape stays unknown
        return None
    return np.asarray(result)


def _small_constant(value: ir.Value | None, constants: Mapping[ir.Value, ir.TensorProtocol]) -> np.ndarray | None:
    if value is None:
        return None
    producer, tensor = value.producer(), constants.get(value)
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        tensor = producer.attributes["value"].as_tensor()
    if tensor is None or tensor.nbytes > SMALL_BYTES or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()
