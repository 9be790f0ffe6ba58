"""Shapes for estimates: what the dimensions of each value are when the symbolic ones of the inputs have given sizes.

Unlike ``shapes.infer`` this believes what the file states where inference knows nothing, and that no caller overrides an
initializer: good for counting, not for rewriting. Shapes that exporters leave to the runtime (Shape, Gather, Concat, Reshape
by -1, ...) are computed here with the given sizes, and inference is run again until it learns no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from .shapes import SMALL_BYTES, Facts, facts, forget, produced, skeleton

_ROUNDS = 8
"""Inference is run at most this often; each round follows one more shape that depends on the one before."""
_SETTLED = frozenset(
    {"Add", "Cast", "Concat", "ConstantOfShape", "Div", "Gather", "Mul", "Reshape"}
    | {"Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze"}
)
"""What shapes are computed with."""


def infer(model: ir.Model, dims: Mapping[str, int] | None = None, batch: int = 1) -> Facts:
    """Types and shapes of the values of all graphs and subgraphs; what is not known is left out. The model stays as it is.

    Args:
        model: Any model, sorted.
        dims: Sizes of symbolic dimensions, by symbol.
        batch: Size of the inputs' first dimension where it is symbolic and not in ``dims``.
    """
    bare = skeleton(model)
    forget(bare.graph, main=True)
    sizes = _bind(bare.graph, dict(dims or {}), batch)
    found = _follow(model, bare)
    if _believe(model, bare, found, sizes):
        found = _follow(model, bare)
    return found


def _follow(model: ir.Model, bare: ir.Model) -> Facts:
    """Infer, and compute the shapes that follow, until there is no more to learn."""
    found = facts(model, bare)
    for _ in range(_ROUNDS - 1):
        if not _settle(model, bare, found):
            break
        found = facts(model, bare)
    return found


def _bind(graph: ir.Graph, sizes: dict[str, int], batch: int) -> dict[str, int]:
    """Give symbolic dimensions of the inputs their sizes, which are returned; a symbol means the same everywhere."""
    for value in graph.inputs:
        first = value.shape[0] if value.shape is not None and len(value.shape) else 1
        if isinstance(first, ir.SymbolicDim):
            if first.value is None:
                value.shape = ir.Shape([batch, *(value.shape or ())[1:]])
            else:
                sizes.setdefault(first.value, batch)
    for value in graph.inputs:
        value.shape = _sized(value.shape, sizes)
    return sizes


def _believe(model: ir.Model, bare: ir.Model, found: Facts, sizes: Mapping[str, int]) -> bool:
    """Put what the file states into the skeleton where inference knows too little; whether there was anything."""
    believed = False
    for graph, twin in zip(model.graphs(), bare.graphs(), strict=True):
        for value, value_twin in zip(produced(graph), produced(twin), strict=True):
            known = found.get(value)
            if value.shape is None or value.type is None or (known and known.shape is not None and known.shape.is_static()):
                continue
            if not value_twin.is_graph_input() or graph is not model.graph:
                value_twin.type, value_twin.shape = value.type, _sized(value.shape, sizes)
                believed = True
    return believed


def _sized(shape: ir.Shape | None, sizes: Mapping[str, int]) -> ir.Shape | None:
    return None if shape is None else ir.Shape([_size(dim, sizes) for dim in shape])


def _size(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | ir.SymbolicDim:
    if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
        return sizes.get(dim.value, dim)
    return dim


def _settle(model: ir.Model, bare: ir.Model, found: Facts) -> bool:
    """Compute the small integers that follow from what is known, in the skeleton; whether there were any."""
    opset = model.opset_imports.get("", 1)
    settled = False
    for node, twin in zip(model.graph.all_nodes(), bare.graph.all_nodes(), strict=True):
        if node.domain or not node.outputs or not twin.outputs[0].uses() or twin.outputs[0].is_graph_output():
            continue
        array = _value(node, twin, opset, found)
        if array is None or array.nbytes > SMALL_BYTES:
            continue
        graph, tensor = twin.graph, ir.tensor(array)
        assert graph is not None
        constant = ir.Value(name=f"{node.outputs[0].name} settled", type=ir.TensorType(tensor.dtype), const_value=tensor)
        constant.shape = ir.Shape(array.shape)
        graph.register_initializer(constant)
        twin.outputs[0].replace_all_uses_with(constant)
        settled = True
    return settled


def _value(node: ir.Node, twin: ir.Node, opset: int, found: Facts) -> np.ndarray | None:
    """What the node gives, where it is a Shape or the inputs of its twin in the skeleton are small constants."""
    if node.op_type == "Shape":
        known = found.get(node.inputs[0]) if node.inputs[0] is not None else None
        if known is None or known.shape is None or not known.shape.is_static():
            return None
        dims = np.array(known.shape.numpy(), np.int64)
        return dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
    arrays = [_small_constant(value) for value in twin.inputs]
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


def _small_constant(value: ir.Value | None) -> np.ndarray | None:
    producer = None if value is None else value.producer()
    tensor = None if value is None or not value.is_initializer() else value.const_value
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        tensor = producer.attributes["value"].as_tensor()
    if tensor is None or tensor.nbytes > SMALL_BYTES or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()
