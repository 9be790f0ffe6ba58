"""How integers could flow through a model: between operators, and through nodes that hand them on.

    source(v)   the value that v has its integers from: v itself, or what the passing nodes before it were given
    group(v)    the sources that share one scale: Concat's inputs and its output, where that takes nothing from any of them

A product with a weight, or of two activations, is always worth offering. Of the others (Add, Mul, pools, activations) those are
that save conversions if all their neighbours are in integers, counted in elements:

    in integers:  inputs that come as floats and are not converted for others, + the output if something reads it as floats
    in floats:    inputs that come as integers and are not converted for others, + the output if something reads it as integers

So a residual Add between Convs is one. The Mul in x Phi(x) is not, since Phi reads x as floats anyway, and what only follows
MatMuls, whose kernels give floats for nothing, is not either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt import shapes, sizes
from graphopt.graphs import constant
from graphopt.shapes import Facts
from graphopt.targets import Quantization

from . import operators
from .operators import Operator
from .tables import ABSORBED, WEIGHTED


@dataclass(eq=False)
class Network:
    """The operators of a model that are worth quantizing, by name in the graph's order, and how they hang together."""

    model: ir.Model
    style: Quantization
    operators: dict[str, Operator]
    declined: list[tuple[ir.Node, str, str]]
    """Node, name, why."""
    sizes: Facts
    passing: frozenset[ir.Node]
    producer: dict[ir.Value, Operator] = field(default_factory=dict)
    reading: dict[ir.Node, Operator] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.producer = {operator.output: operator for operator in self.operators.values()}
        self.reading = {node: operator for operator in self.operators.values() for node in operator.nodes}

    def elements(self, value: ir.Value) -> int:
        """How many numbers the value has for one sample; 1 if not known."""
        known = self.sizes.get(value)
        if known is None or known.shape is None or not all(isinstance(dim, int) for dim in known.shape):
            return 1
        return math.prod(known.shape.numpy())

    def source(self, value: ir.Value) -> ir.Value:
        """The value whose parameters this one has."""
        node = value.producer()
        while node is not None and node in self.passing and node.op_type != "Concat" and node.inputs[0] is not None:
            value = node.inputs[0]
            node = value.producer()
        return value

    def makers(self, value: ir.Value) -> list[Operator | None]:
        """The operators that the value comes from through passing nodes; None for what is no operator."""
        source = self.source(value)
        node = source.producer()
        if node is not None and node in self.passing:  # Concat
            return [maker for part in node.inputs if part is not None for maker in self.makers(part)]
        return [self.producer.get(source)]

    def readers(self, value: ir.Value) -> list[Operator | None]:
        """The operators that the value goes to through passing nodes; None for what is no operator, and for an output."""
        found: list[Operator | None] = [None] if value.is_graph_output() else []
        for node, _ in value.uses():
            if node in self.passing:
                found += [reader for output in node.outputs for reader in self.readers(output)]
            else:
                found.append(self.reading.get(node))
        return found

    def gives_floats(self, operator: Operator) -> bool:
        """Whether the operator's integer kernel can give floats for nothing. A Relu or Clip that follows takes that from it."""
        if operator.node.op_type not in self.style.float_outputs or operator.activation is not None:
            return False
        reader = operators.only_reader(operator.output)
        return self.style.fuses_activations or reader is None or reader.op_type not in ABSORBED

    def inputs(self, operator: Operator) -> list[ir.Value]:
        """The values that the operator computes with, constants left out."""
        inputs = (operator.node.inputs[index] for index in operator.activations)
        return [value for value in inputs if value is not None]

    def observed(self) -> list[ir.Value]:
        """The sources whose ranges decide all parameters, in the graph's order."""
        found: dict[ir.Value, None] = {}
        for operator in self.operators.values():
            for value in (*self.inputs(operator), operator.output):
                for source in self.parts(self.source(value)):
                    found[source] = None
        return [*found]

    def parts(self, source: ir.Value) -> list[ir.Value]:
        """The source, or the sources of what a Concat joins to make it."""
        node = source.producer()
        if node is None or node not in self.passing:
            return [source]
        return [part for value in node.inputs if value is not None for part in self.parts(self.source(value))]


def analyze(model: ir.Model, style: Quantization) -> Network:
    """Find what can be quantized, and leave out what is not worth it."""
    from graphopt import observe

    facts = shapes.infer(model)
    found, declined = operators.find(model, style, facts, observe.observable(model))
    passing = frozenset(node for node in model.graph if operators.passes(node, style) and _is_float(node, facts))
    network = Network(model, style, {each.name: each for each in found}, declined, sizes.infer(model), passing)
    while useless := [(each, why) for each in network.operators.values() if (why := _why_not(network, each)) is not None]:
        for operator, why in useless:
            del network.operators[operator.name]
            network.declined.append((operator.node, operator.name, why))
        network.__post_init__()
    return network


def _is_float(node: ir.Node, facts: Facts) -> bool:
    value = node.inputs[0] if node.inputs else None
    known = None if value is None else facts.get(value)
    if value is None or constant(value) is not None or known is None or not isinstance(known.type, ir.TensorType):
        return False
    return known.type.dtype == ir.DataType.FLOAT


def _why_not(network: Network, operator: Operator) -> str | None:
    """Why an operator without a weight is better left in floats; None when it is not."""
    if operator.node.op_type in WEIGHTED:
        return None
    inputs = network.inputs(operator)
    made = [{maker is not None and not network.gives_floats(maker) for maker in network.makers(value)} for value in inputs]
    if not any(True in kinds for kinds in made):
        return "its inputs are there as floats"
    integers = floats = 0
    for value, kinds in zip(inputs, made, strict=True):
        others = [reader for reader in network.readers(value) if reader is not operator]
        if True in kinds:
            floats += 0 if None in others else network.elements(value)
        elif all(maker is None for maker in network.makers(value)):
            integers += 0 if any(reader is not None for reader in others) else network.elements(value)
    readers, size = network.readers(operator.output), network.elements(operator.output)
    integers += size if None in readers else 0
    floats += size if any(reader is not None for reader in readers) else 0
    return None if integers < floats else "as many numbers would be converted with it in integers as without"


def slope(value: ir.Value) -> float:
    """By what values below zero are multiplied by everything that reads them: 1, or the slope of LeakyRelu."""
    slopes = {node.attributes.get_float("alpha", 0.01) if node.op_type == "LeakyRelu" else 1.0 for node, _ in value.uses()}
    return slopes.pop() if len(slopes) == 1 and not value.is_graph_output() else 1.0


def join(network: Network, ranges: Mapping[ir.Value, tuple[float, float]]) -> dict[ir.Value, tuple[float, float]]:
    """The range of each source, joined over Concats where that takes nothing from any part.

    A part that only the Concat reads loses nothing, since the output has the joint range anyway. A part that ends in a Relu or
    Clip must keep a range in which quantization does its work.
    """
    joined = dict(ranges)
    for node in network.model.graph:
        if node not in network.passing or node.op_type != "Concat":
            continue
        parts = [network.source(value) for value in node.inputs if value is not None]
        if not all(part in joined for part in parts):
            continue
        low, high = min(joined[part][0] for part in parts), max(joined[part][1] for part in parts)
        joined[node.outputs[0]] = low, high
        for value, part in zip(node.inputs, parts, strict=True):
            if value is not None and _is_private(value, part) and _still_limited(network, part, low, high):
                joined[part] = low, high
    return joined


def _is_private(value: ir.Value, source: ir.Value) -> bool:
    """Whether the way from the source to the value has no branches."""
    while True:
        if value.is_graph_output() or len(value.uses()) != 1:
            return False
        if value is source:
            return True
        node = value.producer()
        assert node is not None
        if len(node.outputs) != 1 or node.inputs[0] is None:
            return False
        value = node.inputs[0]


def _still_limited(network: Network, source: ir.Value, low: float, high: float) -> bool:
    operator = network.producer.get(source)
    activation = None if operator is None else operator.activation
    if activation is None:
        return True
    least, most = operators.bounds(activation)
    return least <= low and high <= most


def chosen(network: Network, names: Iterable[str]) -> Sequence[Operator]:
    """The operators of these names, in the graph's order."""
    wanted = set(names)
    return [operator for name, operator in network.operators.items() if name in wanted]
