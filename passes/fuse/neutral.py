"""Remove arithmetic that changes nothing.

    x + 0, x - 0, x * 1, x / 1   ->   x

Conditions: the constant holds that number only, no caller can override it, it does not widen x by broadcasting, and the node
is not the end of what the runtime computes by one kernel. The sign of a zero may change: -0 + 0 is 0.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, site

from .affine import operand_index
from .graph import FLOATS, Work
from .whole import ends_kernel

_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
_MOST = 1 << 16
"""Elements of a constant that are looked at."""


def remove_neutral(work: Work, node: ir.Node) -> Change | None:
    """Remove an Add, Sub, Mul or Div of a constant that has no effect."""
    operand = operand_index(node)
    x = None if operand is None else node.inputs[operand]
    if operand is None or x is None or (node.op_type == "Sub" and operand == 1):
        return None
    tensor = constant(node.inputs[1 - operand])
    producer = x.producer()
    if tensor is None or tensor.size > _MOST or producer is None or producer.graph is not node.graph:
        return None
    if not _fits(work, x, tuple(tensor.shape.numpy())) or np.count_nonzero(tensor.numpy() != _NEUTRAL[node.op_type]):
        return None
    if not work.can_replace(node.outputs[0]) or (node.outputs[0].is_graph_output() and x.is_graph_output()):
        return None
    if ends_kernel(work, node):
        return None
    change = Change(site(node), f"removed {node.op_type}", f"its constant is {_NEUTRAL[node.op_type]} everywhere")
    work.tells_more |= work.dtype(x) not in FLOATS  # inference follows the contents of shapes, through few operators
    work.replace(node.outputs[0], x)
    work.remove_dead(node)
    return change


def _fits(work: Work, x: ir.Value, dims: tuple[int, ...]) -> bool:
    """Whether a constant of these dimensions is broadcast to x, and x not to it."""
    if not dims:
        return True
    shape = work.shape(x)
    if shape is None or len(dims) > len(shape):
        return False
    return all(dim in {1, known} for dim, known in zip(reversed(dims), reversed(shape.dims), strict=False))
