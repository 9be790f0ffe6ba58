"""A graph executed node by node in torch, so that gradients flow from its outputs to whatever asks for them.

    weights: value -> tensor          leaves; ``tensor.requires_grad_()`` makes one trainable, assigning replaces it
    run(feed, through=, keep=)        outputs by name, and the values that are to be kept

``through`` is how anything comes between: {(node, index): f} gives a node f(x) in place of its input x. A gate on what a layer
reads, a weight with noise or as integers would have it, all are such functions. A value is let go of behind its last reader.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import walk
from graphopt.contracts import Array, NodeInput
from graphopt.errors import ModelError
from graphopt.graphs import constant_tensor, operator, site
from graphopt.model import nodes

from .operators import TABLE, Call
from .tensors import Tensor, from_array

_Values = dict[ir.Value, Any]


class TorchNetwork:
    """A model in torch; it keeps to the model's nodes and values, which must stay as they are.

    Raises:
        ModelError: Operators that torch has no function for, all of them, or a type of numbers that it lacks.
        MissingError: Torch is not installed.
    """

    def __init__(self, model: ir.Model) -> None:
        missing = missing_operators(model)
        if missing:
            raise ModelError(
                f"torch has no {', '.join(missing)}",
                hint="Gradients need every operator; the lossless recipe may remove or replace some.",
            )
        self._model = model
        self.weights: dict[ir.Value, Tensor] = {}
        """Float initializers and outputs of Constant nodes, of all graphs and functions, whatever their rank."""
        self._fixed: _Values = {}
        for value, tensor in _constants(model):
            kept = self.weights if tensor.dtype.is_floating_point() else self._fixed
            kept[value] = from_array(tensor.numpy(), tensor.dtype)
        self._last = _last_readers(model.graph)

    def run(
        self,
        feed: Mapping[str, Array | Tensor],
        through: Mapping[NodeInput, Callable[[Tensor], Tensor]] | None = None,
        keep: Collection[ir.Value] = (),
        clock: Callable[[ir.Node], None] | None = None,
    ) -> dict[ir.Value, Tensor]:
        """Run once; whether torch records what gradients need is the caller's choice (``torch.no_grad``).

        Args:
            feed: Each input, or tensor in its place, by name.
            through: By node and index of its input, the function of what it is given there.
            keep: Values of the main graph that are returned besides the outputs.
            clock: Told of each node of the main graph when it has run.

        Raises:
            ModelError: A node fails, or wants something that torch does not do.
        """
        held = {*keep, *self._model.graph.outputs}
        values: _Values = {**self._fixed, **self.weights}
        for value in self._model.graph.inputs:
            given = feed.get(value.name or "")
            if given is not None:
                values[value] = from_array(np.asarray(given)) if isinstance(given, np.ndarray | np.generic) else given
        for node in self._model.graph:
            self._step(node, values, {}, through or {})
            for value in self._last.get(node, ()):
                if value not in held:
                    values.pop(value, None)
            if clock is not None:
                clock(node)
        return {value: values[value] for value in held}

    def _step(
        self,
        node: ir.Node,
        values: _Values,
        given: Mapping[str, ir.Attr],
        through: Mapping[NodeInput, Callable[[Tensor], Tensor]],
    ) -> None:
        if node.op_type == "Constant" and node.outputs[0] in values:
            return
        inputs = [None if value is None or not value.name else values[value] for value in node.inputs]
        for index in range(len(inputs)) if through else ():
            between = through.get((node, index))
            inputs[index] = inputs[index] if between is None else between(inputs[index])
        function = self._model.functions.get(node.op_identifier())
        if function is not None:
            inner: _Values = {**self._fixed, **self.weights, **dict(itertools.zip_longest(function.inputs, inputs))}
            defaults = {name: one for name, one in function.attributes.items() if one.value is not None}
            for one in function:
                self._step(one, inner, {**defaults, **_attributes(node, given)}, through)
            found: Any = tuple(inner[value] for value in function.outputs)
        else:
            call = self._called(node, values, given, through)
            try:
                found = TABLE[operator(node)](call, *inputs)
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                raise ModelError(f"torch cannot run it: {error}", where=f"node {site(node)!r} ({node.op_type})") from error
        several = isinstance(found, tuple)
        values.update(zip(node.outputs, found if several else (found,), strict=False))

    def _called(
        self,
        node: ir.Node,
        values: _Values,
        given: Mapping[str, ir.Attr],
        through: Mapping[NodeInput, Callable[[Tensor], Tensor]],
    ) -> Call:
        def run(graph: ir.Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
            inner = {**values, **dict(zip(graph.inputs, inputs, strict=True))}
            for one in graph:
                self._step(one, inner, given, through)
            return [inner[value] for value in graph.outputs]

        version = self._model.opset_imports.get("" if node.domain == "ai.onnx" else node.domain, 1)
        return Call(node, version if node.version is None else node.version, _attributes(node, given), run)


def missing_operators(model: ir.Model) -> list[str]:
    """The operators in a model, its functions and their subgraphs that torch has no function for; sorted."""
    return sorted({operator(node) for node in nodes(model) if not runs(model, node)})


def runs(model: ir.Model, node: ir.Node) -> bool:
    """Whether there is a function for a node's operator."""
    return operator(node) in TABLE or node.op_identifier() in model.functions


def _attributes(node: ir.Node, given: Mapping[str, ir.Attr]) -> dict[str, ir.Attr]:
    """A node's attributes; those of the function around it in place of references."""
    found = ((name, given.get(one.ref_attr_name or "") if one.is_ref() else one) for name, one in node.attributes.items())
    return {name: one for name, one in found if one is not None}


def _constants(model: ir.Model) -> Iterable[tuple[ir.Value, ir.TensorProtocol]]:
    """Initializers, and what Constant nodes give."""
    for graph in walk.graphs(model.graph):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
    for node in nodes(model):
        tensor = constant_tensor(node)
        if tensor is not None:
            yield node.outputs[0], tensor


def _last_readers(graph: ir.Graph) -> dict[ir.Node, list[ir.Value]]:
    """By node the values that nothing behind it reads, itself or in its graphs."""
    last: dict[ir.Value, ir.Node] = {}
    for node in graph:
        inside = itertools.chain([node], *(walk.nodes(inner) for inner in walk.subgraphs(node)))
        captured = (value for inner in walk.subgraphs(node) for value in inner.outputs)
        for value in itertools.chain((v for one in inside for v in one.inputs if v is not None), captured, node.outputs):
            last[value] = node
    found: dict[ir.Node, list[ir.Value]] = {}
    for value, node in last.items():
        found.setdefault(node, []).append(value)
    return found
