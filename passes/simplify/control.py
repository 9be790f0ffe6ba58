"""Take apart control flow whose way is known, and calls of functions.

    If(true)            ->   the nodes of its then-branch; of its else-branch for false
    If(c), a branch of which would make the run fail (``ranks.py``)   ->   the nodes of the other one
    Loop, 0 times       ->   outputs are the initial values
    Loop, once          ->   the nodes of its body, with i = 0 and the initial values; scanned outputs get an axis
    f(x), f in the file ->   the nodes of f, its attributes filled in

What moves into the graph around it gets new names where its own are taken; values captured from graphs around stay the same.
How often a Loop runs is known where the trip count is a constant, and the condition before it too if there is one; a trip count
of 1 is once, whatever the condition is at the end. Left as they are: a Loop of no trips whose scanned output is used, and
functions that import another version of an operator set than the model, that take graphs as attributes, that hand on an input
as it is, that call themselves, or of which the user excluded a call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.contracts import Change
from graphopt.graphs import constant, site
from graphopt.model import nodes as all_nodes
from graphopt.model.weights import listed

from .graph import Root, Work, can_replace, output_position, remove, replace, subgraphs_of
from .names import own
from .ranks import only_branch

_FIRST_AXES_INPUT = 13
"""From this version on, Unsqueeze takes its axes as an input."""


def inline_functions(work: Work) -> list[Change]:
    """Replace calls of the model's functions by what they compute."""
    model = work.model
    if not model.functions:
        return []
    chosen = _inlinable(work)
    calls = [node for node in all_nodes(model) if node.op_identifier() in chosen]
    changes = [Change(site(node), f"replaced the call of {node.op_type} by its nodes", "it is in the file") for node in calls]
    if calls:
        common.InlinePass(lambda function: function.identifier() in chosen)(model)
        work.subgraphs = subgraphs_of(listed(model))
    return changes


def _inlinable(work: Work) -> set[ir.OperatorIdentifier]:
    """Functions all of whose calls can be replaced."""
    functions = work.model.functions
    chosen = {name for name, function in functions.items() if _is_plain(function, work.model.opset_imports)}
    for node in all_nodes(work.model):
        name = node.op_identifier()
        if name in chosen and (work.excluded(site(node)) or not _is_plain_call(node, functions[name])):
            chosen.discard(name)
    while True:  # nothing is replaced in the bodies of functions that stay, which may import other versions
        called = {n.op_identifier() for name, f in functions.items() if name not in chosen for n in f.all_nodes()}
        if not called & chosen:
            break
        chosen -= called
    return set() if _is_recursive(work.model) else chosen


def _is_plain(function: ir.Function, opsets: Mapping[str, int]) -> bool:
    made = {output for node in function for output in node.outputs}
    return (
        all(opsets.get(domain, version) == version for domain, version in function.opset_imports.items())
        and all(output in made for output in function.outputs)
        and len(set(function.outputs)) == len(function.outputs)
    )


def _is_plain_call(node: ir.Node, function: ir.Function) -> bool:
    graphs = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
    return (
        len(node.outputs) == len(function.outputs)
        and all(
            output.name and (not output.is_graph_output() or output_position(output) is not None) for output in node.outputs
        )
        and not any(attribute.type in graphs for attribute in node.attributes.values())
    )


def _is_recursive(model: ir.Model) -> bool:
    calls = {
        name: {node.op_identifier() for node in function.all_nodes()} & model.functions.keys()
        for name, function in model.functions.items()
    }
    while calls:
        leaves = {name for name, called in calls.items() if not called & calls.keys()}
        if not leaves:
            return True
        calls = {name: called for name, called in calls.items() if name not in leaves}
    return False


@dataclass(frozen=True)
class _Names:
    """How often a name is used in a root, also where one hides the other; counted when the first subgraph is taken apart."""

    root: Root

    @cached_property
    def values(self) -> Counter[str | None]:
        """Those of values."""
        held = [value for graph in self.root.graphs for value in (*graph.inputs, *graph.initializers.data.values())]
        names = [value.name for value in held] + [output.name for node in self.root.nodes for output in node.outputs]
        self.root.names.update(filter(None, names))  # now: what is being moved is in no graph for a while
        return Counter(names)

    @cached_property
    def nodes(self) -> Counter[str | None]:
        """Those of nodes."""
        return Counter(node.name for node in self.root.nodes)

    def new_node(self, name: str) -> str:
        """``name`` with a number that makes it new."""
        number = 1
        while (new := f"{name}_{number}") in self.nodes:
            number += 1
        self.nodes[new] += 1
        return new


def inline_control_flow(work: Work) -> list[Change]:
    """Take apart If and Loop in every graph."""
    changes: list[Change] = []
    for root in work.roots:
        found, names = [*work.operators(root, {"If", "Loop"})], _Names(root)
        for node in reversed(found):  # inner ones first
            why = _if(work, root, node, names) if node.op_type == "If" else _loop(root, node, names)
            if why is not None:
                changes.append(Change(site(node), f"replaced {node.op_type} by what it computes", why))
                remove([node])
    return changes


def _if(work: Work, root: Root, node: ir.Node, names: _Names) -> str | None:
    found = _way(work, node)
    if found is None:
        return None
    chosen, why = found
    branch = node.attributes[chosen]
    if branch.is_ref() or not _has_places(root, node, branch.as_graph()):
        return None
    results = _move(root, node, branch.as_graph(), {}, names)
    _give_numbers_to_range(root, node, results)
    _put(root, node, results)
    return why


def _way(work: Work, node: ir.Node) -> tuple[str, str] | None:
    """The branch that an If takes, and why; None if it is not known."""
    condition = constant(node.inputs[0])
    if condition is None:
        return only_branch(work, node)
    chosen = "then_branch" if condition.numpy().item() else "else_branch"
    return chosen, f"its condition is constant: it always takes the {chosen.replace('_', ' ')}"


def _give_numbers_to_range(root: Root, node: ir.Node, results: Sequence[ir.Value]) -> None:
    """Let each Range that reads an output of ``node`` read a number.

    It takes nothing else by the standard, but runtimes let a list of one pass while inference cannot see that it is one:

        Range(a, If(...), b)   ->   Range(a, Squeeze(result), b)
    """
    for output, result in zip(node.outputs, results, strict=True):
        for use in [use for use in output.uses() if use.node.op_type == "Range"]:
            use.node.replace_input_with(use.idx, _insert(root, node, "Squeeze", [result]))


def _loop(root: Root, node: ir.Node, names: _Names) -> str | None:
    body, trips = node.attributes["body"], _trips(node)
    if trips is None or trips > 1 or body.is_ref() or not _has_places(root, node, body.as_graph()):
        return None
    graph, initial = body.as_graph(), [*node.inputs[2:]]
    carried = [value for value in initial if value is not None]
    scanned = node.outputs[len(initial) :]
    if len(carried) != len(initial) or len(graph.inputs) != len(initial) + 2:
        return None
    if trips == 0:
        if any(output.uses() or output.is_graph_output() for output in scanned):
            return None
        _put(root, node, carried)
        return "its trip count is 0"
    first = [_constant(root, node, np.array(0)), _constant(root, node, np.array(True))]
    results = _move(root, node, graph, dict(zip(graph.inputs, [*first, *carried], strict=True)), names)[1:]
    once = [_unsqueezed(root, node, value) for value in results[len(initial) :]]
    _put(root, node, [*results[: len(initial)], *once])
    return "its trip count is 1"


def _trips(node: ir.Node) -> int | None:
    """How often a Loop runs; None if it is not known."""
    given = [*node.inputs[:2], None, None]
    count, condition = (constant(value) for value in given[:2])
    if given[1] is not None and condition is None:
        return None
    if condition is not None and not condition.numpy().item():
        return 0
    return None if count is None else max(0, int(count.numpy().item()))


def _has_places(root: Root, node: ir.Node, graph: ir.Graph) -> bool:
    """Whether what is in a subgraph can be in the graph around it."""
    outputs = all(not output.is_graph_output() or output_position(output) is not None for output in node.outputs)
    return outputs and (root.initializers or not graph.initializers)


def _move(root: Root, node: ir.Node, graph: ir.Graph, bound: Mapping[ir.Value, ir.Value], names: _Names) -> list[ir.Value]:
    """Move what is in a subgraph before its node, inputs replaced as ``bound`` says; what became of its outputs."""
    home, taken = node.graph, names.values
    assert home is not None
    results = [bound.get(value, value) for value in graph.outputs]
    graph.outputs.clear()
    for value, new in bound.items():
        value.replace_all_uses_with(new)
        taken[value.name] -= 1
    moved, initializers = [*graph], [*graph.initializers.data.values()]
    graph.remove(moved)
    graph.initializers.clear()
    for value in (*initializers, *(output for inner in moved for output in inner.outputs)):
        if value.name and taken[value.name] > 1:
            taken[value.name] -= 1
            if value.const_value is not None:
                value.const_value = own(value.const_value)
            value.name = root.new_name(value.name)
    for inner in moved:
        if inner.name and names.nodes[inner.name] > 1:
            names.nodes[inner.name] -= 1
            inner.name = names.new_node(inner.name)
    for value in initializers:
        home.register_initializer(value)
    home.insert_before(node, moved)
    return results


def _put(root: Root, node: ir.Node, results: Sequence[ir.Value]) -> None:
    """Let values take the place of a node's outputs; by way of an Identity where a value cannot."""
    for output, result in zip(node.outputs, results, strict=False):
        if not output.name:
            continue
        if can_replace(output, result):
            replace(output, result)
        else:
            replace(output, _insert(root, node, "Identity", [result]))


def _unsqueezed(root: Root, node: ir.Node, value: ir.Value) -> ir.Value:
    if root.opset < _FIRST_AXES_INPUT:
        return _insert(root, node, "Unsqueeze", [value], [ir.AttrInt64s("axes", [0])])
    return _insert(root, node, "Unsqueeze", [value, _constant(root, node, np.array([0]))])


def _constant(root: Root, node: ir.Node, array: np.ndarray) -> ir.Value:
    return _insert(root, node, "Constant", [], [ir.AttrTensor("value", ir.Tensor(array))])


def _insert(
    root: Root, node: ir.Node, op_type: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()
) -> ir.Value:
    """The output of a new node before another one."""
    assert node.graph is not None
    new = ir.Value(name=root.new_name(f"{site(node)}_{op_type}"))
    node.graph.insert_before(node, ir.Node("", op_type, inputs, attributes, outputs=[new], name=new.name))
    return new
