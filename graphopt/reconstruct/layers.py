"""Layers that multiply what they read with a constant matrix: how their weights lie, and where their bias and their output are.

    y = W^T x + b,   W [group, k, out / group]      Conv (x a patch), Gemm, MatMul

The output to be met is the layer's own, or behind an Add with a constant (a bias), or a sum with another value that is known
before the layer runs (a residual): then what the layer has to give is the sum minus that other value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array
from graphopt.graphs import constant
from graphopt.names import Names
from graphopt.observe import Patches, patches


@dataclass(frozen=True, eq=False)
class Layer:
    """A Conv, Gemm or MatMul with constant weights of its own."""

    node: ir.Node
    weight: ir.Value
    axis: int
    """Of the weight: what is multiplied and summed."""
    patches: Patches | None
    bias: ir.Value | None
    """A constant vector that is added; None: there is none."""
    biasable: bool
    """Whether the node takes a bias where it has none."""
    output: ir.Value
    """What the layer computes, its bias included."""

    @property
    def reads(self) -> ir.Value:
        """What the layer reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def groups(self) -> int:
        """Of a grouped Conv; 1."""
        return self.patches.group if self.patches else 1

    @property
    def kernel(self) -> int:
        """Elements of the matrix for each index of the weight's axis."""
        return math.prod(self.patches.kernel) if self.patches else 1

    @property
    def free(self) -> bool:
        """Whether the layer can be given a bias."""
        return self.bias is not None or self.biasable

    def matrix(self) -> Array:
        """The weights as [group, k, out / group], float64."""
        array = _tensor(self.weight).numpy().astype(np.float64)
        if self.patches is not None:
            return array.reshape(self.groups, len(array) // self.groups, -1).transpose(0, 2, 1)
        return (array.T if self.axis == 1 else array)[np.newaxis]

    def offset(self) -> Array:
        """The bias [out], float64; zeros where there is none."""
        if self.bias is None:
            matrix = _tensor(self.weight).shape.numpy()
            return np.zeros(matrix[0] if self.patches or self.axis == 1 else matrix[1])
        return _tensor(self.bias).numpy().astype(np.float64).reshape(-1)

    def put(self, matrix: Array, offset: Array | None) -> None:
        """Change the weights in place, and the bias [out] if it is given."""
        shape = _tensor(self.weight).shape.numpy()
        if self.patches is not None:
            array = matrix.transpose(0, 2, 1).reshape(shape)
        else:
            array = matrix[0].T if self.axis == 1 else matrix[0]
        _put(self.weight, array)
        if offset is None:
            return
        if self.bias is not None:
            _put(self.bias, offset.reshape(_tensor(self.bias).shape.numpy()))
        elif self.biasable:
            _add_bias(self.node, self.weight, offset)


def layer(node: ir.Node) -> Layer | None:
    """The layer that a node is; None where it is none, or shares its weights with another node."""
    if node.domain != "" or node.op_type not in {"Conv", "Gemm", "MatMul"}:
        return None
    weight = node.inputs[1]
    if weight is None or node.inputs[0] is None or not _own(weight) or constant(node.inputs[0]) is not None:
        return None
    tensor = _tensor(weight)
    if node.op_type == "Conv":
        if weight.shape is None:
            weight.shape, weight.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        return _biased(node, weight, 1, patches(node))
    if len(tensor.shape) != 2:
        return None
    return _gemm(node, weight) if node.op_type == "Gemm" else _product(node, weight)


def _gemm(node: ir.Node, weight: ir.Value) -> Layer | None:
    given = node.attributes
    if given.get_int("transA", 0) or given.get_float("alpha", 1.0) != 1 or given.get_float("beta", 1.0) != 1:
        return None
    return _biased(node, weight, 1 if given.get_int("transB", 0) else 0, None)


def _product(node: ir.Node, weight: ir.Value) -> Layer:
    """A MatMul, with the Add of a constant that follows."""
    output = node.outputs[0]
    reader = sole_reader(output)
    if reader is not None and reader.op_type == "Add" and reader.domain == "":
        other = reader.inputs[1] if reader.inputs[0] is output else reader.inputs[0]
        if other is not None and _own(other) and _tensor(other).size == _tensor(weight).shape.numpy()[1]:
            return Layer(node, weight, 0, None, other, False, reader.outputs[0])
    return Layer(node, weight, 0, None, None, False, output)


def layers(model: ir.Model) -> dict[ir.Node, Layer]:
    """The layers of the main graph, by node, in its order."""
    return {node: found for node in model.graph if (found := layer(node)) is not None}


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, and nothing else does."""
    uses = [*value.uses()]
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def addend(found: Layer, position: Mapping[ir.Node, int]) -> tuple[ir.Value, ir.Value] | None:
    """A sum that the layer's output goes into and nothing else: the value added, known before the layer runs, and the sum."""
    reader = sole_reader(found.output)
    if reader is None or reader.domain != "" or reader not in position:
        return None
    if reader.op_type not in {"Add", "Sum"} or len(reader.inputs) != 2:
        return None
    other = reader.inputs[1] if reader.inputs[0] is found.output else reader.inputs[0]
    if other is None or constant(other) is not None:
        return None
    producer = other.producer()
    if producer is not None and position.get(producer, len(position)) > position[found.node]:
        return None
    return other, reader.outputs[0]


def _biased(node: ir.Node, weight: ir.Value, axis: int, kernel: Patches | None) -> Layer | None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    out = _tensor(weight).shape.numpy()[0 if kernel is not None or axis == 1 else 1]
    if bias is not None and not (_own(bias) and _tensor(bias).size == out):
        return None
    return Layer(node, weight, axis, kernel, bias, bias is None, node.outputs[0])


def _own(value: ir.Value) -> bool:
    """Whether a value is a float constant that one node reads, once."""
    tensor = constant(value)
    return tensor is not None and tensor.dtype.is_floating_point() and len([*value.uses()]) == 1 and not value.is_graph_output()


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    tensor = constant(value)
    assert tensor is not None, "layers are made of constants"
    return tensor


def _put(value: ir.Value, array: Array) -> None:
    old = _tensor(value)
    tensor = ir.tensor(np.ascontiguousarray(array.astype(old.dtype.numpy())), dtype=old.dtype, name=old.name)
    producer = value.producer()
    if value.is_initializer() or producer is None:
        value.const_value = tensor
    else:
        for name in [*producer.attributes]:
            producer.attributes.pop(name)
        producer.attributes["value"] = ir.AttrTensor("value", tensor)


def _add_bias(node: ir.Node, weight: ir.Value, offset: Array) -> None:
    dtype = _tensor(weight).dtype
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = Names(graph).new(f"{weight.name}_offset")
    array = offset.astype(dtype.numpy())
    value = ir.Value(name=name, const_value=ir.tensor(array, dtype=dtype, name=name), type=ir.TensorType(dtype))
    value.shape = ir.Shape(array.shape)
    graph.register_initializer(value)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, value)
