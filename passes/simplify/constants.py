"""Make initializers of Constant nodes.

    y = Constant(value)                          ->   an initializer y in the same graph
    y1 = Constant(value), y2 = Constant(value)   ->   one, if it is small and ``duplicates`` would merge them

Weights in Constant nodes cannot be shared, merged, or stored outside the file. Constants stay nodes where there are no
initializers (functions; files of an IR version below 4, whose initializers are all inputs), where they are an output, and where
they hold strings or a sparse tensor. The count of nodes does not include Constant, so it stays the same.
"""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant_tensor

from .graph import Work, put_constant, remove
from .names import own

_SMALL_BYTES = 64
"""Larger ones are compared with more care, by ``duplicates``."""


def lift_constants(work: Work, *, dedupe: bool = True) -> list[Change]:
    """Turn Constant nodes into initializers, in the main graph and in all subgraphs; one change tells how many.

    Args:
        work: The model.
        dedupe: Small ones in one graph that hold the same bytes become one, unless the user excludes something.
    """
    count, dedupe = 0, dedupe and not work.excludes and not work.annotated_names()
    for root in work.roots:
        if not root.initializers:
            continue
        lifted: list[ir.Node] = []
        equal: dict[Hashable, tuple[ir.Graph, ir.TensorProtocol, list[ir.Value]]] = {}
        for node in work.operators(root, {"Constant"}):
            tensor, output = constant_tensor(node), node.outputs[0]
            if tensor is None or tensor.dtype == ir.DataType.STRING or output.is_graph_output():
                continue
            assert node.graph is not None
            if type(tensor) is ir.TensorProtoTensor:  # isinstance looks through a protocol's members each time
                tensor = own(tensor)  # whatever is asked of a proto is parsed again each time
            small = dedupe and tensor.nbytes <= _SMALL_BYTES
            key = (node.graph, tensor.dtype, tensor.shape.dims, tensor.tobytes()) if small else node
            equal.setdefault(key, (node.graph, tensor, []))[2].append(output)
            lifted.append(node)
        for home, tensor, outputs in equal.values():
            put_constant(root, outputs, tensor, home)
        remove(lifted)
        count += len(lifted)
    if not count:
        return []
    name = work.model.graph.name or "graph"
    return [Change(name, f"made initializers of {count} Constant nodes", "they can be shared and stored outside the file")]
