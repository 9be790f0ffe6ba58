"""Make initializers of Constant nodes.

    y = Constant(value)   ->   an initializer y in the same graph

Weights in Constant nodes cannot be shared, merged, or stored outside the file. Constants stay nodes where there are no
initializers (functions; files of an IR version below 4, whose initializers are all inputs), where they are an output, and where
they hold strings or a sparse tensor. The count of nodes does not include Constant, so it stays the same.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant_tensor

from .graph import Work, put_constant, remove
from .names import own


def lift_constants(work: Work) -> list[Change]:
    """Turn Constant nodes into initializers, in the main graph and in all subgraphs; one change tells how many."""
    count = 0
    for root in work.roots:
        if not root.initializers:
            continue
        lifted = []
        for node in work.operators(root, {"Constant"}):
            tensor = constant_tensor(node)
            if tensor is None or tensor.dtype == ir.DataType.STRING or node.outputs[0].is_graph_output():
                continue
            assert node.graph is not None
            if type(tensor) is ir.TensorProtoTensor:  # isinstance looks through a protocol's members each time
                tensor = own(tensor)  # whatever is asked of a proto is parsed again each time
            put_constant(root, node.outputs, tensor, node.graph)
            lifted.append(node)
        remove(lifted)
        count += len(lifted)
    if not count:
        return []
    name = work.model.graph.name or "graph"
    return [Change(name, f"made initializers of {count} Constant nodes", "they can be shared and stored outside the file")]
