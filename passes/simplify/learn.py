"""Infer types and shapes, where that can tell more than what is known.

What is known of a value stays true while the graph is rewired: a rewrite keeps what a value holds, or tells its new dimensions.
So inference is run when the graph has changed, and only if there is a value of which something is unknown yet: a Reshape whose
target became constant may now have fixed dimensions.
"""

from __future__ import annotations

from graphopt.contracts import Change
from graphopt.shapes import are_fixed, infer, is_known

from .graph import Work


def learn(work: Work) -> list[Change]:
    """Infer anew if that may help. The graph stays as it is; ``work.learnt`` says what more is known of now."""
    root = work.roots[0]
    if are_fixed(root.nodes, work.facts):
        work.inferred = True  # there is nothing to add
        return []
    if all(is_known(work.facts.get(output)) for node in root.nodes for output in node.outputs if output.name):
        return []
    known, work.facts, work.inferred = work.facts, infer(work.model, work.facts, work.inferred_from), True
    work.inferred_from = {node: node.inputs for node in root.members[root.graph]}
    told = (value for value, fact in work.facts.items() if (before := known.get(value)) is not fact and before != fact)
    work.learnt = {node for value in told if (node := value.producer()) is not None} if known else None
    return []
