"""``fuse.residual``: keep a runtime from a fusion that costs more than it saves.

    LayerNormalization(Add(x, y))   ->   LayerNormalization(Sum(x, y))

Both compute the same, to the last bit. onnxruntime makes one SkipLayerNormalization of the first, whose kernel on the CPU takes
380 us for 128 × 768 numbers where Sum takes 15 and LayerNormalization 35 (x64 with AVX-512, version 1.31); it knows no such
fusion for Sum. Transformers that normalize behind the residual, such as BERT, are 1.08 times as fast for it in floats, and 1.2
times in int8. Only for targets that name SkipLayerNormalization among their slow kernels, and only where the sum is of two
values that are computed and nothing but the normalization reads it: else it is not fused.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.contracts import Change, Context, Pass
from graphopt.graphs import constant, site

_FUSED = "SkipLayerNormalization"
_SUM_BROADCASTS = 8
"""The first opset in which Sum broadcasts as Add does."""


class KeepResidual(Pass):
    """See the module."""

    name = "fuse.residual"
    summary = "keep the sum before a LayerNormalization apart where the target's fused kernel is slower than both"

    def apply(self, model: ir.Model, context: Context) -> Sequence[Change]:
        """Write the sums in front of normalizations as Sum, in the main graph and its subgraphs."""
        if _FUSED not in context.target.slow_kernels or model.opset_imports.get("", 0) < _SUM_BROADCASTS:
            return []
        changes = []
        for node in model.graph.all_nodes():
            add = _residual(model, node)
            if add is None or any(fnmatch.fnmatchcase(site(add), pattern) for pattern in context.exclude):
                continue
            add.op_type = "Sum"
            changes.append(Change(site(add), "made a Sum of Add", f"the target's {_FUSED} is slower than its parts"))
        return changes


def _residual(model: ir.Model, node: ir.Node) -> ir.Node | None:
    """The Add of two computed values that only this normalization reads."""
    if node.op_type != "LayerNormalization" or node.domain != "" or node.op_identifier() in model.functions:
        return None
    value = node.inputs[0]
    add = None if value is None else value.producer()
    if value is None or add is None or add.op_type != "Add" or add.domain != "" or add.op_identifier() in model.functions:
        return None
    alone = len(value.uses()) == 1 and not value.is_graph_output() and add.graph is node.graph
    return add if alone and not any(constant(term) is not None for term in add.inputs) else None
