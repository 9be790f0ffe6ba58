"""Keep a residual Add apart from the LayerNormalization behind it, where together they are slower.

    LayerNormalization(Add(x, y), ...)   ->   LayerNormalization(Sum(x, y), ...)

Both compute the same, to the last bit. onnxruntime makes one SkipLayerNormalization of the first, for values of rank 3 that
nothing else reads, and does not look for a Sum. On the CPU its kernel takes 380 us for 128 × 768 numbers where Sum takes 15
and LayerNormalization 35 (x64 with AVX-512, version 1.31). Only for targets that name it among their slow kernels: on a GPU
it is the faster one.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, site

from .graph import Work

_FUSED = "SkipLayerNormalization"
_SUM_BROADCASTS = 8
"""The first opset in which Sum broadcasts as Add does."""


def keep_residual_apart(work: Work, node: ir.Node) -> Change | None:
    """Make a Sum of the Add before a LayerNormalization."""
    if _FUSED not in work.slow_kernels or work.model.opset_imports.get("", 0) < _SUM_BROADCASTS:
        return None
    add = work.producer(node.inputs[0], node, "Add")
    if add is None or work.rank(add.outputs[0]) != 3:
        return None
    if len(add.outputs[0].uses()) > 1 or add.outputs[0].is_graph_output():  # then the runtime does not fuse it
        return None
    if any(constant(value) is not None or work.rank(value) != 3 for value in add.inputs):
        return None
    add.op_type = "Sum"
    return Change(site(add), "made a Sum of Add before LayerNormalization", "the runtime's fused kernel is slower than both")
