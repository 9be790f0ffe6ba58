"""Compute equal things once (common subexpression elimination).

    y1 = f(x; a), y2 = f(x; a)   ->   every use of y2 becomes a use of y1

Two nodes are equal when operator, inputs (the very same values), attributes (to the bit: 0.0 is not -0.0, a NaN equals
itself) and the set of outputs that they give are the same. The first one must be visible where the second one is: earlier
in the same graph, or in a graph around it. Left as they are:

    random operators and Dropout in whatever mode; nodes with subgraphs; calls of functions; operators of other domains
    QuantizeLinear and DequantizeLinear: runtimes look for one of them at each input
    a node whose output is an output of its graph, unless the first node's output can take that place
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import site
from graphopt.model.weights import tensor_bytes

from .graph import Root, Work, can_replace, remove, replace

_RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_Seen = tuple[dict[Hashable, ir.Node], ...]
"""What is visible, by graph, the outermost first."""
_COMPARED_BYTES = 4096
"""Tensors in attributes are compared up to this size."""


def merge_equal_nodes(work: Work) -> list[Change]:
    """Merge equal nodes, in every graph."""
    changes: list[Change] = []
    for root in work.roots:
        _merge(work, root, root.graph, ({},), changes)
    return changes


def _merge(work: Work, root: Root, graph: ir.Graph, seen: _Seen, changes: list[Change]) -> None:
    for node in root.members[graph]:
        inner = root.subgraphs.get(node, ())
        for subgraph in inner:
            _merge(work, root, subgraph, (*seen, {}), changes)
        alike = _first(seen, (node.op_type, node.inputs), node)  # nearly all nodes differ in this already
        if alike is node or inner or not node.outputs or not work.is_operator(node):
            continue
        if node.op_type in _QUANTIZERS or not _is_deterministic(node.op_type, root.opset):
            continue
        key, other = _key(node), _key(alike) if work.is_operator(alike) else None
        if key is None:
            continue
        if other is not None:
            _first(seen, other, alike)
        first = _first(seen, key, node)
        pairs = [(a, b) for a, b in zip(node.outputs, first.outputs, strict=True) if a.name]
        if first is node or not all(can_replace(old, new) for old, new in pairs):
            continue
        changes.append(Change(site(node), f"merged into {site(first)}", f"both compute the same {node.op_type}"))
        for old, new in pairs:
            replace(old, new)
        remove([node])


def _first(seen: _Seen, key: Hashable, node: ir.Node) -> ir.Node:
    """The first node of this key; from now on that is ``node``, if there was none."""
    for outer in seen[:-1]:
        if key in outer:
            return outer[key]
    return seen[-1].setdefault(key, node)


@cache
def _is_deterministic(op_type: str, opset: int) -> bool:
    """Whether the operator gives the same outputs for the same inputs; one that ONNX does not know may do anything."""
    return op_type not in _RANDOM and bool(onnx.defs.has(op_type, opset, ""))


def _key(node: ir.Node) -> Hashable | None:
    """What equal nodes have in common; None for a node that cannot be compared."""
    attributes = []
    for name, attribute in sorted(node.attributes.data.items()):
        value = _comparable(attribute)
        if value is None:
            return None
        attributes.append((name, attribute.type, value))
    given = tuple(bool(output.name) for output in node.outputs)
    return node.op_identifier(), node.inputs, given, tuple(attributes)


def _comparable(attribute: ir.Attr) -> Hashable | None:
    """The value of an attribute to the bit; None for graphs, large tensors and whatever else cannot be compared."""
    if attribute.is_ref():
        return ("reference", attribute.ref_attr_name)
    if attribute.type in {ir.AttributeType.FLOAT, ir.AttributeType.FLOATS}:
        numbers = [attribute.as_float()] if attribute.type == ir.AttributeType.FLOAT else attribute.as_floats()
        return np.asarray(numbers, np.float32).tobytes()  # as the file will hold them, whatever a pass wrote
    if attribute.type in {ir.AttributeType.INT, ir.AttributeType.STRING}:
        return (attribute.value,)
    if attribute.type in {ir.AttributeType.INTS, ir.AttributeType.STRINGS}:
        return tuple(attribute.value)
    if attribute.type == ir.AttributeType.TENSOR:
        return _contents(attribute.value)
    return None


def _contents(tensor: ir.TensorProtocol) -> Hashable | None:
    if tensor.dtype == ir.DataType.STRING or tensor_bytes(tensor) > _COMPARED_BYTES:
        return None
    return tensor.dtype, tensor.shape.numpy(), tensor.tobytes()
