"""The reference for a removal: the same network with the removed channels set to zero, all sizes as they were.

    sum over c of w[c] * x[c]   ->   sum over c of w[c] * (x[c] * mask[c])

A test compares the two; nothing else needs this.
"""

from __future__ import annotations

import onnx_ir as ir

from .channels import Channels
from .remove import Removal, keeping


def masked(model: ir.Model, channels: Channels, removal: Removal) -> ir.Model:
    """A clone of ``model`` whose every sum over channels skips the removed ones: a mask stands in front of each.

    Raises:
        ValueError: A group is not prunable, or all of its units would go.
    """
    kept = keeping(channels, removal)
    copy = model.clone()
    twins = dict(zip(model.graph.all_nodes(), copy.graph.all_nodes(), strict=True))
    for number, one in enumerate(channels.analysis.sums):
        mask = kept(one.ids)
        if mask.all():
            continue
        node = twins[one.node]
        operand, graph = node.inputs[one.input], node.graph
        axes = channels.analysis.axes_of(one.node.inputs[one.input] or one.node.outputs[0])
        assert operand is not None
        assert axes is not None
        assert isinstance(graph, ir.Graph)
        shape = [-1 if axis == one.axis else 1 for axis in range(len(axes))]
        kind = channels.analysis.dtype(one.node.inputs[one.input] or one.node.outputs[0])
        factor = ir.Value(name=f"mask {number}", const_value=ir.tensor(mask.astype(kind.numpy()).reshape(shape), dtype=kind))
        graph.register_initializer(factor)
        product = ir.node("Mul", [operand, factor], name=f"mask {number}")
        product.outputs[0].name = f"masked {number}"
        graph.insert_before(node, product)
        node.replace_input_with(one.input, product.outputs[0])
    return copy
