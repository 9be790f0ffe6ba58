"""Where quantization goes in the graph: pairs of QuantizeLinear (Q) and DequantizeLinear (DQ) around what runs in integers.

    v = Conv(x, W)      becomes      v = Conv(DQ(Q(x)), DQ(q_W), DQ(q_b));  everything reads DQ(Q(v))

A runtime sees DQ -> Conv -> Q and puts its integer kernel there; DQ -> MaxPool -> Q with equal parameters becomes MaxPool on
integers.
A value gets one pair at most. Where an integer kernel makes it everything reads DQ, since the kernel gives nothing else; where
it comes as floats only integer kernels read DQ. Which values come as integers follows from the operators that were chosen:

    operator       its output, unless the kernel can give floats and no integer kernel reads it
    passing node   its outputs, if its input does; Concat also if one input does and an integer kernel reads the output

onnxruntime takes DQ -> Conv -> Q for a gap, and quantizes the weight by itself, per tensor: a Conv that was left in floats
would not stay there. It leaves alone what has a scale for each channel, so such a Conv reads a DQ whose scales are all equal.
An AveragePool whose integer kernel computes something else is kept from it too.

Names of values and nodes stay, and an output of the model keeps its name and type: there the pair comes before the name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array
from graphopt.graphs import constant
from graphopt.names import Names

from . import operators
from .network import Network
from .operators import Operator
from .scheme import Parameters, quantize
from .tables import WEIGHTED


@dataclass(frozen=True, eq=False)
class Weights:
    """The integers of an operator's weight and bias. The bias [channels] is float32 where the target takes none as integers."""

    weight: Array
    weight_parameters: Parameters
    bias: Array | None = None
    bias_parameters: Parameters | None = None


@dataclass(frozen=True)
class Flow:
    """Which values come as integers, which come as floats and are read as integers, which nodes hand integers on."""

    made: Sequence[ir.Value]
    read: Mapping[ir.Value, Sequence[tuple[ir.Node, int]]]
    passing: Sequence[ir.Node]


def flow(network: Network, chosen: Sequence[Operator]) -> Flow:
    """Follow the integers through the graph when these operators are quantized."""
    last = {operator.nodes[-1]: operator for operator in chosen}
    reads = {(operator.node, index) for operator in chosen for index in operator.activations}
    memo: dict[ir.Value, bool] = {}

    def wanted(value: ir.Value) -> bool:
        if value not in memo:
            memo[value] = any(
                (node, index) in reads or (node in network.passing and any(map(wanted, node.outputs)))
                for node, index in value.uses()
            )
        return memo[value]

    made: dict[ir.Value, None] = {}
    passing = []
    for node in network.model.graph:
        if node in last:
            if not network.gives_floats(last[node]) or wanted(node.outputs[0]):
                made[node.outputs[0]] = None
        elif node in network.passing:
            come = [value in made for value in _handed_on(node)]
            if all(come) or (any(come) and wanted(node.outputs[0])):
                passing.append(node)
                made.update(dict.fromkeys(node.outputs))
    read: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    places = [(operator.node, index) for operator in chosen for index in operator.activations]
    places += [(node, index) for node in passing for index in range(len(_handed_on(node)))]
    for node, index in places:
        value = node.inputs[index]
        if value is not None and value not in made:
            read.setdefault(value, []).append((node, index))
    return Flow([*made], read, passing)


def _handed_on(node: ir.Node) -> list[ir.Value]:
    """The inputs whose elements are handed on: all of Concat, the first of the others."""
    inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [value for value in inputs if value is not None]


def _holds(node: ir.Node, index: int, array: Array) -> bool:
    """Whether a node's input is a constant with this content."""
    tensor = constant(node.inputs[index]) if index < len(node.inputs) else None
    return tensor is not None and np.array_equal(tensor.numpy().reshape(-1), array)


def _read_channels(node: ir.Node) -> tuple[int, int]:
    """The axis of a node's first input that its constant weight contracts, and that axis's size."""
    weight = constant(node.inputs[1])
    assert weight is not None
    shape = weight.shape.numpy()
    if node.op_type == "Conv":
        return 1, shape[1] * node.attributes.get_int("group", 1)
    if node.op_type == "ConvTranspose":
        return 1, shape[0]
    if node.op_type == "Gemm":
        axis = 0 if node.attributes.get_int("transA", 0) else 1
        return axis, shape[1] if node.attributes.get_int("transB", 0) else shape[0]
    return -1, shape[-2] if len(shape) > 1 else shape[0]


@dataclass(eq=False)
class Placer:
    """Edits one model. ``parameters`` are those of the sources (``Network.source``)."""

    network: Network
    parameters: Mapping[ir.Value, Parameters]
    shared: dict[object, ir.Value] = field(default_factory=dict)
    """Initializers that were made, by what they hold: equal ones are one."""
    integers: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """What Q gives of a value."""
    chosen: set[ir.Node] = field(default_factory=set)
    """The nodes that are quantized."""

    def __post_init__(self) -> None:
        self.graph = self.network.model.graph
        self.names = Names(self.network.model.graph)

    def place(self, chosen: Sequence[Operator], weights: Mapping[str, Weights]) -> Flow:
        """Quantize these operators; ``weights`` has those of the ones that have any, by name."""
        found = flow(self.network, chosen)
        self.chosen = {operator.node for operator in chosen}
        sources = {value: self.network.source(value) for value in (*found.made, *found.read)}
        for operator in chosen:
            if operator.name in weights:
                self._put_weights(operator, weights[operator.name])
            for index in operator.constants:
                self._put_constant(operator.node, index)
        for value in found.made:
            self._after(value, self.parameters[sources[value]])
        for value, places in found.read.items():
            self._beside(value, places, self.parameters[sources[value]])
        for node in found.passing:
            if node.op_type in self.network.style.direct:
                self._direct(node, self.parameters[sources[node.outputs[0]]])
        return found

    # ------------------------------------------------------------------------------------------------------- activations

    def _after(self, value: ir.Value, parameters: Parameters) -> None:
        """Let everything that reads a value read what is left of it in integers."""
        readers = [*value.uses()]
        gaps = [place for place in readers if self._is_gap(*place)]
        outputs = [index for index, output in enumerate(self.graph.outputs) if output is value]
        dequantized = self._pair(value, parameters)
        for node, index in readers:
            node.replace_input_with(index, dequantized)
        for node, index in readers:
            if self.network.style.fills_gaps and operators.counts_beyond(node):
                node.replace_input_with(index, self._opaque(node, dequantized))
        for node, _ in gaps:
            node.replace_input_with(0, self._per_channel(value, node, parameters))
        if len(gaps) == len(readers) and not outputs:
            self._remove(dequantized)
        if outputs:
            for index in outputs:
                self.graph.outputs[index] = dequantized
            name, value.name = value.name, self.names.new(f"{value.name}_float")
            dequantized.name = name
            dequantized.metadata_props.update(value.metadata_props)

    def _beside(self, value: ir.Value, places: Sequence[tuple[ir.Node, int]], parameters: Parameters) -> None:
        """Let these inputs, and no others, read what is left of a value in integers."""
        dequantized = self._pair(value, parameters)
        for node, index in places:
            node.replace_input_with(index, dequantized)

    def _pair(self, value: ir.Value, parameters: Parameters) -> ir.Value:
        base = value.name or "value"
        q = ir.Node("", "QuantizeLinear", [value, *self._constants(parameters)], name=self.names.new(f"{base}_q"))
        self.integers[value] = self._describe(q, parameters.dtype, value.shape)
        dq = ir.Node("", "DequantizeLinear", [q.outputs[0], *self._constants(parameters)], name=self.names.new(f"{base}_dq"))
        dequantized = self._describe(dq, ir.DataType.FLOAT, value.shape)
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [q, dq])
        else:
            self.graph.insert_after(producer, [q, dq])
        return dequantized

    def _is_gap(self, node: ir.Node, index: int) -> bool:
        """Whether the runtime might quantize a node's weight that is left in floats."""
        if not self.network.style.fills_gaps or index != 0 or node in self.chosen:
            return False
        return node.op_type in WEIGHTED and len(node.inputs) > 1 and constant(node.inputs[1]) is not None

    def _opaque(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """The same value behind a Max of it alone, which no rule of the runtime looks through."""
        same = ir.Node("", "Max", [value], name=self.names.new(f"{value.name}_max"))
        self.graph.insert_before(node, same)
        return self._describe(same, ir.DataType.FLOAT, value.shape)

    def _per_channel(self, value: ir.Value, node: ir.Node, parameters: Parameters) -> ir.Value:
        """DQ of a value with the same scale for each channel that the node reads."""
        axis, channels = _read_channels(node)
        base = f"{value.name}_channels"
        scale, zero = np.full(channels, parameters.scale), np.full(channels, parameters.zero_point)
        inputs = [self.integers[value], self._initializer(scale, "scale"), self._initializer(zero, "zero_point")]
        attributes = [ir.AttrInt64("axis", axis)]
        dq = ir.Node("", "DequantizeLinear", inputs, attributes, name=self.names.new(f"{base}_dq"))
        self.graph.insert_before(node, dq)
        return self._describe(dq, ir.DataType.FLOAT, value.shape)

    def _direct(self, node: ir.Node, parameters: Parameters) -> None:
        """Q -> DQ -> node -> Q -> DQ becomes Q -> node -> DQ: the node works on the integers."""
        before, after = node.inputs[0], node.outputs[0]
        dq = None if before is None else before.producer()
        q = next(user for user, _ in after.uses())
        assert dq is not None
        node.replace_input_with(0, dq.inputs[0])
        if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
            node.resize_inputs(max(3, len(node.inputs)))
            node.replace_input_with(2, self._constants(parameters)[1])
        quantized = q.outputs[0]
        after.type = ir.TensorType(parameters.dtype)
        for user, index in [*quantized.uses()]:
            user.replace_input_with(index, after)
        after.name, quantized.name = quantized.name, None
        self.graph.remove(q, safe=True)
        if before is not None and not before.uses() and not before.is_graph_output():
            self._remove(before)

    def _remove(self, dequantized: ir.Value) -> None:
        """Remove a DQ that nothing reads."""
        node = dequantized.producer()
        assert node is not None
        self.graph.remove(node, safe=True)

    # --------------------------------------------------------------------------------------------------------- constants

    def _put_weights(self, operator: Operator, weights: Weights) -> None:
        node = operator.node
        assert operator.weight is not None
        self._put(node, operator.weight, weights.weight, weights.weight_parameters)
        if operator.bias is not None and weights.bias is not None:
            owner, index = operator.bias
            if weights.bias_parameters is not None:
                self._put(owner, index, weights.bias, weights.bias_parameters)
            elif not _holds(owner, index, weights.bias) or node.attributes.get_float("beta", 1.0) != 1.0:
                self._replace_constant(owner, index, self._initializer(weights.bias, f"{self._base(owner, index)}_scaled"))
        if node.op_type == "Gemm":
            for name in ("alpha", "beta"):
                node.attributes.pop(name, None)

    def _put_constant(self, node: ir.Node, index: int) -> None:
        value = node.inputs[index]
        tensor = constant(value)
        assert value is not None
        assert tensor is not None
        parameters = self.parameters[value]
        self._put(node, index, quantize(tensor.numpy(), parameters), parameters)

    def _put(self, node: ir.Node, index: int, integers: Array, parameters: Parameters) -> None:
        """Let an input of a node read DQ of these integers in place of the constant that it reads."""
        base = self._base(node, index)
        held = self._initializer(integers, f"{base}_q")
        attributes = [] if parameters.axis is None else [ir.AttrInt64("axis", parameters.axis)]
        dq = ir.Node(
            "", "DequantizeLinear", [held, *self._constants(parameters)], attributes, name=self.names.new(f"{base}_dq")
        )
        value = self._describe(dq, ir.DataType.FLOAT, ir.Shape(integers.shape))
        self.graph.insert_before(node, dq)
        self._replace_constant(node, index, value)

    def _base(self, node: ir.Node, index: int) -> str:
        value = node.inputs[index] if index < len(node.inputs) else None
        return (value.name if value is not None else None) or "constant"

    def _replace_constant(self, node: ir.Node, index: int, value: ir.Value) -> None:
        """Let an input read something else; the constant that nothing reads any more goes."""
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        node.replace_input_with(index, value)
        if old is None or old.uses() or old.is_graph_output() or old.is_graph_input():
            return
        producer = old.producer()
        if producer is not None:
            self.graph.remove(producer, safe=True)
        else:
            self.graph.initializers.pop(old.name or "", None)

    def _constants(self, parameters: Parameters) -> list[ir.Value]:
        return [self._initializer(parameters.scale, "scale"), self._initializer(parameters.zero_point, "zero_point")]

    def _initializer(self, array: Array, name: str) -> ir.Value:
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self.shared:
            name = self.names.new(name)
            tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
            self.graph.register_initializer(value)
            self.shared[key] = value
        return self.shared[key]

    def _describe(self, node: ir.Node, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
        """The node's output, of its name."""
        value = node.outputs[0]
        value.name, value.type, value.shape = node.name, ir.TensorType(dtype), shape
        return value
