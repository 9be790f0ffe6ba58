"""Keep names unambiguous after rewiring.

A name inside a subgraph hides the same name of a graph around it. Once the subgraph captures another value than before, or
an outer value was renamed, that name may hide the wrong thing. So values of subgraphs whose names occur in a graph
around them get new ones. The names of the main graph and of functions' inputs and outputs stay.
"""

from __future__ import annotations

import copy
from collections import Counter

import onnx_ir as ir

from graphopt.shapes import defined, subgraphs

from .graph import Root


def make_unambiguous(root: Root) -> None:
    """Rename values of subgraphs that have the name of a value in a graph around them."""
    _rename(root, root.graph, Counter())


def _rename(root: Root, graph: ir.Graph, around: Counter[str | None]) -> None:
    """``around``: the names in all graphs around this one."""
    values = defined(graph)
    for value in values:
        if around[value.name]:
            if value.const_value is not None:
                value.const_value = own(value.const_value)
            value.name = root.new_name(value.name or "value")
    names = [value.name for value in values]
    around.update(names)
    for node in graph:
        for subgraph in subgraphs(node):
            _rename(root, subgraph, around)
    around.subtract(names)


def own(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor with the same contents: renaming a value renames its tensor, which other models may share."""
    if isinstance(tensor, ir.TensorProtoTensor):
        return ir.Tensor(
            tensor.numpy(),
            tensor.dtype,
            shape=tensor.shape,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
    return copy.copy(tensor)
