"""Before the analysis: free the channels of what only looks tied.

    an initializer that is listed as an input   ->  a constant              (a caller may replace it: it could not be cut)
    one vector that several nodes read          ->  one for each of them    (two layers whose biases are all 0 share one tensor)

Neither changes what is computed. A matrix that several nodes read stays one: there the weights are really shared.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import INITIALIZERS_NEED_NO_INPUT, constant, site
from graphopt.shapes import defined


def prepare(model: ir.Model) -> list[Change]:
    """Change a model in place so that more of it can be pruned. Inputs without an initializer stay: a user feeds them."""
    return [*_frozen(model), *_separated(model)]


def _frozen(model: ir.Model) -> list[Change]:
    listed = [value for value in model.graph.inputs if value.is_initializer()]
    if not listed:
        return []
    for value in listed:
        model.graph.inputs.remove(value)
    model.ir_version = max(model.ir_version or 0, INITIALIZERS_NEED_NO_INPUT)
    names = ", ".join(repr(value.name) for value in listed[:3]) + (" ..." if len(listed) > 3 else "")
    return [Change("inputs", f"{len(listed)} weights are no inputs any more: {names}", "a pruned weight has another shape")]


def _separated(model: ir.Model) -> list[Change]:
    taken = {value.name for graph in model.graphs() for value in defined(graph)}
    changes = []
    for graph in model.graphs():
        for value in [*graph.initializers.values()]:
            readers = [*dict.fromkeys(node for node, _ in value.uses())]
            tensor = constant(value)
            if len(readers) < 2 or tensor is None or not _is_vector(tensor):
                continue
            for node in readers[1:]:
                if isinstance(node.graph, ir.Graph):
                    _own(node, value, tensor, taken)
            changes.append(
                Change(value.name or "", f"{len(readers)} copies, one for each node that reads it", "equal, but not tied")
            )
    return changes


def _is_vector(tensor: ir.TensorProtocol) -> bool:
    sizes = [size for size in tensor.shape.numpy() if size != 1]
    return len(sizes) == 1 and tensor.dtype.is_floating_point()


def _own(node: ir.Node, value: ir.Value, tensor: ir.TensorProtocol, taken: set[str | None]) -> None:
    """Let a node read a value of its own, with the same tensor."""
    number = 1
    while (name := f"{value.name}_{site(node)}_{number}") in taken:
        number += 1
    taken.add(name)
    own = ir.Value(name=name, const_value=tensor, type=value.type, shape=value.shape)
    assert isinstance(node.graph, ir.Graph)
    node.graph.register_initializer(own)
    for index, read in enumerate(node.inputs):
        if read is value:
            node.replace_input_with(index, own)
