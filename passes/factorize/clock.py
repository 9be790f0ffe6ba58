"""Which linear layer a measured kernel computes.

A runtime puts what follows a convolution or a matrix product into its kernel (an activation, an addition, a bias) and names the
kernel after the last of them, or anew. So a kernel that multiplies belongs to the node of its name or of the value that it
computes, and if that is no linear layer, to the nearest one before it that no other kernel computes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt.contracts import NodeTime

_LINEAR = frozenset({"Conv", "Gemm", "MatMul", "Gather"})
_MULTIPLIES = ("Conv", "Gemm", "MatMul", "Gather")
_STEPS = 24
"""Nodes before a kernel's own that are looked at."""


def milliseconds(profile: Sequence[NodeTime], model: ir.Model) -> Mapping[str, float]:
    """Time of each linear layer of the main graph that has a kernel, by its node's name."""
    by_name = {node.name: node for node in model.graph}
    by_name |= {output.name: node for node in model.graph for output in node.outputs if output.name}
    found: defaultdict[str, float] = defaultdict(float)
    late: list[tuple[ir.Node, float]] = []
    for kernel in profile:
        if not any(part in kernel.op_type for part in _MULTIPLIES):
            continue
        names = (kernel.origin, kernel.name, kernel.name.removeprefix("fused "))
        node = next((by_name[name] for name in names if name in by_name), None)
        if node is None:
            continue
        if node.op_type in _LINEAR:
            found[node.name or ""] += kernel.milliseconds
        else:
            late.append((node, kernel.milliseconds))
    named = set(found)
    for node, spent in late:
        owner = next((one for one in _before(node) if one.op_type in _LINEAR and one.name not in named), None)
        if owner is not None:
            found[owner.name or ""] += spent
            named.add(owner.name or "")
    return found


def _before(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes before one, the nearest first; not beyond linear layers."""
    waiting, seen = [node], {node}
    for _ in range(_STEPS):
        if not waiting:
            return
        inputs = [value.producer() for value in waiting.pop(0).inputs if value is not None]
        for one in inputs:
            if one is not None and one not in seen:
                seen.add(one)
                yield one
                if one.op_type not in _LINEAR:
                    waiting.append(one)
