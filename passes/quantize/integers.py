"""Operators written so that they multiply integers, finding the scale of their input themselves.

    MatMul(x, W)              q, s, z = DynamicQuantizeLinear(x)            u8, its scale, its zero point
                              Cast(MatMulInteger(q, Ŵ, z)) · (s · ŝ)        Ŵ s8, ŝ a scale for each column
    Gemm(x, W, c)             the same with alpha in ŝ, + beta · c
    Gather(W, rows)           Cast(Gather(Ŵ, rows)) · Gather(ŝ, rows)       a scale for each row; only the weight is in integers
    LSTM(x, W, R, ..)         DynamicQuantizeLSTM(x, Ŵ, R̂, .., ŝ, ẑ, ..)    com.microsoft, as the next one
    Attention(x, W, b, ..)    QAttention(q, Ŵ, b, s, ŝ, .., z, ẑ, ..)

onnxruntime makes one kernel of the MatMul's nodes and of the Add of a bias behind them, DynamicQuantizeMatMul, or
MatMulIntegerToFloat where several read one x: then x is quantized once.

The node itself stays and becomes the last one, so that its output keeps its name, type and place; the integer product gets its
name, which is the name that the fused kernel has in a profile. Weights are symmetric: their zero point is 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array
from graphopt.graphs import constant, site
from graphopt.names import Names

from .readers import Group, Use

MICROSOFT = "com.microsoft"
"""onnxruntime's own operators."""


@dataclass(frozen=True)
class Weight:
    """A weight in integers: real = values · scale; the scale has the rank of the values, or is one for all."""

    values: Array
    scale: Array


Quantizer = Callable[[ir.Value, tuple[int, ...]], Weight]
"""Quantizes a weight, with a scale for each index of these axes."""


@dataclass(frozen=True)
class Stored:
    """A weight in integers as an initializer: as it was stored, or transposed if all its readers want it so."""

    name: str
    graph: ir.Graph
    values: ir.Value
    transposed: bool
    scale: Array


@dataclass
class Integers:
    """Writes nodes of a model with integers; what several of them read is made once."""

    model: ir.Model
    quantize: Quantizer
    made: dict[Hashable, tuple[ir.Value, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = Names(self.model.graph)

    def write(self, group: Group) -> None:
        """Write all nodes of a group, and drop the weights that they read.

        Raises:
            ValueError: A weight cannot be quantized; then nothing has changed.
        """
        uses: dict[ir.Value, list[Use]] = {}
        for use in group.uses:
            uses.setdefault(use.weight, []).append(use)
        quantized = {weight: self._quantized(weight, of_weight) for weight, of_weight in uses.items()}
        stored = {weight: self._store(weight, of_weight, quantized[weight]) for weight, of_weight in uses.items()}
        for node in group.nodes:
            of_node = [use for use in group.uses if use.node is node]
            _WRITERS[node.op_type](self, node, [(stored[use.weight], use.transposed) for use in of_node])
        for weight in uses:
            _drop(weight)

    def _quantized(self, weight: ir.Value, uses: Sequence[Use]) -> Weight:
        axes = {use.channels for use in uses}
        return self.quantize(weight, axes.pop() if len(axes) == 1 else ())

    def _store(self, weight: ir.Value, uses: Sequence[Use], quantized: Weight) -> Stored:
        graph, name, values = weight.graph, weight.name or "", quantized.values
        assert isinstance(graph, ir.Graph)
        transposed = all(use.transposed for use in uses)
        if uses[0].node.op_type == "LSTM":
            values = values.transpose(0, 2, 1)  # [direction, input, gate and unit]
        elif transposed:
            values = values.T
        return Stored(name, graph, self.constant(graph, values, f"{name}_int8"), transposed, quantized.scale)

    # ----------------------------------------------------------------------------------------------------------- parts

    def constant(self, graph: ir.Graph, array: Array, base: str) -> ir.Value:
        """An initializer with these contents; equal ones are one."""
        array = np.asarray(array, order="C")
        key = (graph, array.dtype, array.shape, hashlib.blake2b(array.tobytes(), digest_size=32).digest())
        if key not in self.made:
            name = self.names.new(base)
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
            graph.register_initializer(value)
            self.made[key] = (value,)
        return self.made[key][0]

    def before(
        self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], name: str = "", **attributes: int | Sequence[int]
    ) -> ir.Value:
        """The output of a new node right before ``node``."""
        assert node.graph is not None
        new = self._node(site(node), op_type, inputs, 1, attributes, name)
        node.graph.insert_before(node, new)
        return new.outputs[0]

    def input(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """The first input of a node as uint8, its scale and its zero point, made once for all that read it in this graph."""
        value, graph = node.inputs[0], node.graph
        assert value is not None
        assert isinstance(graph, ir.Graph)
        if (graph, value) not in self.made:
            new = self._node(value.name or "", "DynamicQuantizeLinear", [value], 3, {})
            producer = value.producer()
            if producer is not None and producer.graph is graph:
                graph.insert_after(producer, new)
            else:
                graph.insert_before(graph[0], new)
            self.made[graph, value] = tuple(new.outputs)
        return self.made[graph, value]

    def weight(self, stored: Stored, *, transposed: bool) -> ir.Value:
        """The integers of a weight; where they are stored the other way, a runtime transposes them while it loads the model."""
        if transposed == stored.transposed:
            return stored.values
        if stored.values not in self.made:
            new = self._node(stored.name, "Transpose", [stored.values], 1, {"perm": [1, 0]})
            stored.graph.insert_before(stored.graph[0], new)
            self.made[stored.values] = tuple(new.outputs)
        return self.made[stored.values][0]

    def scale(self, stored: Stored, shape: Sequence[int] | None, factor: float = 1.0) -> ir.Value:
        """The scales in this shape (None: as they are), times a factor; one for all is a scalar."""
        scale = stored.scale * np.float32(factor)
        if scale.size == 1:
            scale = scale.reshape(())
        elif shape is not None:
            scale = scale.reshape(shape)
        return self.constant(stored.graph, scale, f"{stored.name}_scale")

    def _node(
        self,
        base: str,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        attributes: Mapping[str, int | Sequence[int]],
        name: str = "",
    ) -> ir.Node:
        new = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=name or self.names.new(f"{base}_{op_type}"))
        for output in new.outputs:
            output.name = self.names.new(f"{base}_{op_type.lower()}")
        return new


# ------------------------------------------------------------------------------------------------------------- operators

Weights = Sequence[tuple[Stored, bool]]
"""The weights of a node, each with whether it multiplies by the transposed of what the file stored."""


def _matmul(work: Integers, node: ir.Node, weights: Weights) -> None:
    _become(work, node, "Mul", [*_product(work, node, weights)])


def _product(work: Integers, node: ir.Node, weights: Weights, alpha: float = 1.0) -> tuple[ir.Value, ir.Value]:
    """The integer product as floats, and the scale that it is to be multiplied by."""
    ((stored, transposed),) = weights
    quantized, scale, zero_point = work.input(node)
    weight = work.weight(stored, transposed=transposed)
    product = work.before(node, "MatMulInteger", [quantized, weight, zero_point], name=node.name or "")
    floats = work.before(node, "Cast", [product], to=int(ir.DataType.FLOAT))
    of_columns = work.scale(stored, None if stored.scale.ndim > 2 else [-1], alpha)
    return floats, work.before(node, "Mul", [scale, of_columns])


def _gemm(work: Integers, node: ir.Node, weights: Weights) -> None:
    """A · B times alpha, plus C times beta; with alpha in the scales, and beta in C where that is constant."""
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    bias = node.inputs[2] if len(node.inputs) > 2 and beta else None
    if node.attributes.get_int("transA", 0):
        node.replace_input_with(0, work.before(node, "Transpose", [node.inputs[0]], perm=[1, 0]))
    product = _product(work, node, weights, alpha)
    if bias is None:
        _become(work, node, "Mul", product)
        return
    if beta != 1:
        assert node.graph is not None
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        known = constant(bias)
        factor = np.float32(beta)
        if known is None:
            bias = work.before(node, "Mul", [bias, work.constant(graph, np.asarray(factor), "beta")])
        else:
            bias = work.constant(graph, known.numpy() * factor, f"{bias.name}_beta")
    _become(work, node, "Add", [work.before(node, "Mul", product), bias])


def _gather(work: Integers, node: ir.Node, weights: Weights) -> None:
    ((stored, _),) = weights
    rows = node.inputs[1]
    values = work.before(node, "Gather", [work.weight(stored, transposed=False), rows], axis=0, name=node.name or "")
    scale = work.scale(stored, [-1, 1])
    if stored.scale.size > 1:
        scale = work.before(node, "Gather", [scale, rows], axis=0)
    floats = work.before(node, "Cast", [values], to=int(ir.DataType.FLOAT))
    _become(work, node, "Mul", [floats, scale])


def _lstm(work: Integers, node: ir.Node, weights: Weights) -> None:
    """The kernel wants a scale and a zero point for each direction and channel."""
    parameters = []
    for stored, _ in weights:
        directions, _, channels = (int(size) for size in constant_shape(stored.values))
        scale = np.broadcast_to(stored.scale, (directions, channels, 1))[..., 0]
        parameters.append(work.constant(stored.graph, scale, f"{stored.name}_scale"))
        parameters.append(work.constant(stored.graph, np.zeros(scale.shape, np.int8), f"{stored.name}_zero"))
    inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
    inputs[1:3] = [stored.values for stored, _ in weights]
    node.attributes.pop("layout", None)  # 0, which the kernel takes for granted
    _become(work, node, "DynamicQuantizeLSTM", [*inputs, *parameters], MICROSOFT)


def _attention(work: Integers, node: ir.Node, weights: Weights) -> None:
    ((stored, _),) = weights
    quantized, scale, zero_point = work.input(node)
    given = [*node.inputs, *[None] * (5 - len(node.inputs))]
    columns = constant_shape(stored.values)[1]
    bias = given[2] or work.constant(stored.graph, np.zeros(columns, np.float32), f"{stored.name}_bias")
    scales = work.scale(stored, [-1])
    zero = work.constant(stored.graph, np.zeros(columns if stored.scale.size > 1 else (), np.int8), f"{stored.name}_zero")
    inputs = [quantized, stored.values, bias, scale, scales, given[3], zero_point, zero, given[4]]
    _become(work, node, "QAttention", inputs, MICROSOFT)


_WRITERS: Mapping[str, Callable[[Integers, ir.Node, Weights], None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Gather": _gather,
    "LSTM": _lstm,
    "Attention": _attention,
}


def _become(work: Integers, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], domain: str = "") -> None:
    """Make the node another operator; its outputs stay what they are. Only operators of one's own keep their attributes."""
    old = [*dict.fromkeys(value for value in node.inputs if value is not None)]
    node.op_type, node.domain = op_type, domain
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)
    if domain:
        work.model.opset_imports.setdefault(domain, 1)
    else:
        node.attributes.clear()
        node.name = work.names.new(f"{node.name}_{op_type}") if node.name else None
    for value in old:
        producer = value.producer()
        if producer is not None and producer.op_type == "Transpose" and constant(producer.inputs[0]) is not None:
            _drop(value)


def _drop(value: ir.Value) -> None:
    """Remove a constant, or a Transpose of one, that nothing reads any more."""
    if value.uses() or value.is_graph_output() or value.graph is None:
        return
    producer = value.producer()
    if value.is_initializer():
        del value.graph.initializers[value.name or ""]
    elif producer is not None and producer.graph is not None:
        producer.graph.remove(producer, safe=True)


def constant_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of an initializer that was made here."""
    assert value.const_value is not None
    return tuple(int(size) for size in value.const_value.shape.numpy())
