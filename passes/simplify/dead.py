"""Remove what nobody uses.

    nodes        none of whose outputs is used or an output of a graph
    outputs      optional ones that a runtime would compute in vain: indices of MaxPool, states of LSTM, ...
    initializers that no node uses, unless they are inputs (a caller may set them) or outputs too
    functions    that no node calls

Inputs of the model stay, used or not. Operators of domains that are not known to be free of effects stay as well, and so do
calls of functions that contain one.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graphopt import walk
from graphopt.contracts import Change
from graphopt.graphs import site

from .graph import Root, Work, detach, remove

_WITHOUT_EFFECTS = frozenset({"", "ai.onnx.ml", "com.microsoft"})
_OPTIONAL_OUTPUTS = {"Dropout": 1, "GRU": 0, "LSTM": 0, "LayerNormalization": 1, "MaxPool": 1, "RNN": 0}
"""The first optional output of operators that compute the same without it."""


def remove_dead(work: Work) -> list[Change]:
    """Remove dead nodes, outputs, initializers and functions."""
    changes: list[Change] = []
    effects = _functions_with_effects(work.model)
    for root in work.roots:
        _sweep(work, root, root.graph, effects, changes)
    changes += remove_initializers(work, initializers(work), work.annotated_names())
    changes += _remove_functions(work.model)
    return changes


def remove_dead_nodes(work: Work, nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """Remove those of the nodes that are dead, and those that only they used: all that went."""
    dead: dict[ir.Node, None] = {}
    effects, waiting = _functions_with_effects(work.model), [*nodes]
    while waiting:
        node = waiting.pop()
        if node in dead or node.graph is None or not _is_dead(work, node, effects):
            continue
        if work.excludes and work.excluded(site(node)):
            continue
        waiting += [producer for value in node.inputs if value is not None and (producer := value.producer()) is not None]
        detach(node)
        dead[node] = None
    remove([*dead])
    return [*dead]


def removals(dead: Iterable[ir.Node]) -> list[Change]:
    """What is said of nodes that were removed because nothing uses them."""
    why = "nothing uses its outputs"
    return [Change(site(node), f"removed {node.op_type}", why) for node in dead if node.op_type != "Constant"]


def _sweep(work: Work, root: Root, graph: ir.Graph, effects: set[ir.OperatorIdentifier], changes: list[Change]) -> None:
    """Remove the dead nodes of a graph, last first."""
    for node in reversed(root.members[graph]):
        if work.excludes and work.excluded(site(node)):
            continue
        if _is_dead(work, node, effects):
            changes += removals([node])
            remove([node])
            work.changed(neutral=True)  # nothing is said of a Constant, but the nodes have to be listed anew
            continue
        if node.op_type in _OPTIONAL_OUTPUTS and work.is_operator(node):
            changes += _drop_outputs(node)
        for subgraph in root.subgraphs.get(node, ()):
            _sweep(work, root, subgraph, effects, changes)


def _is_dead(work: Work, node: ir.Node, effects: set[ir.OperatorIdentifier]) -> bool:
    for output in node.outputs:  # asked of every node in every round: a loop takes half the time of any()
        if output.uses() or output.is_graph_output():
            return False
    identifier = node.op_identifier()
    return identifier not in effects if identifier in work.model.functions else node.domain in _WITHOUT_EFFECTS


def initializers(work: Work) -> list[ir.Value]:
    """Those of all graphs."""
    return [value for root in work.roots for graph in root.graphs for value in graph.initializers.data.values()]


def remove_initializers(work: Work, values: Iterable[ir.Value], kept: set[str]) -> list[Change]:
    """Remove those of the initializers that nothing uses; names in ``kept`` stay."""
    changes = []
    for value in values:
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        name, graph = value.name or "", value.graph
        if graph is not None and name not in kept and not work.excluded(name):
            changes.append(Change(name, "removed the initializer", "nothing uses it"))
            del graph.initializers[name]
    return changes


def _drop_outputs(node: ir.Node) -> list[Change]:
    first = _OPTIONAL_OUTPUTS[node.op_type]
    dropped = [o for o in node.outputs[first:] if o.name and not o.uses() and not o.is_graph_output()]
    changes = [Change(site(node), f"dropped the output {output.name}", "nothing uses it") for output in dropped]
    for output in dropped:
        output.name = ""
    count = len(node.outputs)
    while count and not node.outputs[count - 1].name:
        count -= 1
    if dropped:
        node.resize_outputs(count)
    return changes


def _functions_with_effects(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """Functions that contain, at any depth, an operator that is not known to be free of effects."""
    found: set[ir.OperatorIdentifier] = set()
    known = model.functions
    while True:
        more = {
            identifier
            for identifier, function in known.items()
            if identifier not in found
            and any(
                node.op_identifier() in found or (node.domain not in _WITHOUT_EFFECTS and node.op_identifier() not in known)
                for node in walk.nodes(function)
            )
        }
        if not more:
            return found
        found |= more


def _remove_functions(model: ir.Model) -> list[Change]:
    if not model.functions:
        return []
    reached: set[ir.OperatorIdentifier] = set()
    waiting = [*walk.nodes(model.graph)]
    while waiting:
        identifier = waiting.pop().op_identifier()
        if identifier in model.functions and identifier not in reached:
            reached.add(identifier)
            waiting += walk.nodes(model.functions[identifier])
    unused = [identifier for identifier in model.functions if identifier not in reached]
    for identifier in unused:
        del model.functions[identifier]
    return [Change(f"{domain}.{name}", "removed the function", "nothing calls it") for domain, name, _ in unused]
