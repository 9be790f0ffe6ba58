"""What the removal of units saves, for each number of them: MACs, bytes of weights, and time, without building the model.

    a weight with c_1, c_2, ... of its indices along axes of sizes n_1, n_2, ... gone keeps  (1 - c_1 / n_1) (1 - c_2 / n_2) ...

of its bytes, and the node that multiplies with it as much of its MACs. Sizes count for time as if rounded up to what the target
computes at once: 17 channels take as long as 32 where that is 16. A node's time is not all in proportion to them: it is taken
to be linear between two measured points, the whole model and about half of its channels, so half of them save less than half:

    t(part) = t(1) - (1 - part) (t(1) - t(half)) / (1 - half)

What is left out saves all it takes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.axes import Group
from graphopt.contracts import Array, NodeTime
from graphopt.graphs import constant

from .blocks import Block

_FUSED = 4
"""Nodes behind a contraction that a kernel takes in at most."""


@dataclass(frozen=True)
class Saved:
    """What goes with the first n units of an order."""

    macs: float
    bytes: float
    milliseconds: float


def saved(group: Group, gone: Array, macs: Mapping[ir.Node, int], times: Mapping[ir.Node, float], width: int = 1) -> Saved:
    """What is saved when the units ``gone`` are removed; ``width``: how many channels are computed at once."""
    used: defaultdict[ir.Node, dict[tuple[ir.Value, int], Array]] = defaultdict(dict)
    for use in (*group.producers, *group.consumers):
        used[use.node][use.value, use.axis] = use.units
    held: defaultdict[ir.Value, dict[int, float]] = defaultdict(dict)
    for member in group.members:
        held[member.value][member.axis] = _left(member.units, gone)
    tensors = {value: constant(value) for value in held}
    return Saved(
        macs=sum((1 - _product(_left(u, gone) for u in parts.values())) * macs.get(n, 0) for n, parts in used.items()),
        bytes=sum((1 - _product(held[v].values())) * t.nbytes for v, t in tensors.items() if t is not None),
        milliseconds=sum(
            (1 - _product(_left(u, gone, width) for u in parts.values())) * times.get(n, 0.0) for n, parts in used.items()
        ),
    )


def in_proportion(
    times: Mapping[ir.Node, float], macs: Mapping[ir.Node, int], fewer: Mapping[str, float], fewer_macs: Mapping[str, int]
) -> dict[ir.Node, float]:
    """Milliseconds of each node that go with its MACs; all of them where there are no two points to tell.

    Args:
        times: As the model is.
        macs: As the model is.
        fewer: Milliseconds by the node's name, with channels gone.
        fewer_macs: MACs by the node's name, with channels gone.
    """
    found = dict(times)
    for node, spent in times.items():
        name, whole = node.name or "", macs.get(node, 0)
        gone = 1 - fewer_macs.get(name, whole) / whole if whole else 0.0
        if gone > 0 and name in fewer:
            found[node] = min(max((spent - fewer[name]) / gone, 0.0), spent)
    return found


def left_out(block: Block, macs: Mapping[ir.Node, int], times: Mapping[ir.Node, float]) -> Saved:
    """What is saved when a block is left out."""
    nodes = block.all
    weights = {
        value for node in nodes for value in node.inputs if value is not None and {*nodes} >= {u.node for u in value.uses()}
    }
    tensors = [tensor for value in weights if (tensor := constant(value)) is not None]
    return Saved(
        macs=sum(macs.get(node, 0) for node in nodes),
        bytes=sum(tensor.nbytes for tensor in tensors),
        milliseconds=sum(times.get(node, 0.0) for node in nodes),
    )


def _product(parts: Iterable[float]) -> float:
    return math.prod(parts)


def _left(units: Array, gone: Array, width: int = 1) -> float:
    size = len(units)
    return -(-(size - int(np.isin(units, gone).sum())) // width) / -(-size // width)


def node_times(model: ir.Model, profile: Sequence[NodeTime]) -> dict[ir.Node, float]:
    """Milliseconds by node; of a kernel that is made of several nodes, all is the one's that contracts."""
    by_name = {
        name: node for node in model.graph.all_nodes() for name in (node.name, *(out.name for out in node.outputs)) if name
    }
    times: defaultdict[ir.Node, float] = defaultdict(float)
    for kernel in profile:
        node = by_name.get(kernel.origin or kernel.name)
        if node is not None:
            times[_contracting(node, kernel.op_type)] += kernel.milliseconds
    return dict(times)


def _contracting(node: ir.Node, kernel: str) -> ir.Node:
    """The nearest node before ``node``, or itself, of the operator that ``kernel`` (``FusedConv``) is named after."""
    if kernel.endswith(node.op_type):
        return node
    asked = [node]
    for _ in range(_FUSED):
        producers = [made for one in asked for value in one.inputs if value is not None and (made := value.producer())]
        for made in producers:
            if kernel.endswith(made.op_type):
                return made
        asked = producers
    return node
