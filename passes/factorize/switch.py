"""One model with every layer as it is and as factors, and an input that says which one layer is to be factors.

    y -> Where(which == i, factors of layer i, layer i)

So what each layer alone does to the outputs is measured with one file that is written and opened once, however many layers
there are: of a large model each would take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array, Session
from graphopt.names import Names

from .layers import Layer, Use


def both(model: ir.Model, layers: list[Layer], write: Callable[[Layer, bool], Array | None], names: Names) -> str:
    """Let ``model`` compute every layer twice, and add the input that chooses; its name is returned.

    Args:
        model: Changed in place.
        layers: Of the model.
        write: Writes a layer as factors, with or without what its bias makes up for; without, it returns that.
        names: Of the model.
    """
    which = ir.Value(name=names.new("which"), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    first = model.graph[0]
    for number, layer in enumerate(layers):
        kept = {use.node.outputs[0].name or "": _copy(use, names) for use in layer.uses}
        outside = any(use.bias is not None and use.bias[0] is not use.node for use in layer.uses)
        shift = write(layer, not outside)
        values = {output.name: output for node in model.graph for output in node.outputs if output.name in kept}
        wanted = _constant(model.graph, np.array(number), names)
        equal = _node("Equal", [which, wanted], names)
        model.graph.insert_before(first if first.graph is model.graph else model.graph[0], equal)
        for name, copy in kept.items():
            _choose(model.graph, values[name], copy, equal.outputs[0], shift if outside else None, names)
    model.graph.inputs.append(which)
    return which.name or ""


class Chosen(Session):
    """A session of such a model, with one layer as factors; closing it leaves the session open."""

    def __init__(self, session: Session, which: str, number: int) -> None:
        self.provider, self.clock, self.threads = session.provider, session.clock, session.threads
        self.load_seconds = session.load_seconds
        self.inputs = tuple(spec for spec in session.inputs if spec.name != which)
        self.outputs = session.outputs
        self._session, self._chosen = session, {which: np.array(number)}

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            ModelError: As the session.
        """
        return self._session.run({**feed, **self._chosen})


def _copy(use: Use, names: Names) -> ir.Value:
    """The layer once more, beside itself, as it is."""
    value: ir.Value | None = None
    for node in dict.fromkeys((use.first, use.node)):
        inputs = [*node.inputs]
        if value is not None:
            inputs[0] = value
        copy = _node(node.op_type, inputs, names, [*node.attributes.values()])
        assert use.node.graph is not None
        use.node.graph.insert_before(use.node, copy)
        value = copy.outputs[0]
    assert value is not None
    return value


def _choose(
    graph: ir.Graph, factored: ir.Value, kept: ir.Value, condition: ir.Value, shift: Array | None, names: Names
) -> None:
    """Let what reads the factors read one or the other."""
    producer = factored.producer()
    assert producer is not None
    last, ours = producer, factored
    if shift is not None:
        tensor = _constant(graph, shift.astype(factored.dtype.numpy() if factored.dtype else np.float32), names)
        last = _node("Add", [factored, tensor], names)
        graph.insert_after(producer, last)
        ours = last.outputs[0]
    chosen = _node("Where", [condition, ours, kept], names)
    graph.insert_after(last, chosen)
    output = chosen.outputs[0]
    output.type, output.shape = factored.type, factored.shape
    factored.replace_all_uses_with(output, replace_graph_outputs=True)
    (last if shift is not None else chosen).replace_input_with(0 if shift is not None else 1, factored)
    name, factored.name = factored.name, output.name
    output.name = name


def _node(op_type: str, inputs: list[Any], names: Names, attributes: list[ir.Attr] | None = None) -> ir.Node:
    made = ir.Node("", op_type, inputs, attributes or [], name=names.new(f"try_{op_type}"))
    made.outputs[0].name = names.new(f"try_{op_type}_out")
    return made


def _constant(graph: ir.Graph, array: Array, names: Names) -> ir.Value:
    name = names.new("try_constant")
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
