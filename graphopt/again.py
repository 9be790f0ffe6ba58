"""Which nodes inference has to look at again, when it has looked at the graph before.

    n            if n is new or reads something else than before, or reads what such a node gives that is not settled, or
                 nothing was found out
    m            if it gives what n reads and computes with: shapes are computed from integers
    all others   give what is known of their outputs; where such a value is read, that is all there is to say of it

A value is settled if it holds floats and all its dimensions are known: what inference follows of contents are integers.
A node of a subgraph goes with the node that has the subgraph, and that is looked at every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import onnx_ir as ir

from . import walk

Facts = dict[ir.Value, ir.TypeAndShape]
Reads = dict[ir.Node, Sequence[ir.Value | None]]
"""What each node reads; the very tuple, which is replaced when that changes."""


def again(graph: ir.Graph, known: Mapping[ir.Value, ir.TypeAndShape], before: Reads) -> tuple[list[ir.Node], Facts]:
    """The nodes of a graph to look at, in order; and what is known of the values that the others give.

    Args:
        graph: The main graph, sorted.
        known: What is known of its values: all that could be found out when the nodes read what ``before`` says.
        before: What nodes of this graph, not of its subgraphs, read when inference was last run.
    """
    nodes, needed = [*graph], set[ir.Node]()
    unsettled: set[ir.Value | None] = set()
    for node in nodes:
        inputs, outputs = node.inputs, node.outputs
        branching = node.op_type in walk.BRANCHING or node.domain
        is_told = (
            node in before and before[node] is inputs and unsettled.isdisjoint(inputs) and not known.keys().isdisjoint(outputs)
        )
        if branching or not is_told:
            found = [value for value in outputs if not _is_settled(known.get(value))]
            if found or branching:
                needed.add(node)
                unsettled.update(found)
    for node in reversed(nodes):
        for value in _reads(node) if node in needed else ():
            producer = None if value is None or value in unsettled else value.producer()
            if value is not None and producer is not None and _may_be_followed(producer, known.get(value)):
                needed.add(producer)
    others = (value for node in nodes if node not in needed for value in node.outputs)
    return [node for node in nodes if node in needed], {value: known[value] for value in others if value in known}


def is_known(known: ir.TypeAndShape | None) -> bool:
    """Whether of a value everything is known: its type, and of each dimension the size or a symbol."""
    if known is None or known.shape is None:
        return False
    return None not in [dim.value for dim in known.shape.dims if not isinstance(dim, int)]


def _is_settled(known: ir.TypeAndShape | None) -> bool:
    return is_known(known) and _is_float(known)


def _is_float(known: ir.TypeAndShape | None) -> bool:
    return known is not None and isinstance(known.type, ir.TensorType) and known.type.dtype.is_floating_point()


def _may_be_followed(node: ir.Node, known: ir.TypeAndShape | None) -> bool:
    """Whether inference may follow the contents of what a node gives; of floats it knows constants."""
    return not _is_float(known) or node.op_type == "Constant"


def _reads(node: ir.Node) -> Iterable[ir.Value | None]:
    """What a node and those of its subgraphs read."""
    graphs = walk.subgraphs(node)
    return chain(node.inputs, *(inner.inputs for graph in graphs for inner in walk.nodes(graph))) if graphs else node.inputs
