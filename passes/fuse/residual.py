"""Keep a residual Add apart from the LayerNormalization behind it, where together they are slower.

    LayerNormalization(Add(x, y), ...)   ->   LayerNormalization(Sum(x, y), ...)

onnxruntime makes one SkipLayerNormalization of both. On the CPU its kernel takes several times as long as the two, and it does
not look for a Sum. Only on that provider: on a GPU the fused kernel is the faster one. It fuses values of rank 3.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, site

from .graph import Work


def keep_residual_apart(work: Work, node: ir.Node) -> Change | None:
    """Make a Sum of the Add before a LayerNormalization."""
    add = work.producer(node.inputs[0], node, "Add") if work.on_cpu else None
    if add is None or work.rank(add.outputs[0]) != 3:
        return None
    if any(constant(value) is not None or work.rank(value) != 3 for value in add.inputs):
        return None
    add.op_type = "Sum"
    return Change(site(add), "made a Sum of Add before LayerNormalization", "the runtime's fused kernel is slower than both")
