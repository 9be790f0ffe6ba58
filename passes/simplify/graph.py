"""The graph as the steps of this family see it, and the few edits that they make, each leaving the bookkeeping right.

A model has several roots: its main graph and the body of each function. A root's nodes include those of the subgraphs
in If, Loop and Scan, where a value of an outer graph may be used (captured) at any depth.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import walk
from graphopt.graphs import INITIALIZERS_NEED_NO_INPUT, annotated_names, constant, site
from graphopt.model.weights import Listed, weight_bytes
from graphopt.shapes import Facts, Reads, shape_of
from graphopt.walk import defined, subgraphs

if TYPE_CHECKING:
    from .symbolic import Symbolic


@dataclass(frozen=True)
class Root:
    """The main graph or the body of a function, as it was before a step: a step that changes it ends it."""

    graph: ir.Graph
    opsets: Mapping[str, int]
    initializers: bool
    """Whether constants may be initializers; else they must be Constant nodes (functions, old IR versions)."""
    subgraphs: Mapping[ir.Node, Sequence[ir.Graph]]
    """Those of each node that has some, a node before those in its subgraphs, and of nodes that are gone."""
    taken: dict[tuple[ir.Graph, str], set[str]]
    """The names of all values and of all nodes that there have been since they were first asked for."""

    @cached_property
    def homes(self) -> dict[ir.Node, ir.Graph]:
        """Every node, each before those of its subgraphs, with the graph that it was in when a step first asked."""
        homes: dict[ir.Node, ir.Graph] = {}
        self._list(self.graph, homes)
        return homes

    @cached_property
    def nodes(self) -> Sequence[ir.Node]:
        """Every node, each before those of its subgraphs, as they were when a step first asked."""
        return [*self.homes]

    @cached_property
    def graphs(self) -> Sequence[ir.Graph]:
        """The graph and all its subgraphs, each before its own."""
        return [self.graph, *(graph for node, inner in self.subgraphs.items() if node in self.homes for graph in inner)]

    @cached_property
    def members(self) -> Mapping[ir.Graph, Sequence[ir.Node]]:
        """The nodes of the graph and of each subgraph, as they were when a step first asked."""
        if not self.subgraphs:
            return {self.graph: self.nodes}
        members: dict[ir.Graph, list[ir.Node]] = {graph: [] for graph in self.graphs}
        for node, home in self.homes.items():
            members[home].append(node)
        return members

    def forget(self, gone: Iterable[ir.Node]) -> None:
        """Take note that nodes were removed."""
        for node in gone:
            self.homes.pop(node, None)
        for listed in ("nodes", "graphs", "members"):
            self.__dict__.pop(listed, None)

    def _list(self, graph: ir.Graph, homes: dict[ir.Node, ir.Graph]) -> None:
        found = [*graph]
        if not self.subgraphs or self.subgraphs.keys().isdisjoint(found):
            homes.update(dict.fromkeys(found, graph))
            return
        for node in found:
            homes[node] = graph
            for subgraph in self.subgraphs.get(node, ()):
                self._list(subgraph, homes)

    @property
    def names(self) -> set[str]:
        """The names of all values, and of some that are gone; who gives a new name adds it."""
        if (self.graph, "values") not in self.taken:
            self.taken[self.graph, "values"] = {v.name for item in self.members.items() for v in defined(*item) if v.name}
        return self.taken[self.graph, "values"]

    def new_name(self, name: str) -> str:
        """``name`` with a number that makes it new in the whole root."""
        return _numbered(name, self.names)

    def new_node_name(self, name: str) -> str:
        """``name`` with a number that no node has yet."""
        if (self.graph, "nodes") not in self.taken:
            self.taken[self.graph, "nodes"] = {node.name for node in self.nodes if node.name}
        return _numbered(name, self.taken[self.graph, "nodes"])

    @cached_property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return self.opsets.get("", self.opsets.get("ai.onnx", 1))


def _numbered(name: str, taken: set[str]) -> str:
    number = 1
    while (new := f"{name}_{number}") in taken:
        number += 1
    taken.add(new)
    return new


@dataclass
class Work:
    """What the steps share during one run of the pass."""

    model: ir.Model
    excluded: Callable[[str], bool]
    """Whether the user asked to leave the node or the initializer of this name alone."""
    subgraphs: Mapping[ir.Node, Sequence[ir.Graph]]
    """Those of each node that has some, in functions too, and of nodes that are gone; no step makes a new one."""
    weight_limit: int
    """The bytes that all weights may have in the end."""
    spare: int = 0
    """By how many bytes they may still grow at least, but for the little that steps other than ``fold`` add."""
    facts: Facts = field(default_factory=dict)
    """What is known of types and shapes; stays right while the graph is rewired."""
    declined: dict[ir.Node, str] = field(default_factory=dict)
    """Nodes that could be computed ahead of time but were not, and why."""
    excludes: bool = True
    """Whether the user asked to leave anything alone."""
    compared: dict[ir.Value, tuple[ir.Graph, Hashable]] = field(default_factory=dict)
    """The initializers when they were last compared, each with the graph that it was in, and what it could be equal to."""
    near: Sequence[ir.Node] | None = None
    """Where a step needs to look, in order: close to what has changed since it did; None is everywhere."""
    inferred: bool = False
    """Whether the facts are what inference says of the graph as it is."""
    inferred_from: Reads = field(default_factory=dict)
    """What the nodes of the main graph read when types and shapes were last inferred."""
    learnt: set[ir.Node] | None = field(default_factory=set)
    """The nodes of whose outputs inference says something else than before, since somebody asked; None is all."""
    symbolic: Symbolic | None = None
    """What is known of the main graph as it is, when a step has asked."""
    _taken: dict[tuple[ir.Graph, str], set[str]] = field(default_factory=dict)

    @cached_property
    def _has_annotations(self) -> bool:
        return bool(annotated_names(self.model))

    def annotated_names(self) -> set[str]:
        """Names of initializers that quantization annotations refer to: used, though by no node."""
        return annotated_names(self.model) if self._has_annotations else set()

    @cached_property
    def roots(self) -> Sequence[Root]:
        """The main graph and the functions."""
        model, shared = self.model, (self.subgraphs, self._taken)
        main = Root(model.graph, model.opset_imports, (model.ir_version or 0) >= INITIALIZERS_NEED_NO_INPUT, *shared)
        return [main, *(Root(f.graph, f.opset_imports, False, *shared) for f in model.functions.values())]

    def changed(self, *, neutral: bool = False) -> None:
        """Take note that a step has changed the model; ``neutral``: inference says the same of all that is left."""
        self.__dict__.pop("roots", None)
        self.inferred &= neutral

    def room(self, wanted: int) -> int:
        """By how many bytes the weights may grow; they are counted only where ``wanted``, which is taken, may not fit."""
        if 2 * wanted > self.spare:
            self.spare = max(0, self.weight_limit - weight_bytes(self.model))
        found = self.spare
        self.spare -= max(0, min(wanted, found))
        return found

    def operators(self, root: Root, op_types: Container[str]) -> Iterator[ir.Node]:
        """The nodes of these types that may be rewritten, in order, but for those that are removed on the way."""
        where = root.nodes if self.near is None else self.near
        if self.near is not None and self.model.functions:
            where = [node for node in where if node in root.homes]
        kinds = self._kinds
        chosen = [node for node in where if kinds[node] in op_types]
        return (node for node in chosen if node.graph is not None)

    @cached_property
    def _kinds(self) -> Mapping[ir.Node, str | None]:
        return _Kinds(self)

    def is_operator(self, node: ir.Node) -> bool:
        """Whether the node is one of ONNX's own operators that may be rewritten: no function call, not excluded."""
        if node.domain != "" or (self.model.functions and node.op_identifier() in self.model.functions):
            return False
        return not (self.excludes and self.excluded(site(node)))

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of a tensor, where it is known for certain."""
        known = self._known(value)
        return known.type.dtype if known is not None and isinstance(known.type, ir.TensorType) else None

    def dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The dimensions of a tensor, where all are fixed and known for certain."""
        known = self._known(value)
        if known is None or known.shape is None or not isinstance(known.type, ir.TensorType) or not known.shape.is_static():
            return None
        return known.shape.dims  # type: ignore[return-value]  # ints, for it is static

    def _known(self, value: ir.Value | None) -> ir.TypeAndShape | None:
        if value is None:
            return None
        known = self.facts.get(value)
        if known is None and value.const_value is not None and not value.is_graph_input():  # new since inference ran
            return ir.TypeAndShape(value.type, value.shape)
        return known

    def agrees(self, value: ir.Value, tensor: ir.TensorProtocol) -> bool:
        """Whether a tensor has the type and the dimensions that are known of a value."""
        dtype, dims = self.dtype(value), self.dims(value)
        return dtype in {None, tensor.dtype} and (dims is None or dims == tuple(tensor.shape.numpy()))


def subgraphs_of(found: Listed) -> Mapping[ir.Node, Sequence[ir.Graph]]:
    """The subgraphs of each node that has some, of all graphs of a model."""
    return {node: inner for _, nodes in found for node in nodes if (inner := subgraphs(node))}


class _Kinds(dict[ir.Node, str | None]):
    """The types of operators that may be rewritten, and None for other nodes; found out when it is first asked."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work
        self._plain = not work.excludes and not work.model.functions

    def __missing__(self, node: ir.Node) -> str | None:
        kind = self[node] = node.op_type if node.domain == "" and (self._plain or self._work.is_operator(node)) else None
        return kind


def output_position(value: ir.Value) -> int | None:
    """Where the value stands among its graph's outputs; None if nowhere, or in more places than one."""
    if not value.is_graph_output() or value.graph is None:
        return None
    places = [index for index, output in enumerate(value.graph.outputs) if output is value]
    return places[0] if len(places) == 1 else None


def can_replace(old: ir.Value, new: ir.Value) -> bool:
    """Whether ``replace`` can be called: an output of a graph can only be taken over by a node's output of that very graph."""
    if not old.is_graph_output():
        return True
    producer, graph = new.producer(), old.graph
    return output_position(old) is not None and producer is not None and producer.graph is graph and not new.is_graph_output()


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let everything that used ``old`` use ``new``, which has the same contents.

    Where ``old`` is an output of its graph, ``new`` takes its place with its name, type and shape: those are a contract. The
    caller has asked ``can_replace``, and removes the node that gave ``old``.
    """
    position = output_position(old)
    if position is not None:
        assert old.graph is not None
        old.graph.outputs[position] = new
        name, old.name = old.name, None
        new.name, new.type, new.shape = name, old.type, old.shape
        new.doc_string = old.doc_string or new.doc_string
        new.metadata_props.update(old.metadata_props)
    old.replace_all_uses_with(new)


def put_constant(root: Root, outputs: Sequence[ir.Value], tensor: ir.TensorProtocol, home: ir.Graph) -> None:
    """Let a constant take the place of outputs that all have its contents. The caller removes their nodes.

    It becomes one initializer of the graph ``home``; where that cannot be, one Constant node for each.
    """
    inside = [output for output in outputs if root.initializers and not output.is_graph_output()]
    if inside:
        name = inside[0].name or "constant"
        if inside[0].graph is not home:
            name = root.new_name(name)
        new = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape_of(tensor), const_value=tensor)
        home.register_initializer(new)
        for output in inside:
            output.replace_all_uses_with(new)
    for output in outputs:
        if output.is_graph_output() or not root.initializers:
            _put_node(output, tensor)


def _put_node(output: ir.Value, tensor: ir.TensorProtocol) -> None:
    node = output.producer()
    assert node is not None
    assert node.graph is not None
    graph, position = node.graph, output_position(output)
    new = ir.Value(name=output.name, type=ir.TensorType(tensor.dtype), shape=shape_of(tensor))
    producer = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[new], name=f"{output.name}_constant")
    graph.insert_before(node, producer)
    if position is None:
        output.replace_all_uses_with(new)
    else:
        replace(output, new)


def remove(nodes: Sequence[ir.Node]) -> None:
    """Remove nodes that only each other use, and all that is in their subgraphs: what these captured may be dead then."""
    by_graph: dict[ir.Graph, list[ir.Node]] = {}
    for node in nodes:
        detach(node)
        assert node.graph is not None
        by_graph.setdefault(node.graph, []).append(node)
    for graph, members in by_graph.items():
        graph.remove(members, safe=True)


def detach(node: ir.Node) -> None:
    """Let a node that is to be removed, and all that is in its subgraphs, read nothing any more."""
    for subgraph in subgraphs(node):
        for inner in walk.nodes(subgraph):
            inner.resize_inputs(0)
    node.resize_inputs(0)


def may_end_normalization(vector: ir.TensorProtocol, value: ir.Value) -> bool:
    """Whether the operation of a vector on a value may be the end of a normalization that is written out.

    Runtimes know those by their ends: ``fuse``, which knows them too, decides whether one that changes nothing goes.
    """
    producer = value.producer()
    if vector.size <= 1 or producer is None or producer.op_type not in {"Div", "Mul"}:
        return False
    factors = [tensor for tensor in map(constant, producer.inputs) if tensor is not None]
    return all(tensor.size > 1 for tensor in factors)
