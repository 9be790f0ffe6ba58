"""Into how many parts a provider cuts a model, which nodes stay behind, and why: what it costs to hand data back and forth.

A provider takes some nodes and leaves the others to the CPU. Nodes that it takes and that can run in one go are one partition:

    stage(n) = max over what n reads of  stage(p) + [the provider takes p, but not n],    0 where it reads nothing computed
    partitions = the number of different stages of the nodes that it takes

Two taken nodes of one stage never depend on each other through one that is left behind, so one subgraph can hold them all; of
two stages, one waits for the other by way of the CPU. That is how onnxruntime's compiling providers group nodes. Bodies of
If, Loop and Scan are cut by themselves, or go with their node where the provider takes it and all that is in them.

What is taken is said by the provider itself where it runs here (``from_provider``), else estimated from a table of its
operators (``estimate``, ``operators.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from . import operators, shapes, sizes, walk
from .graphs import operator, site

if TYPE_CHECKING:
    from .contracts import Partition
    from .targets import Target


@dataclass(frozen=True)
class Left:
    """A node that stays behind."""

    site: str
    operator: str
    why: str


@dataclass(frozen=True)
class Cut:
    """How a provider cuts a model."""

    target: str
    judged_by: Literal["provider", "table"]
    source: str
    """The provider, or where the table is from."""
    nodes: int
    """Nodes in all, those of bodies included; constants are none."""
    taken: int
    partitions: int
    left: Mapping[ir.Node, str]
    """Nodes that stay behind, and why."""
    notes: tuple[str, ...] = ()
    """Limits of operators in the model that were not checked."""

    @property
    def told(self) -> str:
        """In a few words."""
        parts = "1 partition" if self.partitions == 1 else f"{self.partitions} partitions"
        return f"{parts} with {len(self.left)} of {self.nodes} nodes left behind"

    @property
    def sites(self) -> list[Left]:
        """The nodes that stay behind, for people."""
        return [Left(site(node), operator(node), why) for node, why in self.left.items()]

    @property
    def reasons(self) -> list[tuple[str, str, int]]:
        """Operator, reason and number of the nodes that stay behind, the most frequent first."""
        counted = Counter((operator(node), why) for node, why in self.left.items())
        return [(name, why, number) for (name, why), number in counted.most_common()]


def estimate(model: ir.Model, target: Target, dims: Mapping[str, int] | None = None) -> Cut | None:
    """How the target's provider would cut the model, by the table of its operators; None where there is no table.

    Args:
        model: Any model, sorted.
        target: The target.
        dims: Sizes of symbolic dimensions, as if they were fixed; a first dimension that is not among them gets size 1 then.

    Raises:
        UsageError: The target names a table that there is not.
    """
    if target.operators is None:
        return None
    table = operators.load(target.operators)
    facts = sizes.infer(model, dims) if dims else shapes.infer(model)
    judge = operators.Judge(table, facts, model)
    left: dict[ir.Node, str] = {}
    partitions = _cut(model.graph, judge.why_not, left, bodies=table.bodies)
    present = {operator(node) for node in walk.nodes(model.graph)}
    noted = [
        (key, limits.note) for key, limits in table.operators.items() if limits is not None and limits.note and key in present
    ]
    nodes = sum(1 for node in walk.nodes(model.graph) if not _is_constant(node))
    return Cut(
        target=target.name,
        judged_by="table",
        source=table.source,
        nodes=nodes,
        taken=nodes - len(left),
        partitions=partitions,
        left=left,
        notes=(*([table.note] if table.note else []), *(f"{key}: {note}" for key, note in noted)),
    )


def from_provider(model: ir.Model, target: Target, assigned: Partition) -> Cut:
    """How the provider, which runs here, cuts the model.

    It names the nodes that it left; why, it does not say: where there is a table, that is asked. A node of the model that the
    runtime has replaced before it asked the provider counts as taken.

    Args:
        model: The model.
        target: The target.
        assigned: What the runtime said when it loaded the model.
    """
    behind = {name: provider for name, _, provider in assigned.left_behind}
    guess = estimate(model, target)

    def why_not(node: ir.Node) -> str | None:
        if (provider := behind.get(node.name or "")) is None:
            return None
        return (guess and guess.left.get(node)) or f"the provider left it to {provider}"

    left: dict[ir.Node, str] = {}
    partitions = _cut(model.graph, why_not, left, bodies=True) if assigned.parts is None else assigned.parts
    nodes = sum(assigned.nodes.values())
    return Cut(
        target=target.name,
        judged_by="provider",
        source=target.provider,
        nodes=nodes,
        taken=assigned.nodes.get(target.provider, 0),
        partitions=partitions if assigned.nodes.get(target.provider) else 0,
        left=left,
    )


def change(before: Cut | None, after: Cut | None) -> list[str]:
    """A sentence on what became of the partitions; none where they are not known."""
    if before is None or after is None:
        return []
    who = "its provider" if after.judged_by == "provider" else "a table of its operators"
    return [f"On {after.target}: {before.told} became {after.told}, by {who}."]


def _cut(graph: ir.Graph, why_not: Callable[[ir.Node], str | None], left: dict[ir.Node, str], *, bodies: bool) -> int:
    """Fill in what stays behind, and count the partitions; the nodes of a graph come in order of execution."""
    stages: dict[ir.Node, int] = {}
    partitions = 0
    for node in graph:
        if _is_constant(node):
            continue
        why = why_not(node)
        if why is not None:
            left[node] = why
        stages[node] = max((stages[p] + (p not in left and why is not None) for p in _reads(node) if p in stages), default=0)
        for body in walk.subgraphs(node):
            behind: dict[ir.Node, str] = {}
            if why is None or bodies:
                parts = _cut(body, why_not, behind, bodies=bodies)
                partitions += parts if why is not None or behind else 0
            else:
                inner = (each for each in walk.nodes(body) if not _is_constant(each))
                behind = {each: f"it is in a body of the {node.op_type} {site(node)!r}" for each in inner}
            left.update(behind)
    return partitions + len({stage for node, stage in stages.items() if node not in left})


def _reads(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that give what a node reads, what its bodies capture included."""
    inner = (each for body in walk.subgraphs(node) for each in walk.nodes(body))
    for each in (node, *inner):
        for value in each.inputs:
            producer = None if value is None else value.producer()
            if producer is not None:
                yield producer


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain == ""
