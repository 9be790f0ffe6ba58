"""What the removal of units saves, for each number of them: MACs, bytes of weights, and time, without building the model.

    a weight with c_1, c_2, ... of its indices along axes of sizes n_1, n_2, ... gone keeps  (1 - c_1 / n_1) (1 - c_2 / n_2) ...

of its bytes, and the node that multiplies with it as much of its MACs and its time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.axes import Group
from graphopt.contracts import Array
from graphopt.graphs import constant


@dataclass(frozen=True)
class Saved:
    """What goes with the first n units of an order."""

    macs: float
    bytes: float
    milliseconds: float


def saved(group: Group, gone: Array, macs: Mapping[ir.Node, int], times: Mapping[ir.Node, float]) -> Saved:
    """What is saved when the units ``gone`` are removed."""
    used: defaultdict[ir.Node, dict[tuple[ir.Value, int], float]] = defaultdict(dict)
    for use in (*group.producers, *group.consumers):
        used[use.node][use.value, use.axis] = _left(use.units, gone)
    nodes = {node: 1 - float(np.prod([*parts.values()])) for node, parts in used.items()}
    held: defaultdict[ir.Value, dict[int, float]] = defaultdict(dict)
    for member in group.members:
        held[member.value][member.axis] = _left(member.units, gone)
    tensors = {value: constant(value) for value in held}
    return Saved(
        macs=sum(part * macs.get(node, 0) for node, part in nodes.items()),
        bytes=sum((1 - float(np.prod([*held[v].values()]))) * t.nbytes for v, t in tensors.items() if t is not None),
        milliseconds=sum(part * times.get(node, 0.0) for node, part in nodes.items()),
    )


def _left(units: Array, gone: Array) -> float:
    return 1 - float(np.isin(units, gone).mean())


def node_times(model: ir.Model, found: Sequence[tuple[str, float]]) -> dict[ir.Node, float]:
    """Milliseconds by node, from names of nodes or of what they compute."""
    by_name = {
        name: node for node in model.graph.all_nodes() for name in (node.name, *(out.name for out in node.outputs)) if name
    }
    times: defaultdict[ir.Node, float] = defaultdict(float)
    for name, milliseconds in found:
        if name in by_name:
            times[by_name[name]] += milliseconds
    return dict(times)
