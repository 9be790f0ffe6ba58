"""Walks over graphs and the subgraphs in their nodes: branches of If, bodies of Loop and Scan.

The same as onnx-ir's own iterators give, at a fraction of their time; every pass walks every graph many times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS
BRANCHING = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""ONNX's own operators that have graphs; those of other domains may have what they like."""


def subgraphs(node: ir.Node) -> Sequence[ir.Graph]:
    """The graphs in a node's attributes."""
    if not (node.op_type in BRANCHING or node.domain):
        return ()
    found: list[ir.Graph] | None = None
    for attribute in node.attributes.data.values():
        kind = attribute.type
        if (kind is _GRAPH or kind is _GRAPHS) and not attribute.is_ref():
            inner = [attribute.value] if kind is _GRAPH else attribute.value
            found = [*inner] if found is None else [*found, *inner]
    return found or ()


def nodes(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Every node, each before those of its subgraphs; nodes may be inserted and removed on the way."""
    for node in graph:
        yield node
        if node.op_type in BRANCHING or node.domain:
            for subgraph in subgraphs(node):
                yield from nodes(subgraph)


def graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """A graph and all its subgraphs, each before its own."""
    return (inner for inner, _ in listed(graph))


def listed(graph: ir.Graph) -> Iterator[tuple[ir.Graph, Sequence[ir.Node]]]:
    """A graph and all its subgraphs, each before its own, with the nodes that it has: to go over a graph's nodes takes time."""
    found = [*graph]
    yield graph, found
    for node in found:
        if node.op_type in BRANCHING or node.domain:
            for subgraph in subgraphs(node):
                yield from listed(subgraph)


def defined(graph: ir.Graph, found: Sequence[ir.Node] | None = None) -> list[ir.Value]:
    """The values that a graph itself defines, each once; outputs that are left out have no name and are not among them.

    ``found`` are its nodes, where they are listed already.
    """
    outputs = (output for node in (graph if found is None else found) for output in node.outputs)
    return [*dict.fromkeys(value for value in (*graph.inputs, *graph.initializers.data.values(), *outputs) if value.name)]
